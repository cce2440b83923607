"""What ``vidsparse compare`` found, as one record that every report is written from."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsparse.comparison.finished import Finished
from vidsparse.comparison.measure import Run
from vidsparse.comparison.spec import DENSE, Case
from vidsparse.comparison.store import SHEET
from vidsparse.comparison.summary import summarize_preset
from vidsparse.files import replace_file
from vidsparse.grid import TokenGrid
from vidsparse.preset import Preset
from vidsparse.versions import versions

if TYPE_CHECKING:
    from vidsparse.metrics.report.results import Results


def make_results(finished: Finished, command: str) -> Results:
    """Put together everything a report or a program may want, with its provenance."""
    from vidsparse.metrics.catalogue import AS_ASKED, METRICS
    from vidsparse.metrics.report.results import Results

    spec = finished.spec
    request, job = spec.cases[0].request, spec.job
    clips = [_clip(finished, case, preset) for case in spec.cases for preset in spec.presets]
    floor = finished.floor()
    summary = [
        summarize_preset(preset.name, clips, floor)
        | {"asked_mean_density": preset.policy.mean_density}
        for preset in spec.presets
    ]
    ids = dict.fromkeys(name.partition("@")[0] for clip in clips for name in clip["scores"])
    why = spec.not_judged()
    return Results.model_validate(
        {
            "schema_version": 1,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "model": str(job.checkpoint.source),
            "device": job.device,
            "gpu": _gpu(job.device),
            "dtype": job.dtype,
            "engine": _engines(clips),
            "versions": {name: value for name, value in versions().items() if value},
            "video": _video(finished),
            "steps": request.steps,
            "guidance": request.guidance,
            "prompts": list(dict.fromkeys(case.request.prompt for case in spec.cases)),
            "seeds": list(dict.fromkeys(case.request.seed for case in spec.cases)),
            "schedule_note": "; ".join(dict.fromkeys(map(_schedule, spec.presets))),
            "noise_floor": floor,
            "dense_engines": finished.dense_engines(),
            "presets": [_preset(preset) for preset in spec.presets],
            "metrics": {name: asdict(METRICS[name]) for name in ids if name in METRICS},
            "not_measured": {METRICS[AS_ASKED].label: why} if why else {},
            "clips": clips,
            "summary": summary,
        }
    )


def write_files(folder: Path, finished: Finished, results: Results) -> dict[str, Path]:
    """Write the videos and the sheet of the first clip, and the report; give each file's path."""
    from vidsparse.metrics.report.contact_sheet import contact_sheet
    from vidsparse.metrics.report.write import FILES, write_report

    spec = finished.spec
    first = spec.cases[0]
    frames = {name: finished.clips.array(first, name) for name in spec.names}
    videos = {name: folder / f"{name}{spec.job.suffix}" for name in spec.names}
    for preset, name in zip((None, *spec.presets), spec.names, strict=True):
        spec.job.write(videos[name], frames[name], first.request, preset)
    labels = [_sheet_label(name, results) for name in spec.names]
    rows = dict(zip(labels, frames.values(), strict=True))
    sheet = contact_sheet(rows, title=first.request.prompt)
    replace_file(folder / SHEET, lambda path: sheet.save(path, format="PNG"))
    write_report(folder, results)
    paths = [folder / name for name in (*FILES, SHEET)] + list(videos.values())
    return {path.name: path for path in paths}


def decibels(score: float | None) -> str:
    """A PSNR for a person."""
    return "identical" if score is None else f"{score:.1f} dB"


def _sheet_label(name: str, results: Results) -> str:
    if name == DENSE:
        return f"dense  {results.clips[0].dense_seconds:.1f} s"
    clip = next(clip for clip in results.clips if clip.preset == name)
    return (
        f"{name}  {clip.seconds:.1f} s  density {clip.mean_density:.2f}, "
        f"{clip.dense_steps_share:.0%} of the steps dense  {decibels(clip.scores['psnr'])}"
    )


def _clip(finished: Finished, case: Case, preset: Preset) -> dict[str, Any]:
    run, dense, scores = (
        finished.run(case, preset),
        finished.run(case, None),
        finished.scores(case, preset),
    )
    assert run is not None
    assert dense is not None
    assert scores is not None
    ours, theirs = finished.runs(case, preset), finished.runs(case, None)
    typical, typical_dense = median_run(ours), median_run(theirs)
    names = ("mean_density", "dense_steps_share", "sigmas", "density", "head_density", "engines",
             "fallbacks", "notes", "peak_memory_bytes")  # fmt: skip
    return {
        "preset": preset.name,
        "prompt_index": case.prompt_index,
        "seed": case.request.seed,
        "seconds": typical.stages.total,
        "dense_seconds": typical_dense.stages.total,
        "all_seconds": [each.stages.total for each in ours],
        "all_dense_seconds": [each.stages.total for each in theirs],
        **{name: getattr(run, name) for name in names},
        "attention_error": finished.attention_error(case, preset),
        "step_latent_error": run.latent_error,
        "time": typical.stages.to_json(),
        "dense_time": typical_dense.stages.to_json(),
        "machine": typical.machine,
        "dense_machine": typical_dense.machine,
        "identical": run.frames_sha256 == dense.frames_sha256,
        "scores": scores["values"],
        "curves": scores["curves"],
        "frames": {
            "dense": finished.clips.relative(case, f"{DENSE}.npy"),
            "sparse": finished.clips.relative(case, f"{preset.name}.npy"),
        },
    }


def median_run(runs: list[Run]) -> Run:
    """The run of median time; of an even number, the faster of the two in the middle."""
    return sorted(runs, key=lambda run: run.stages.total)[(len(runs) - 1) // 2]


def _gpu(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def _engines(clips: list[dict[str, Any]]) -> str:
    """The kernel engines that ran, the busiest first."""
    ran: Counter[str] = Counter()
    for clip in clips:
        ran.update(clip["engines"])
    return ", ".join(name for name, _ in ran.most_common()) or "none"


def _video(finished: Finished) -> dict[str, Any]:
    request, run = finished.spec.cases[0].request, finished.run(finished.spec.cases[0], None)
    assert run is not None
    sizes = {name: getattr(request, name) for name in ("frames", "height", "width")}
    tokens = TokenGrid.parse(run.grid).tokens
    return {**sizes, "fps": finished.spec.job.fps, "grid": run.grid, "tokens": tokens}


def _schedule(preset: Preset) -> str:
    """When a preset computes how much."""
    schedule = preset.schedule
    text = f"at full sparsity from {schedule.ramp_until:.0%} of the run on"
    if schedule.warmup:
        text = f"dense in the first {schedule.warmup:.0%} of the run, {text}"
    if schedule.cooldown:
        text += f", dense in the last {schedule.cooldown:.0%}"
    if schedule.dense_layers:
        text += f", the first {schedule.dense_layers} layers always dense"
    return text


def _preset(preset: Preset) -> dict[str, Any]:
    names = ("name", "summary", "source")
    about = {name: getattr(preset, name) for name in names}
    return {**about, "parameters": preset.plain_parameters()}
