"""What ``vidsparse compare`` found, as one record that every report is written from."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from vidsparse.comparison.finished import Finished
from vidsparse.comparison.job import given_beside
from vidsparse.comparison.spec import DENSE, Case
from vidsparse.comparison.store import SHEET
from vidsparse.comparison.summary import summarize_preset
from vidsparse.files import replace_file
from vidsparse.grid import TokenGrid
from vidsparse.metrics.report import words
from vidsparse.metrics.report.results import (
    Clip,
    Facts,
    PresetFacts,
    Results,
    Run,
    Video,
)
from vidsparse.preset import Preset
from vidsparse.versions import versions


def make_results(finished: Finished, command: str) -> Results:
    """Put together everything a report or a program may want, with its provenance."""
    from vidsparse.metrics.catalogue import AS_ASKED, METRICS

    spec = finished.spec
    request, job = spec.cases[0].request, spec.job
    clips = [make_clip(finished, case, preset) for case in spec.cases for preset in spec.presets]
    floor = finished.floor()
    ids = dict.fromkeys(name.partition("@")[0] for clip in clips for name in clip.scores)
    engines = finished.dense_engines()
    why = {METRICS[AS_ASKED].label: spec.not_judged()}
    why["dense attention by engine"] = "" if engines else "the GPU had no memory left for a call"
    return Results(
        schema_version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        model=str(job.checkpoint.source),
        device=job.device,
        gpu=_gpu(job.device),
        dtype=job.dtype,
        stack=job.model.stack.describe(),
        **given_beside(request),
        engine=_engines(clips),
        versions={name: value for name, value in versions().items() if value},
        video=_video(finished),
        steps=request.steps,
        guidance=request.guidance,
        guidance_2=request.guidance_2,
        prompts=list(dict.fromkeys(case.request.prompt for case in spec.cases)),
        seeds=list(dict.fromkeys(case.request.seed for case in spec.cases)),
        schedule_note="; ".join(dict.fromkeys(map(_schedule, spec.presets))),
        noise_floor=floor,
        dense_engines=engines,
        presets=[_preset(preset) for preset in spec.presets],
        metrics={name: METRICS[name] for name in ids if name in METRICS},
        not_measured={label: reason for label, reason in why.items() if reason},
        clips=clips,
        summary=[
            summarize_preset(preset.name, clips, floor, asked=preset.policy.mean_density)
            for preset in spec.presets
        ],
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


def _sheet_label(name: str, results: Results) -> str:
    if name == DENSE:
        return f"dense  {results.clips[0].dense_seconds:.1f} s"
    clip = next(clip for clip in results.clips if clip.preset == name)
    psnr = words.number(clip.scores["psnr"], "dB")
    return (
        f"{name}  {clip.seconds:.1f} s  density {clip.mean_density:.2f}, "
        f"{clip.dense_steps_share:.0%} of the steps dense  {psnr}"
    )


def make_clip(finished: Finished, case: Case, preset: Preset) -> Clip:
    """One preset on one case: what is finished of it beside dense."""
    run, dense = finished.run(case, preset), finished.run(case, None)
    scores = finished.scores(case, preset)
    assert run is not None
    assert dense is not None
    assert scores is not None
    ours, theirs = finished.runs(case, preset), finished.runs(case, None)
    typical, typical_dense = median_run(ours), median_run(theirs)
    return Clip(
        **{name: getattr(run, name) for name in Facts.model_fields},
        preset=preset.name,
        prompt_index=case.prompt_index,
        seed=case.request.seed,
        seconds=typical.stages.total,
        dense_seconds=typical_dense.stages.total,
        all_seconds=[each.stages.total for each in ours],
        all_dense_seconds=[each.stages.total for each in theirs],
        attention_error=finished.attention_error(case, preset),
        step_latent_error=list(run.latent_error),
        time=typical.stages,
        dense_time=typical_dense.stages,
        machine=typical.machine,
        dense_machine=typical_dense.machine,
        identical=run.frames_sha256 == dense.frames_sha256,
        scores=scores["values"],
        curves=scores["curves"],
        frames={
            "dense": finished.clips.relative(case, f"{DENSE}.npy"),
            "sparse": finished.clips.relative(case, f"{preset.name}.npy"),
        },
    )


def median_run(runs: list[Run]) -> Run:
    """The run of median time; of an even number, the faster of the two in the middle."""
    return sorted(runs, key=lambda run: run.stages.total)[(len(runs) - 1) // 2]


def _gpu(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else None


def _engines(clips: list[Clip]) -> str:
    """The kernel engines that ran, the busiest first."""
    ran: Counter[str] = Counter()
    for clip in clips:
        ran.update(clip.engines)
    return ", ".join(name for name, _ in ran.most_common()) or "none"


def _video(finished: Finished) -> Video:
    request, run = finished.spec.cases[0].request, finished.run(finished.spec.cases[0], None)
    assert run is not None
    return Video(
        frames=request.frames,
        height=request.height,
        width=request.width,
        fps=finished.spec.job.fps,
        grid=run.grid,
        tokens=TokenGrid.parse(run.grid).tokens,
    )


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


def _preset(preset: Preset) -> PresetFacts:
    return PresetFacts(
        name=preset.name,
        summary=preset.summary,
        source=preset.source,
        parameters=preset.plain_parameters(),
    )
