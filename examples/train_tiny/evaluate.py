"""Stage 5: clips for random prompts, and what the judge sees in them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidsparse.metrics.judge import Judge, judge_input

from . import fast_vae
from .common import PIPELINE, Clock, load_vae, mixed, say, to_uint8, write_sheet
from .dit import Model
from .render import full_grid, render
from .scenes import NAMES, Labels, draw_labels, draw_scenes, plain_prompt

Size = tuple[int, int, int]
Answers = dict[str, list[str]]
_BACKGROUND = ("tone", "ground", "pattern")


@dataclass(frozen=True)
class Settings:
    """What is generated.

    Attributes:
        sizes: Frames, height and width; how many clips; how many at once.
        steps: Denoising steps.
        guidance: Classifier-free guidance.
        shown: Clips on a contact sheet.
    """

    sizes: tuple[tuple[Size, int, int], ...] = (
        ((25, 160, 160), 200, 25),
        ((49, 256, 256), 200, 10),
    )
    steps: int = 20
    guidance: float = 4.0
    shown: int = 16


SMALL = Settings(sizes=(((5, 32, 32), 2, 2),), steps=2, shown=2)


def evaluate(
    folder: Path, clock: Clock, settings: Settings, device: str, *, shipped: bool = False
) -> None:
    """Write ``evaluate.json`` and a sheet of each size; say the scores with 95 % intervals.

    Args:
        folder: Of the checkpoint: its judge and, unless ``shipped``, its weights.
        clock: At a size, no batch begins once its time is over.
        settings: What is generated.
        device: Where.
        shipped: Evaluate the weights that ship instead.
    """
    pipe, judge = (
        _pipeline(None if shipped else folder, device),
        Judge(folder / "judge.safetensors"),
    )
    judge.net.to(device)
    results, tag = {}, "shipped-" if shipped else ""
    for size, clips, batch in settings.sizes:
        name = "x".join(map(str, size))
        results[name] = _evaluate(pipe, judge, size, clips, batch, clock, settings, device)
        shown = results[name].pop("shown")
        if len(shown):
            write_sheet(folder / f"{tag}{name}.png", shown)
            say(name, json.dumps(results[name]["scores"]))
            say(f"{name} done at {clock.elapsed():.0f} s")
    (folder / f"{tag}evaluate.json").write_text(json.dumps(results))


def _pipeline(folder: Path | None, device: str) -> Any:
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline

    model = Model(folder, "average")
    pipe: Any = WanPipeline.from_pretrained(
        PIPELINE, transformer=model.dit, text_encoder=model.encoder, vae=load_vae(folder, device)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _evaluate(
    pipe: Any,
    judge: Judge,
    size: Size,
    clips: int,
    batch: int,
    clock: Clock,
    settings: Settings,
    device: str,
) -> dict[str, Any]:
    rng = np.random.default_rng(77)
    labels = _asked(rng, clips)
    prompts = [plain_prompt(labels, i) for i in range(clips)]
    seen: Answers = {part: [] for part in judge.net.names}
    rendered: Answers = {part: [] for part in judge.net.names}
    flicker: dict[str, list[float]] = {"generated": [], "rendered": [], "rebuilt": []}
    shown: list[Tensor] = []
    for start in range(0, clips, batch):
        if clock.share(0) >= 1:
            break
        rows = slice(start, min(start + batch, clips))
        made = _generate(pipe, prompts[rows], size, settings, start, device)
        true = _rendered(rng, {name: v[rows] for name, v in labels.items()}, size, device)
        for some, answers, kind in ((made, seen, "generated"), (true, rendered, "rendered")):
            _recognise(judge, some, answers)
            flicker[kind] += _flicker(some)
        flicker["rebuilt"] += _flicker(_rebuilt(pipe.vae, true))
        shown += list(made.cpu())
    done = len(seen["shape"])
    wanted = {part: [_name(labels, part, i) for i in range(done)] for part in NAMES}
    return {
        "scores": {
            "clips": done,
            "generated": _scores(seen, wanted),
            "rendered": _scores(rendered, wanted),
            "flicker": {kind: round(float(np.mean(v or [0])), 3) for kind, v in flicker.items()},
            "flicker over renders'": _ratio(flicker["generated"], flicker["rendered"]),
        },
        "prompts": prompts[:done],
        "seen": seen,
        "shown": torch.stack(shown[: settings.shown]) if shown else shown,
    }


def _name(labels: Labels, part: str, clip: int) -> str:
    return NAMES[part][int(np.ravel(labels[part][clip])[0])]


def _asked(rng: np.random.Generator, clips: int) -> Labels:
    """Return labels of one sprite of middling size, one colour of ground, a camera on its stand."""
    labels = draw_labels(rng, clips, sprites=1)
    patterned = labels["pattern"] > 0
    camera = np.where(patterned, rng.integers(0, len(NAMES["camera"]), clips), 0)
    none = np.zeros(clips, int)
    return labels | {
        "camera": np.where(rng.random(clips) < 0.5, camera, 0),
        "view": none,
        "ground2": none - 1,
        "size": np.ones_like(labels["size"]),
    }


@torch.no_grad()
def _generate(
    pipe: Any, prompts: list[str], size: Size, settings: Settings, seed: int, device: str
) -> Tensor:
    """Return uint8 ``(batch, 3, frames, height, width)``.

    The VAE decodes whole clips in float32.
    """
    frames, height, width = size
    with mixed(device):
        latents = pipe(
            prompts,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator(device).manual_seed(seed),
            output_type="latent",
        ).frames
    mean, deviation = fast_vae.latent_scale(pipe.vae, device)
    return to_uint8(fast_vae.decode(pipe.vae, latents.float() * deviation + mean))


def _rendered(rng: np.random.Generator, labels: Labels, size: Size, device: str) -> Tensor:
    scenes = draw_scenes(rng, labels)
    return to_uint8(render(scenes, full_grid(len(scenes), *size, device)).clips)


@torch.no_grad()
def _rebuilt(vae: Any, clips: Tensor) -> Tensor:
    """Return uint8 clips after the VAE alone: the part of the flicker that is its own."""
    mean = fast_vae.encode(vae, clips.float() / 127.5 - 1)[0]
    return to_uint8(fast_vae.decode(vae, mean))


def _flicker(clips: Tensor) -> list[float]:
    """Return of each clip the mean change of a pixel from frame to frame, in grey levels."""
    return clips.float().diff(dim=2).abs().mean((1, 2, 3, 4)).tolist()


def _ratio(made: list[float], rendered: list[float], rounds: int = 2000) -> list[float]:
    """Return the ratio of means and its 95 % interval, by drawing prompts again."""
    pairs = np.array([made, rendered]).T
    if not len(pairs):
        return [0.0, 0.0, 0.0]
    rows = np.random.default_rng(0).integers(0, len(pairs), (rounds, len(pairs)))
    means = pairs[rows].mean(1)
    low, high = np.quantile(means[:, 0] / means[:, 1], (0.025, 0.975))
    whole = pairs.mean(0)
    return [round(float(v), 3) for v in (whole[0] / whole[1], low, high)]


@torch.no_grad()
def _recognise(judge: Judge, clips: Tensor, answers: Answers) -> None:
    for part, logits in judge.net(judge_input(clips.float() / 255)).items():
        answers[part] += [judge.net.names[part][i] for i in logits.argmax(1).tolist()]


def _scores(seen: Answers, wanted: Answers) -> dict[str, list[float]]:
    """Return share of clips and Wilson's 95 % interval, for each part and for all of some."""
    right = {p: np.array(seen[p]) == np.array(wanted[p]) for p in wanted}
    right["background"] = np.all([right[part] for part in _BACKGROUND], 0)
    right["all"] = np.all([right[part] for part in ("shape", "colour", "background", "motion")], 0)
    right["camera"] = right["camera"][np.array(wanted["pattern"]) != "plain"]
    right["one sprite"] = np.array(seen["sprites"]) == "1"
    return {part: _wilson(int(v.sum()), len(v)) for part, v in right.items()}


def _wilson(right: int, clips: int, z: float = 1.96) -> list[float]:
    if not clips:
        return [0.0, 0.0, 1.0]
    share = right / clips
    middle = (share + z * z / (2 * clips)) / (1 + z * z / clips)
    half = z * math.sqrt(share * (1 - share) / clips + (z / (2 * clips)) ** 2) / (1 + z * z / clips)
    return [round(v, 3) for v in (share, middle - half, middle + half)]
