"""Stage 1: the VAE's decoder, on latents of its frozen encoder.

The latent space stays what it was: the transformer need not learn it anew, and both can be trained
in any order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import fast_vae
from .common import (
    Clock,
    Log,
    load_vae,
    mixed,
    save_curves,
    save_weights,
    say,
    to_uint8,
    wait,
    write_sheet,
)
from .optim import Average, Muon, split
from .render import full_grid, render, window_grid
from .scenes import draw_labels, draw_scenes

Size = tuple[int, int, int]
_SIDES = (96, 128, 160, 160, 192, 256, 320)  # of the frames that windows are cut from


@dataclass(frozen=True)
class Settings:
    """What the decoder stage is run with.

    Attributes:
        size: Frames, height and width of the windows trained on.
        batch: Windows a step.
        pool: Windows rendered and encoded before training.
        measured: Sizes and numbers of clips for the PSNR before and after.
        lr: Peak rate of Muon; AdamW, for what is no matrix, has half.
    """

    size: Size = (21, 128, 128)
    batch: int = 10
    pool: int = 4000
    measured: tuple[tuple[Size, int], ...] = (
        ((25, 160, 160), 32),
        ((49, 256, 256), 12),
        ((25, 320, 512), 4),
    )
    lr: float = 2e-3


SMALL = Settings(size=(5, 32, 32), batch=2, pool=4, measured=(((5, 32, 32), 2),))


def train_decoder(folder: Path, clock: Clock, settings: Settings, device: str) -> None:
    """Train until the clock says so; write ``decoder.safetensors`` and a sheet of clips."""
    vae = load_vae(folder, device)
    before = {_name(size): _psnr(vae, size, n, device) for size, n in settings.measured}
    say("PSNR before:", before)
    named = [(n, p) for n, p in vae.named_parameters() if n.startswith(("decoder", "post_quant"))]
    for _, param in named:
        param.requires_grad_(True)
    average = Average([p for _, p in named], 0.995)
    log = Log(clock)
    pool = _Pool(vae, settings, device)
    say(f"{settings.pool} windows at {clock.elapsed():.0f} s")
    steps = _train(vae, named, pool, average, clock, log, settings, device)
    average.swap()
    vae.requires_grad_(False)
    save_weights(folder, "decoder", dict(named))
    after = {_name(size): _psnr(vae, size, n, device) for size, n in settings.measured}
    say(f"PSNR after {steps} steps:", after)
    save_curves(folder, "decoder", rows=log.rows, psnr_before=before, psnr_after=after)
    _write_pairs(folder / "decoder.png", vae, settings.measured[0][0], device)
    say(f"decoder done at {clock.elapsed():.0f} s")


def _train(
    vae: Any,
    named: list[tuple[str, Any]],
    pool: _Pool,
    average: Average,
    clock: Clock,
    log: Log,
    settings: Settings,
    device: str,
) -> int:
    matrices, rest = split(named)
    optimizers = [Muon(matrices, settings.lr), torch.optim.AdamW(rest, 1, weight_decay=0)]
    params, step = [p for _, p in named], 0
    while (share := clock.share(step)) < 1:
        if step == 3:  # warm
            wait(device)
            clock.begin()
        rate = settings.lr * min(1, (step + 1) / 60) * min(1, (1 - share) / 0.75)
        optimizers[0].param_groups[0]["lr"] = rate
        optimizers[1].param_groups[0]["lr"] = rate / 2
        latents, clips = pool.draw(settings.batch)
        with mixed(device):
            made = fast_vae.decode(vae, latents)
        loss, square = _loss(made.float(), clips)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update()
        step += 1
        log.add({"loss": loss, "psnr": -10 * torch.log10(square.detach() / 4), "gradient": norm})
        log.line(step, share=share, now=clock.steps is not None)
    wait(device)
    return step


class _Pool:
    """Windows of rendered clips and their latents' distributions."""

    def __init__(self, vae: Any, settings: Settings, device: str, chunk: int = 64) -> None:
        rng = np.random.default_rng(11)
        clips, means, deviations = [], [], []
        for start in range(0, settings.pool, chunk):
            batch = min(chunk, settings.pool - start)
            scenes = draw_scenes(rng, draw_labels(rng, batch))
            made = render(scenes, _windows(rng, settings.size, batch, device)).clips
            with torch.no_grad(), mixed(device):
                mean, variance = fast_vae.encode(vae, made)
            clips.append(to_uint8(made))
            means.append(mean.bfloat16())
            deviations.append(torch.exp(0.5 * variance.float().clamp(-12, 6)).bfloat16())
        self.clips, self.means = torch.cat(clips), torch.cat(means)
        self.deviations = torch.cat(deviations)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return latents, more or less noisy as the encoder is unsure, and clips in [-1, 1]."""
        at = torch.randint(len(self.clips), (batch,), device=self.clips.device)
        mean, clips = self.means[at].float(), self.clips[at].float() / 127.5 - 1
        amount = torch.rand(batch, 1, 1, 1, 1, device=mean.device) * self.deviations[at].float()
        return mean + amount * torch.randn_like(mean), clips


def _windows(rng: np.random.Generator, size: Size, batch: int, device: str) -> Any:
    frames, height, width = size
    side = np.maximum(rng.choice(_SIDES, batch), max(height, width))
    top = -np.floor(rng.random(batch) * (side - height + 1))
    left = -np.floor(rng.random(batch) * (side - width + 1))
    side, top, left = (torch.from_numpy(v.astype(np.float32)) for v in (side, top, left))
    return window_grid(frames, height, width, side, top, left, device)


def _loss(made: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute and squared error, that of differences in space and time, and SSIM's."""
    error = made - clips
    square = error.square().mean()
    absolute = torch.sqrt(error.square() + 1e-5).mean()
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    edges = edges + 4 * error.diff(dim=2).abs().mean()  # flicker
    loss = absolute + 5 * square + 0.3 * edges + 0.1 * (1 - _ssim(made, clips))
    return loss, square


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM over boxes of 7 x 7, of values in [-1, 1]."""

    def box(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 7, 1)

    a, b = a.transpose(1, 2).flatten(0, 1), b.transpose(1, 2).flatten(0, 1)
    mean_a, mean_b = box(a), box(b)
    spread = box(a * a) - mean_a**2 + box(b * b) - mean_b**2
    shared = box(a * b) - mean_a * mean_b
    same = (2 * mean_a * mean_b + 0.01) / (mean_a**2 + mean_b**2 + 0.01)
    return (same * (2 * shared + 0.03) / (spread + 0.03)).mean()


@torch.no_grad()
def _rebuild(vae: Any, size: Size, batch: int, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """Return held-out clips and what the VAE makes of them."""
    _, height, width = size
    rng, short = np.random.default_rng(seed), min(height, width)
    scenes = draw_scenes(rng, draw_labels(rng, batch), wide=width / short, tall=height / short)
    clips = render(scenes, full_grid(batch, *size, device)).clips
    with mixed(device):
        made = fast_vae.decode(vae, fast_vae.encode(vae, clips)[0])
    return clips, made.float().clamp(-1, 1)


def _psnr(vae: Any, size: Size, clips: int, device: str) -> float:
    """Return the mean over clips, in dB."""
    values = []
    for seed in range(0, clips, 4):
        wanted, made = _rebuild(vae, size, min(4, clips - seed), 900_000 + seed, device)
        square = ((made - wanted) / 2).square().mean((1, 2, 3, 4))
        values.append(-10 * torch.log10(square))
    return round(torch.cat(values).mean().item(), 2)


def _write_pairs(file: Path, vae: Any, size: Size, device: str) -> None:
    wanted, made = _rebuild(vae, size, 2, 800_000, device)
    write_sheet(file, to_uint8(torch.stack([wanted, made], 1).flatten(0, 1)), 4)


def _name(size: Size) -> str:
    return "x".join(map(str, size))
