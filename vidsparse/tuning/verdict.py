"""What is said of a tuned preset: the verdict, and the file with what to expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vidsparse.comparison.origin import origin
from vidsparse.metrics.statistics import another_prompt, summarize
from vidsparse.preset_files import PresetFile, changed_parameters
from vidsparse.presets import find_preset
from vidsparse.tuning.search import Measure, Target, Trial
from vidsparse.tuning.trials import Clip, Trials


def verdict(best: Trial, target: Target, trials: Trials) -> str:
    """Whether the target is met, and by what."""
    found = trials.clips[best.preset]
    density = f"{best.preset.name}, mean density {best.density:.3f}"
    psnr = summarize([clip.psnr for clip in found], _prompts(trials)).mean
    quality = "identical to dense" if psnr is None else f"{psnr:.1f} dB against dense"
    if trials.error is Measure.LPIPS:
        quality += f", LPIPS {best.error:.3f}"
    did = f"{density}: {quality}, {best.seconds:.1f} s a run, {best.gain:.2f}x dense"
    if not target.met(best):
        return f"{target.said()} cannot be met by these presets; the best is {did}"
    if best.gain <= 1:
        return f"{target.said()} is met by nothing that is faster than dense; the best is {did}"
    return f"{target.said()} is met by {did}; {_elsewhere([clip.psnr for clip in found], trials)}"


def _elsewhere(psnr: list[float | None], trials: Trials) -> str:
    """What that says of prompts that were not tried."""
    prompts = _prompts(trials)
    expected, number = another_prompt(psnr, prompts), len(set(prompts))
    if expected is not None:
        return f"one more prompt may have {expected[0]:.0f} to {expected[1]:.0f} dB"
    tried = "one prompt" if number == 1 else f"{number} prompts"
    return f"that is of {tried} alone: others can be several dB off, and three or more say how many"


def _prompts(trials: Trials) -> list[str]:
    return [str(case.prompt_index) for case in trials.cases]


def preset_file(
    path: Path, name: str, best: Trial, target: Target, trials: Trials, command: str
) -> PresetFile:
    """Everything that is to be known of the preset later."""
    job, request = trials.finished.spec.job, trials.cases[0].request
    found = trials.clips[best.preset]
    budgets = best.preset.schedule.budgets
    machine = trials.finished.machine
    return PresetFile(
        path=path,
        name=name,
        base=best.preset.name,
        summary=f"{best.preset.name}, tuned for {target.said()}",
        parameters=changed_parameters(best.preset, find_preset(best.preset.name)),
        budgets={layer: list(each) for layer, each in budgets.layers} if budgets else {},
        told={
            **origin(job, request, machine, command),
            "expected": {
                "target": target.said(),
                "met": target.met(best) and best.gain > 1,
                "clips": len(found),
                "psnr": _interval([clip.psnr for clip in found], trials),
                **_lpips(found, trials),
                "seconds": _interval([clip.seconds for clip in found], trials),
                "times_dense": _interval(
                    [clip.dense_seconds / clip.seconds for clip in found], trials
                ),
                "mean_density": best.density,
            },
        },
    )


def _lpips(found: list[Clip], trials: Trials) -> dict[str, Any]:
    if trials.error is not Measure.LPIPS:
        return {}
    return {"lpips": _interval([clip.lpips for clip in found], trials)}


def _interval(values: list[float | None], trials: Trials) -> dict[str, Any]:
    """Mean over prompts; its 95 % interval from three prompts on, and the extremes of clips."""
    summary = summarize(values, _prompts(trials)).model_dump()
    known = [value for value in values if value is not None]
    extremes = {"least": min(known), "most": max(known)} if known else {"identical": len(values)}
    kept = ("mean", "low", "high")
    return {key: summary[key] for key in kept if summary[key] is not None} | extremes
