"""What a report says: every fidelity beside the density, dense steps, seeds and floor it holds for.

The one place for words: the page, the Markdown, the table of clips and the terminal read them.
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from vidsparse.metrics.latency import tokens_to_gain
from vidsparse.metrics.report.results import Clip, NoiseFloor, PresetSummary, Range, Results
from vidsparse.metrics.statistics import FEWEST_FOR_INTERVAL, Summary, compare_to_floor

STOCK = "diffusers"  # the dense engine of a pipeline that nobody changed
WORTH = 1.03  # times as fast: less is next to nothing
AIM = 1.1  # times as fast: what a person might notice
HIDDEN = ("psnr_pooled", "psnr_worst_frame", "ssim_worst_frame")  # after the others


def headline(results: Results) -> str:
    """The whole report in one line."""
    rows = results.summary
    if all(row.scores["psnr"].mean is None for row in rows):
        return f"{_names(rows)}: identical to dense"
    best = max(rows, key=lambda row: row.speedup.median)
    quality = number(best.scores["psnr"].mean, "dB PSNR")
    doubt = ", timing in doubt" if best.timing else ""
    if best.speedup.median < WORTH:
        return (
            f"Nothing gained at {results.video.tokens:,} tokens: {best.preset} is "
            f"{best.speedup.median:.2f}x as fast as dense at {quality}{doubt}"
        )
    return f"{best.preset}: {best.speedup.median:.2f}x as fast as dense at {quality}{doubt}"


def too_short(results: Results) -> list[str]:
    """Of presets that gained nothing, how many tokens they need."""
    lines = []
    for row in results.summary:
        tokens = results.video.tokens
        found = [
            tokens_to_gain(clip.dense_time, clip.time, tokens, AIM)
            for clip in results.clips
            if clip.preset == row.preset and clip.time and clip.dense_time
        ]
        if row.speedup.median >= WORTH or not found:
            continue
        known = [each for each in found if each is not None]
        if row.dense_steps_share == 1:
            why = "every call was dense"
        elif len(known) < len(found):
            why = "its attention calls are hardly faster than dense ones, which no length changes"
        elif (needed := statistics.median(known)) > tokens:
            why = f"by these times it gains {AIM:g}x from about {_rounded(needed):,} tokens on"
        else:
            why = f"by its attention alone it would gain {AIM:g}x: the rest took longer"
        lines.append(f"{row.preset} gained nothing at {tokens:,} tokens: {why}")
    return lines


def _rounded(number: float) -> int:
    """To two digits."""
    return int(float(f"{number:.1e}"))


def floor(results: Results) -> str:
    """What a PSNR is to be held against."""
    found = results.noise_floor
    if found is None:
        return "noise floor not measured"
    if found.psnr is None:
        return "noise floor infinite"
    return f"noise floor {found.psnr:.1f} dB"


def describe_floor(results: Results) -> str:
    """How far apart two dense engines are, for those who can still ask for it."""
    found = results.noise_floor
    if found is None:
        return "noise floor not measured (--noise-floor)"
    if found.psnr is None:
        return f"noise floor: {found.how} gave identical frames"
    return f"noise floor, {found.how}: {found.psnr:.1f} dB"


def conditions(results: Results) -> str:
    """Under what conditions every number holds."""
    video = results.video
    noise = floor(results)
    if results.noise_floor is not None:
        noise += f" ({results.noise_floor.how})"
    ran_on = f"{machine(results)}; " if machine(results) else ""
    rate = (
        f"at {video.fps:g} fps"
        if video.frames > 1
        else "(one frame, so nothing is measured between frames)"
    )
    return (
        f"{count(len(results.prompts), 'prompt')} x {count(len(results.seeds), 'seed')} "
        f"({', '.join(map(str, results.seeds))}), {results.steps} steps, guidance "
        f"{scales(results)}, {video.frames} x {video.height} x {video.width} {rate}, "
        f"{video.tokens:,} tokens, {ran_in(results)}{given(results)}; "
        f"{ran_on}{noise}; {results.schedule_note}."
    )


def scales(results: Results) -> str:
    """The scale of guidance; of both transformers, where the second has one of its own."""
    second = "" if results.guidance_2 is None else f" and {results.guidance_2:g}"
    return f"{results.guidance:g}{second}"


def ran_in(results: Results) -> str:
    """Where, in which dtype, and what diffusers did to dense and sparse alike."""
    return ", ".join([f"{results.gpu or results.device} in {results.dtype}", *results.stack])


def given(results: Results) -> str:
    """What the pipeline was given beside the prompt."""
    said = [f"{role} {', '.join(files)}" for role, files in results.inputs.items()]
    said += [f"strength {results.strength:g}"] if results.strength is not None else []
    away = f", away from {results.negative_prompt!r}" if results.negative_prompt else ""
    return (f", given {', '.join(said)}" if said else "") + away


def warnings(results: Results) -> list[str]:
    """What a reader must not miss."""
    calls: Counter[tuple[str, str]] = Counter()
    for clip in results.clips:
        calls.update({(clip.preset, reason): n for reason, n in clip.fallbacks.items()})
    lines: dict[str, None] = {
        f"{preset} fell back to dense: {reason} ({count(number, 'call')} in all)": None
        for (preset, reason), number in calls.items()
    }
    lines |= dict.fromkeys(timing(results)) | dict.fromkeys(too_short(results))
    lines |= {f"{clip.preset}: {line}": None for clip in results.clips for line in clip.notes}
    if len(results.prompts) < 5:
        lines["Fewer than five prompts: no claim that one preset is better than another."] = None
    return list(lines)


def timing(results: Results) -> list[str]:
    """Why speed-ups may not be those of sparsity, and what to do."""
    repeated = any(len(clip.all_seconds) > 1 for clip in results.clips)
    way_out = "time again on an idle machine" + ("" if repeated else ", or with --repeats 3")
    return [f"{row.preset}: {line}; {way_out}" for row in results.summary for line in row.timing]


def machine(results: Results) -> str:
    """What the generations ran on, and between which loads; empty if that is not known."""
    found = [m for clip in results.clips for m in (clip.machine, clip.dense_machine) if m]
    if not found:
        return ""
    names = dict.fromkeys(f"{m.cpu}, {count(m.cores, 'core')}, {count(m.threads, 'thread')}"
                          for m in found)  # fmt: skip
    loads = sorted(m.load for m in found if m.load is not None)
    if not loads:
        return "; ".join(names)
    span = f"{loads[0]:.1f}" if loads[0] == loads[-1] else f"{loads[0]:.1f} to {loads[-1]:.1f}"
    return f"{'; '.join(names)}, load average {span}"


def spread(row: PresetSummary) -> str:
    """How far the runs of a preset are apart in speed."""
    speed = row.speedup
    if speed.low is None or speed.high is None or speed.runs == 1:
        return "one run"
    of = f" of {speed.runs} runs" if speed.runs else ""
    return f"quartiles {speed.low:.2f} to {speed.high:.2f}{of}"


def cards(results: Results) -> list[dict[str, Any]]:
    """What can be read of each preset in ten seconds."""
    return [
        {
            "name": row.preset,
            "speed": f"{row.speedup.median:.2f}x",
            "spread": spread(row),
            "doubt": bool(row.timing),
            "floor": floor(results),
            "identical": _identical(row.scores["psnr"]),
            "psnr": number(row.scores["psnr"].mean, "").strip(),
            "interval": ends(row.scores["psnr"]),
            "psnr_note": "to dense" if row.scores["psnr"].mean is None else "dB PSNR",
            "density": f"{row.mean_density:.2f}",
            "asked": "" if row.asked_mean_density is None else f"{row.asked_mean_density:g}",
            "dense_steps": f"{row.dense_steps_share:.0%}",
            "ssim": interval(row.scores["ssim"], 3) if "ssim" in row.scores else "",
            "ideal": f"{row.gain.ideal:.2f}x" if row.gain else "",
            "memory": _memory(results, row.preset),
            "sentence": row.sentence,
        }
        for row in results.summary
    ]


def score_table(results: Results) -> list[dict[str, Any]]:
    """A row for each metric, a value for each preset."""
    ids = sorted(results.metrics, key=lambda name: (name in HIDDEN, "/" in name))
    table = []
    for name in ids:
        metric = results.metrics[name]
        values = [_cell(row, name) for row in results.summary]
        arrow = {"higher": "higher is better", "lower": "lower is better"}
        unit = f"{metric.unit}, " if metric.unit else ""
        table.append(
            {
                "label": metric.label,
                "tier": metric.tier,
                "stands_in_for": metric.stands_in_for,
                "better": unit + arrow.get(metric.better, metric.better),
                "caveat": metric.caveat,
                "cells": values,
            }
        )
    return table


def not_measured(results: Results) -> list[str]:
    """Which metrics are not there, and why."""
    return [f"{label}: not measured, {why}" for label, why in results.not_measured.items()]


def _cell(row: PresetSummary, name: str) -> str:
    if name not in row.scores:
        return "-"
    score = row.scores[name]
    digits = 1 if "psnr" in name else 3
    text = interval(score, digits)
    if score.mean is not None and score.identical:
        text += f" (without {score.identical} identical)"
    dense = row.scores.get(f"{name}@dense")
    if dense is not None and dense.mean is not None:
        text += f" (dense {dense.mean:.{digits}f})"
    return text


def pairs(results: Results, *, numbers: bool = True) -> list[str]:
    """Which preset is closer to dense, where that can be said, and by how much."""
    return [
        f"{row.preset} and {pair.other} by {pair.metric.upper()}: "
        + (f"{pair.difference:+.3g}, " if numbers and pair.difference is not None else "")
        + pair.verdict
        for row in results.summary
        for pair in row.against_next
    ]


def gains(results: Results) -> list[str]:
    """What each preset gained beside what it could gain."""
    return [
        f"{row.preset}: attention is {row.gain.attention_share:.0%} of a dense run, so at this "
        f"density {row.gain.ideal:.2f}x is ideal, {row.gain.achieved:.2f}x was reached; kernel "
        f"efficiency {row.gain.kernel_efficiency:.2f}"
        for row in results.summary
        if row.gain
    ]


def best_dense(results: Results) -> list[str]:
    """The speed-ups against dense with the fastest engine, beside those against stock diffusers."""
    engines = results.dense_engines
    best = min(engines, key=lambda name: engines[name])
    stock = engines[STOCK]
    if engines[best] > 0.97 * stock:
        return [f"no dense engine here is faster than that of diffusers ({stock:.3g} ms a call)"]
    gain = 1 - engines[best] / stock
    speeds = []
    for row in results.summary:
        ratios = [
            (clip.dense_seconds - gain * clip.dense_time.attention) / clip.seconds
            for clip in results.clips
            if clip.preset == row.preset and clip.dense_time is not None
        ]
        speeds.append(f"{row.preset} {statistics.median(ratios):.2f}x")
    return [
        f"dense attention takes {stock:.3g} ms a call by diffusers and {engines[best]:.3g} ms by "
        f"{best}; against dense with that, {', '.join(speeds)}"
    ]


def fallbacks(results: Results) -> list[str]:
    """What fell back to dense, clip by clip, each sentence once."""
    return list(
        dict.fromkeys(
            f"{clip.preset}: fell back to dense: {reason} ({calls} calls)"
            for clip in results.clips
            for reason, calls in clip.fallbacks.items()
        )
    )


def setting(results: Results) -> str:
    """Prompts, seeds, steps, size and where it ran, in short."""
    video = results.video
    number = len(results.prompts) * len(results.seeds)
    counts = f"{count(len(results.prompts), 'prompt')} x {count(len(results.seeds), 'seed')}, "
    return (
        f"{counts if number > 1 else ''}seed {', '.join(map(str, results.seeds))}, "
        f"{results.steps} steps, {video.frames} x {video.height} x {video.width}, "
        f"{video.tokens:,} tokens, engine {results.engine} on "
        f"{ran_in(results)}"
    )


def sentence(
    speedup: Range, psnr: Summary, noise_floor: NoiseFloor | None, *, in_doubt: bool
) -> str:
    """The verdict on one preset.

    Args:
        speedup: Over dense.
        psnr: Of its clips.
        noise_floor: Dense against dense, if that was measured.
        in_doubt: Whether something speaks against its times.
    """
    speed = f"{speedup.median:.2f}x as fast as dense{' (timing in doubt)' * in_doubt}"
    if psnr.mean is None:
        return f"{speed}, every frame identical to dense"
    quality = f"PSNR {psnr.mean:.1f} dB {ends(psnr)}".rstrip()
    said = f"{speed} at {quality} over {count(psnr.prompts, 'prompt')}, {count(psnr.clips, 'clip')}"
    if psnr.identical:
        said += f", {psnr.identical} of them identical to dense"
    if noise_floor is None:
        return said
    if noise_floor.psnr is None:
        return f"{said}; two dense engines give identical frames"
    at = f"{noise_floor.psnr:.1f} dB"
    where = compare_to_floor(psnr, noise_floor.psnr)
    if where == "not tested":
        few = f"{psnr.prompts} of {FEWEST_FOR_INTERVAL} prompts"
        return f"{said}; noise floor {at}, not tested against it: {few}"
    if where == "not distinguishable":
        where = "not distinguishable from the noise floor"
    return f"{said}; {where}, {at}"


def caption(results: Results, clip: Clip) -> str:
    """One clip, with all that its PSNR needs."""
    return (
        f"{results.prompts[clip.prompt_index]} — {clip.preset}, seed {clip.seed}: "
        f"{number(clip.scores.get('psnr'), 'dB', clip.identical)} at mean density "
        f"{clip.mean_density:.2f}, {clip.dense_steps_share:.0%} of the steps dense, "
        f"{floor(results)}; {clip.seconds:.1f} s against {clip.dense_seconds:.1f} s dense"
    )


def clip_row(results: Results, clip: Clip) -> dict[str, Any]:
    """One clip as a row of a table."""
    return {
        "prompt": results.prompts[clip.prompt_index],
        "seed": clip.seed,
        "preset": clip.preset,
        "dense": f"{clip.dense_seconds:.1f} s",
        "sparse": f"{clip.seconds:.1f} s",
        "density": f"{clip.mean_density:.2f}",
        "dense_steps": f"{clip.dense_steps_share:.0%}",
        "psnr": number(clip.scores.get("psnr"), "dB", clip.identical),
        "worst": number(clip.scores.get("psnr_worst_frame"), "dB", clip.identical),
    }


def facts(results: Results) -> list[tuple[str, str]]:
    """Where and with what it ran."""
    engines = ", ".join(f"{name} {ms:.3g} ms" for name, ms in results.dense_engines.items())
    return [
        ("made", results.created),
        ("model", results.model),
        ("device", results.gpu or results.device),
        ("dtype", results.dtype),
        *([("dense and sparse", ", ".join(results.stack))] if results.stack else []),
        *((role, ", ".join(files)) for role, files in results.inputs.items()),
        *([("strength", f"{results.strength:g}")] if results.strength is not None else []),
        *([("negative prompt", results.negative_prompt)] if results.negative_prompt else []),
        ("kernel engine", results.engine),
        *([("CPU", machine(results))] if machine(results) else []),
        *([("dense attention, a call", engines)] if engines else []),
        ("token grid", results.video.grid),
        ("seeds", ", ".join(map(str, results.seeds))),
        *((name, version) for name, version in results.versions.items()),
    ]


def step_density(clip: Clip) -> list[float | None]:
    """Mean over layers, by step."""
    columns = zip(*clip.density, strict=True) if clip.density else ()
    return [
        statistics.fmean(found) if (found := [v for v in column if v is not None]) else None
        for column in columns
    ]


def ends(score: Summary, digits: int = 1) -> str:
    """The ends of an interval, if there is one."""
    if score.low is None or score.high is None:
        return ""
    return f"[{score.low:.{digits}f}, {score.high:.{digits}f}]"


def interval(score: Summary, digits: int = 1) -> str:
    """A mean with its interval, if it has one."""
    if score.mean is None:
        return "identical"
    return f"{score.mean:.{digits}f} {ends(score, digits)}".strip()


def number(value: float | None, unit: str, identical: bool = True) -> str:
    """A score for a person; one that is infinite belongs to an identical clip."""
    if value is None:
        return "identical" if identical else "-"
    return f"{value:.1f} {unit}"


def count(amount: int, name: str) -> str:
    """An amount and the name of what there is so much of, one or several."""
    return f"{amount} {name}{'s' * (amount != 1)}"


def _identical(score: Summary) -> str:
    if score.mean is None or not score.identical:
        return ""
    return f"{score.identical} of {score.clips} clips identical to dense, not in the mean"


def _memory(results: Results, preset: str) -> str:
    found = [clip.peak_memory_bytes for clip in results.clips if clip.preset == preset]
    known = [value for value in found if value is not None]
    return f"{max(known) / 2**30:.1f} GiB" if known else ""


def _names(rows: list[PresetSummary]) -> str:
    return ", ".join(row.preset for row in rows)
