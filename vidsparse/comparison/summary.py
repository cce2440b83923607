"""What can be said of a preset over all its clips: intervals, pairs and a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vidsparse.metrics.latency import Stages, amdahl, timing_doubts

PAIRED = ("psnr", "ssim")  # what presets are told apart by

Clip = Mapping[str, Any]
Floor = Mapping[str, Any] | None


def summarize_preset(name: str, clips: Sequence[Clip], floor: Floor) -> dict[str, Any]:
    """Summarize one preset.

    Args:
        name: Which.
        clips: Of all presets, as in results.json.
        floor: Dense against dense, likewise.
    """
    from vidsparse.metrics.statistics import summarize

    own = [clip for clip in clips if clip["preset"] == name]
    prompts = [str(clip["prompt_index"]) for clip in own]
    ids = [metric for metric in own[0]["scores"] if all(metric in c["scores"] for c in own)]
    scores = {
        metric: asdict(summarize([clip["scores"][metric] for clip in own], prompts))
        for metric in ids
    }
    pairs = [pair for clip in own for pair in
             zip(clip["all_dense_seconds"], clip["all_seconds"], strict=True)]  # fmt: skip
    speedup = _quartiles([dense / sparse for dense, sparse in pairs])
    timing = _timing(own)
    return {
        "preset": name,
        "speedup": speedup,
        "mean_density": statistics.fmean(clip["mean_density"] for clip in own),
        "dense_steps_share": statistics.fmean(clip["dense_steps_share"] for clip in own),
        "scores": scores,
        "against_next": _against(name, clips, floor),
        "gain": _gain(own),
        "timing": timing,
        "sentence": _sentence(speedup, scores, len(own), len(set(prompts)), floor, bool(timing)),
    }


def _stages(times: Mapping[str, float]) -> Stages:
    return Stages(**{key: times[key] for key in times if key != "other"})


def _timing(clips: Sequence[Clip]) -> list[str]:
    """Why the times of a preset are in doubt: of the clip with most doubts, and how many have."""
    found = [
        timing_doubts(_stages(clip["dense_time"]), _stages(clip["time"]), clip["mean_density"])
        + _other_machine(clip)
        for clip in clips
    ]
    doubtful = [doubts for doubts in found if doubts]
    if not doubtful:
        return []
    where = f" (one of {len(doubtful)} such clips of {len(clips)})" if len(clips) > 1 else ""
    return [f"{line}{where}" for line in max(doubtful, key=len)]


def _other_machine(clip: Clip) -> list[str]:
    ours, theirs = (
        f"{each['cpu']} with {each['threads']} threads"
        for each in (clip["machine"], clip["dense_machine"])
    )
    return [f"sparse ran on {ours}, dense on {theirs}"] if ours != theirs else []


def _gain(clips: Sequence[Clip]) -> dict[str, float]:
    """What was gained beside what could be, medians over clips."""
    found = [
        asdict(amdahl(_stages(clip["dense_time"]), _stages(clip["time"]), clip["mean_density"]))
        for clip in clips
    ]
    return {key: statistics.median(each[key] for each in found) for key in found[0]}


def _against(name: str, clips: Sequence[Clip], floor: Floor) -> list[dict[str, Any]]:
    """This preset against each one after it, clip by clip."""
    from vidsparse.metrics.statistics import FEWEST_FOR_VERDICT, paired

    names = list(dict.fromkeys(clip["preset"] for clip in clips))
    found = []
    for other in names[names.index(name) + 1 :]:
        for metric in [each for each in PAIRED if each in clips[0]["scores"]]:
            ours, theirs = ([c["scores"][metric] for c in clips if c["preset"] == each]
                            for each in (name, other))  # fmt: skip
            prompts = [str(c["prompt_index"]) for c in clips if c["preset"] == name]
            at = floor["psnr"] if floor and metric == "psnr" else None
            pair = paired(ours, theirs, prompts, floor=at)
            verdicts = {
                "a better": f"{name} better",
                "b better": f"{other} better",
                "not tested": f"not tested: {pair.prompts} of {FEWEST_FOR_VERDICT} prompts",
            }
            found.append(
                {
                    "other": other,
                    "metric": metric,
                    "difference": pair.difference,
                    "low": pair.low,
                    "high": pair.high,
                    "verdict": verdicts.get(pair.verdict, pair.verdict),
                }
            )
    return found


def _sentence(
    speedup: Mapping[str, float | None],
    scores: Mapping[str, Any],
    clips: int,
    prompts: int,
    floor: Floor,
    in_doubt: bool,
) -> str:
    """The verdict on one preset, in words."""
    from vidsparse.metrics.statistics import FEWEST_FOR_INTERVAL, Summary, compare_to_floor

    psnr = Summary(**scores["psnr"])
    speed = f"{speedup['median']:.2f}x as fast as dense{' (timing in doubt)' * in_doubt}"
    if psnr.mean is None:
        return f"{speed}, every frame identical to dense"
    quality = f"PSNR {psnr.mean:.1f} dB"
    if psnr.low is not None and psnr.high is not None:
        quality += f" [{psnr.low:.1f}, {psnr.high:.1f}]"
    count = f"{prompts} prompt{'s' * (prompts != 1)}, {clips} clip{'s' * (clips != 1)}"
    sentence = f"{speed} at {quality} over {count}"
    if psnr.identical:
        sentence += f", {psnr.identical} of them identical to dense"
    if floor is None:
        return sentence
    if floor["psnr"] is None:
        return f"{sentence}; two dense engines give identical frames"
    where = compare_to_floor(psnr, floor["psnr"])
    if where == "not tested":
        few = f"{psnr.prompts} of {FEWEST_FOR_INTERVAL} prompts"
        return f"{sentence}; noise floor {floor['psnr']:.1f} dB, not tested against it: {few}"
    if where == "not distinguishable":
        where = "not distinguishable from the noise floor"
    return f"{sentence}; {where}, {floor['psnr']:.1f} dB"


def _quartiles(values: list[float]) -> dict[str, float | None]:
    """Median and quartiles; of one run there are none."""
    if len(values) == 1:
        return {"median": values[0], "low": None, "high": None, "runs": 1}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "runs": len(values)}
