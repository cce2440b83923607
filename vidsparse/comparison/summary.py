"""What can be said of a preset over all its clips: intervals, pairs and a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vidsparse.metrics.latency import Amdahl, amdahl, timing_doubts
from vidsparse.metrics.report import words
from vidsparse.metrics.report.results import Clip, NoiseFloor, Pair, PresetSummary, Range
from vidsparse.metrics.statistics import FEWEST_FOR_VERDICT, paired, summarize

PAIRED = ("psnr", "ssim")  # what presets are told apart by


def summarize_preset(
    name: str, clips: Sequence[Clip], floor: NoiseFloor | None, *, asked: float | None = None
) -> PresetSummary:
    """Summarize one preset.

    Args:
        name: Which.
        clips: Of all presets.
        floor: Dense against dense, if that was measured.
        asked: The mean density that was asked for.
    """
    own = [clip for clip in clips if clip.preset == name]
    prompts = [str(clip.prompt_index) for clip in own]
    ids = [metric for metric in own[0].scores if all(metric in c.scores for c in own)]
    scores = {metric: summarize([clip.scores[metric] for clip in own], prompts) for metric in ids}
    pairs = [
        pair for clip in own for pair in zip(clip.all_dense_seconds, clip.all_seconds, strict=True)
    ]
    speedup = _quartiles([dense / sparse for dense, sparse in pairs])
    timing = _timing(own)
    return PresetSummary(
        preset=name,
        speedup=speedup,
        mean_density=statistics.fmean(clip.mean_density for clip in own),
        asked_mean_density=asked,
        dense_steps_share=statistics.fmean(clip.dense_steps_share for clip in own),
        scores=scores,
        against_next=_against(name, clips, floor),
        gain=_gain(own),
        timing=timing,
        sentence=words.sentence(speedup, scores["psnr"], floor, in_doubt=bool(timing)),
    )


def _timing(clips: Sequence[Clip]) -> list[str]:
    """Why the times of a preset are in doubt: of the clip with most doubts, and how many have."""
    found = [_doubts(clip) for clip in clips]
    doubtful = [doubts for doubts in found if doubts]
    if not doubtful:
        return []
    where = f" (one of {len(doubtful)} such clips of {len(clips)})" if len(clips) > 1 else ""
    return [f"{line}{where}" for line in max(doubtful, key=len)]


def _doubts(clip: Clip) -> list[str]:
    found = []
    if clip.time and clip.dense_time:
        found += timing_doubts(clip.dense_time, clip.time, clip.mean_density)
    ours, theirs = (
        machine and f"{machine.cpu} with {machine.threads} threads"
        for machine in (clip.machine, clip.dense_machine)
    )
    return found + ([f"sparse ran on {ours}, dense on {theirs}"] if ours != theirs else [])


def _gain(clips: Sequence[Clip]) -> Amdahl:
    """What was gained beside what could be, medians over clips."""
    found = [
        amdahl(clip.dense_time, clip.time, clip.mean_density)
        for clip in clips
        if clip.time and clip.dense_time
    ]
    facts = Amdahl.model_fields
    return Amdahl(**{key: statistics.median(getattr(g, key) for g in found) for key in facts})


def _against(name: str, clips: Sequence[Clip], floor: NoiseFloor | None) -> list[Pair]:
    """This preset against each one after it, clip by clip."""
    names = list(dict.fromkeys(clip.preset for clip in clips))
    later = names[names.index(name) + 1 :]
    metrics = [each for each in PAIRED if each in clips[0].scores]
    return [_pair(name, other, metric, clips, floor) for other in later for metric in metrics]


def _pair(
    name: str, other: str, metric: str, clips: Sequence[Clip], floor: NoiseFloor | None
) -> Pair:
    ours, theirs = (
        [clip.scores[metric] for clip in clips if clip.preset == each] for each in (name, other)
    )
    prompts = [str(clip.prompt_index) for clip in clips if clip.preset == name]
    at = floor.psnr if floor and metric == "psnr" else None
    found = paired(ours, theirs, prompts, floor=at)
    verdicts = {
        "a better": f"{name} better",
        "b better": f"{other} better",
        "not tested": f"not tested: {found.prompts} of {FEWEST_FOR_VERDICT} prompts",
    }
    return Pair(
        other=other,
        metric=metric,
        difference=found.difference,
        low=found.low,
        high=found.high,
        verdict=verdicts.get(found.verdict, found.verdict),
    )


def _quartiles(values: list[float]) -> Range:
    """Median and quartiles; of one run there are none."""
    if len(values) == 1:
        return Range(median=values[0], low=None, high=None, runs=1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Range(median=median, low=low, high=high, runs=len(values))
