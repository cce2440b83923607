"""Stage 2: the judge, a classifier of what a clip shows.

Half of its clips went through the VAE with noise on their latents, and all are blurred, brightened
and made noisy by chance: it shall read shapes and motions, not the renderer's exact pixels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidsparse.metrics.judge import FRAMES, JudgeNet, judge_input

from . import fast_vae
from .common import Clock, Log, load_vae, mixed, save_curves, save_weights, say, to_uint8, wait
from .render import full_grid, render
from .scenes import NAMES, draw_labels, draw_scenes

Size = tuple[int, int, int]
PARTS = {**NAMES, "sprites": ("1", "2", "3")}
_OF_ONE_SPRITE = ("shape", "colour", "motion")


@dataclass(frozen=True)
class Settings:
    """What the judge stage is run with.

    Attributes:
        sizes: Sizes of the clips and how many of each.
        held_out: Of them, how many are kept for the test, in the same shares.
        chunk: Pixels rendered at once, in clips of 25 x 160 x 160.
        batch: Clips a step.
        lr: Peak rate of AdamW.
    """

    sizes: tuple[tuple[Size, int], ...] = (
        ((25, 160, 160), 8_000),
        ((17, 128, 128), 10_000),
        ((49, 256, 256), 800),
    )
    held_out: float = 0.08
    chunk: int = 64
    batch: int = 256
    lr: float = 2e-3


SMALL = Settings(sizes=(((9, 32, 32), 8),), held_out=0.5, chunk=1, batch=2)


def train_judge(folder: Path, clock: Clock, settings: Settings, device: str) -> None:
    """Train until the clock says so; write ``judge.safetensors``, which names its choices."""
    rng = np.random.default_rng(23)
    vae = load_vae(folder, device)
    drawn = [_draw(rng, vae, size, n, settings, device) for size, n in settings.sizes]
    kept = [max(1, int(n * (1 - settings.held_out))) for _, n in settings.sizes]
    train = _joined([_part(d, slice(0, k)) for d, k in zip(drawn, kept, strict=True)])
    test = _joined([_part(d, slice(k, None)) for d, k in zip(drawn, kept, strict=True)])
    say(f"{len(train['clips'])} clips to train on at {clock.elapsed():.0f} s")
    net, log = JudgeNet(PARTS).to(device), Log(clock)
    _train(net, train, clock, log, settings, device)
    found = _test(net, test, device)
    say("held-out accuracy:", found)
    names = json.dumps(net.names)
    save_weights(folder, "judge", net.state_dict(), names=names)
    save_curves(folder, "judge", rows=log.rows, held_out=found, tested=len(test["clips"]))
    say(f"judge done at {clock.elapsed():.0f} s")


def _train(
    net: JudgeNet, data: dict[str, Tensor], clock: Clock, log: Log, settings: Settings, device: str
) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), settings.lr, weight_decay=0.02)
    step = 0
    while (share := clock.share(step)) < 1:
        if step == 3:
            wait(device)
            clock.begin()
        rate = settings.lr * min(1, (step + 1) / 100) * min(1, (1 - share) / 0.7)
        optimizer.param_groups[0]["lr"] = rate
        at = torch.randint(len(data["clips"]), (settings.batch,), device=device)
        batch = {name: values[at] for name, values in data.items()}
        clips = _disturbed(batch.pop("clips").float() / 255)
        with mixed(device):
            logits = net(clips)
        losses = {
            part: _cross_entropy(values.float(), batch, part) for part, values in logits.items()
        }
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        log.add(losses)
        log.line(step, share=share, now=clock.steps is not None)
    wait(device)


def _cross_entropy(logits: Tensor, batch: dict[str, Tensor], part: str) -> Tensor:
    return F.cross_entropy(logits, batch[part], ignore_index=-1, reduction="sum") / len(logits)


@torch.no_grad()
def _test(net: JudgeNet, data: dict[str, Tensor], device: str) -> dict[str, float]:
    """Return the accuracy of each part on clips that are not disturbed."""
    right: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    for start in range(0, len(data["clips"]), 256):
        batch = {name: values[start : start + 256] for name, values in data.items()}
        with mixed(device):
            logits = net(batch["clips"].float() / 255)
        for part, values in logits.items():
            asked = batch[part] >= 0
            right[part].append((values.argmax(1) == batch[part])[asked])
    return {part: round(torch.cat(v).float().mean().item(), 4) for part, v in right.items()}


def _draw(
    rng: np.random.Generator, vae: Any, size: Size, clips: int, settings: Settings, device: str
) -> dict[str, Tensor]:
    """Return uint8 ``clips`` as the judge sees them, and the label of each part."""
    frames, height, width = size
    chunk = max(2, settings.chunk * 25 * 160 * 160 // (frames * height * width))
    made, labels = [], []
    for start in range(0, clips, chunk):
        batch = min(chunk, clips - start)
        drawn = draw_labels(rng, batch)
        drawn["sprites"] = np.where(rng.random(batch) < 0.6, 1, drawn["sprites"])
        shown = render(draw_scenes(rng, drawn), full_grid(batch, *size, device)).clips
        half = batch // 2
        shown[:half] = _through(vae, shown[:half], device)
        made.append(to_uint8(judge_input((shown + 1) / 2) * 2 - 1))
        labels.append(_labels(drawn))
    whole = {part: np.concatenate([one[part] for one in labels]) for part in PARTS}
    tensors = {part: torch.from_numpy(v).long().to(device) for part, v in whole.items()}
    return tensors | {"clips": torch.cat(made)}


@torch.no_grad()
def _through(vae: Any, clips: Tensor, device: str) -> Tensor:
    """Return what the VAE makes of clips whose latents are up to a third noise."""
    with mixed(device):
        latents = fast_vae.encode(vae, clips)[0].float()
        amount = 0.35 * torch.rand(len(clips), 1, 1, 1, 1, device=device) ** 2
        noise = torch.randn_like(latents) * fast_vae.latent_scale(vae, device)[1]
        return fast_vae.decode(vae, latents + amount * noise).float().clamp(-1, 1)


def _labels(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return one label for each part, -1 where a clip does not answer the question."""
    one = (drawn["sprites"] == 1) & (drawn["view"] == 0)
    labels = {part: np.where(one, drawn[part][:, 0], -1) for part in _OF_ONE_SPRITE}
    plain, mixed_ground = drawn["pattern"] == 0, drawn["ground2"] >= 0
    return labels | {
        "tone": np.where(mixed_ground, -1, drawn["tone"]),
        "ground": np.where(mixed_ground, -1, drawn["ground"]),
        "pattern": drawn["pattern"],
        "camera": np.where(plain | (drawn["view"] > 0), -1, drawn["camera"]),
        "sprites": drawn["sprites"] - 1,
    }


def _disturbed(clips: Tensor) -> Tensor:
    """Blur some of the clips, change the brightness and contrast of all, add noise."""
    batch, device = len(clips), clips.device

    def some(scale: float) -> Tensor:
        return scale * (2 * torch.rand(batch, 1, 1, 1, 1, device=device) - 1)

    flat = clips.transpose(1, 2).flatten(0, 1)
    soft = F.avg_pool2d(F.pad(flat, (1, 1, 1, 1), mode="replicate"), 3, 1)
    soft = soft.unflatten(0, (batch, FRAMES)).transpose(1, 2)
    clips = torch.lerp(clips, soft, torch.rand(batch, 1, 1, 1, 1, device=device))
    clips = 0.5 + (clips - 0.5) * (1 + some(0.08)) + some(0.04)
    noise = torch.randn_like(clips) * some(0.03)
    return (clips + noise).clamp(0, 1)


def _part(data: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: values[rows] for name, values in data.items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
