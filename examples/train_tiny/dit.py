"""Stage 4: the transformer and the text encoder together, by flow matching.

The loss is that of a rectified flow, ``|v - (noise - latent)|^2`` at noise levels shifted as the
scheduler shifts them. Where a sprite is, it counts up to three times at low noise: outlines are few
tokens, and they are what the eye sees. So does what changes of the error from frame to frame, which
is flicker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attention import choose_attention
from .common import (
    PIPELINE,
    Clock,
    Log,
    load_vae,
    load_weights,
    mixed,
    overlay,
    save_curves,
    save_weights,
    say,
    wait,
)
from .facts import FactHeads, load_heads
from .optim import Average, Muon, split
from .pools import Pool, Size

_PADDED = 512  # WanPipeline pads every prompt to so many
_SHIFT = 3.0  # the scheduler's flow_shift
_EARLY = 0.94  # noise level


@dataclass(frozen=True)
class Settings:
    """What the transformer stage is run with.

    Attributes:
        sizes: The sizes of clips by name.
        plan: From which share of the whole training on each size is drawn how often.
        lr: Peak rate of Muon; AdamW, for what is no hidden matrix, has half.
        facts: Weight of reading the captions' facts, see ``facts``.
        flicker: Weight of how the error changes from frame to frame, at low noise.
        no_text: Share of clips without caption, for classifier-free guidance.
        average: Decay of the moving average of weights.
        compiled: Compile the transformer's blocks, on a GPU.
    """

    sizes: Mapping[str, Size]
    plan: tuple[tuple[float, Mapping[str, float]], ...]
    lr: float = 1.5e-3
    facts: float = 0.1
    flicker: float = 0.5
    no_text: float = 0.12
    average: float = 0.999
    compiled: bool = True


FULL = Settings(
    sizes={
        "small": Size(17, 128, 128, batch=96, pool=8_000),
        "default": Size(25, 160, 160, batch=48, pool=2_000),
        "large": Size(49, 256, 256, batch=10, pool=200),
    },
    plan=(
        (0.0, {"small": 0.30, "default": 0.60, "large": 0.10}),
        (0.2, {"default": 0.62, "large": 0.38}),
    ),
)
SMALL = Settings(
    sizes={"a": Size(5, 32, 32, batch=2, pool=4), "b": Size(5, 32, 48, batch=2, pool=2)},
    plan=((0.0, {"a": 1.0}), (0.5, {"b": 1.0})),
)


class Model(nn.Module):
    """The transformer and its text encoder, in float32.

    Args:
        folder: Of a checkpoint; what it has replaces the shipped weights, which None keeps.
        name: Which of its weights: "model", as trained, or "average".
    """

    def __init__(self, folder: Path | None, name: str = "model") -> None:
        super().__init__()
        from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
        from transformers import UMT5EncoderModel

        self.dit: Any = WanTransformer3DModel.from_pretrained(
            PIPELINE / "transformer", torch_dtype=torch.float32
        )
        self.encoder: Any = UMT5EncoderModel.from_pretrained(
            PIPELINE / "text_encoder", dtype=torch.float32
        )
        if folder and (weights := load_weights(folder, name)):
            overlay(self, weights)

    def read(self, ids: Tensor) -> Tensor:
        """Return embeddings of token ids ``(batch, words)``, zero where there is no token."""
        mask = ids > 0
        return self.encoder(ids, mask.long()).last_hidden_state * mask[..., None]

    def forward(self, noisy: Tensor, noise_level: Tensor, text: Tensor) -> Tensor:
        """Return the velocity, as ``WanPipeline`` would call the transformer.

        Args:
            noisy: ``(batch, channels, frames, height, width)``.
            noise_level: In [0, 1], ``(batch,)``.
            text: From ``read``.
        """
        text = nn.functional.pad(text, (0, 0, 0, _PADDED - text.shape[1]))
        return self.dit(noisy, noise_level * 1000, text, return_dict=False)[0]

    def weights(self) -> dict[str, Tensor]:
        """Return every parameter once: the embedding is shared."""
        return dict(self.named_parameters())


def train_dit(
    folder: Path, clock: Clock, settings: Settings, span: tuple[float, float], device: str
) -> None:
    """Train one part of the whole, from the folder's weights or else the shipped ones.

    Args:
        folder: Gets the weights as trained (to go on from) and their moving average (to use).
        clock: Says when to stop.
        settings: For instance ``FULL``.
        span: Which part of the whole training this is: sizes and rates depend on it.
        device: Where to train.
    """
    model = Model(folder).to(device).train()
    vae = load_vae(folder, device)
    if settings.compiled and device == "cuda":
        choose_attention(settings.sizes["default"].tokens)
        model.dit.compile_repeated_blocks(dynamic=False)
    average = Average(list(model.parameters()), settings.average)
    log = Log(clock)
    heads = load_heads(folder, model.encoder.config.d_model).to(device)
    seen = _train(model, heads, vae, average, clock, log, settings, span, device)
    save_weights(folder, "model", model.weights())
    save_weights(folder, "heads", heads.state_dict())
    average.swap()
    save_weights(folder, "average", model.weights())
    save_curves(folder, "dit", rows=log.rows, clips=seen, span=span)
    say(f"dit done at {clock.elapsed():.0f} s; clips of each size: {seen}")


def _train(
    model: Model,
    heads: FactHeads,
    vae: Any,
    average: Average,
    clock: Clock,
    log: Log,
    settings: Settings,
    span: tuple[float, float],
    device: str,
) -> dict[str, int]:
    optimizers = _optimizers(model, heads, settings.lr)
    params, rng = list(model.parameters()), np.random.default_rng(int(1000 * span[0]))
    pools: dict[str, Pool] = {}
    seen: dict[str, int] = {}
    step = 0
    while (share := clock.share(step)) < 1:
        whole = span[0] + share * (span[1] - span[0])
        name = _choose(settings.plan, whole, rng)
        if name not in pools:
            pools[name] = _fill(vae, name, settings, span, clock, device)
        _set_rates(optimizers, settings.lr * min(1, (step + 1) / 150) * min(1, 2 * (1 - whole)))
        loss, jumps, facts = _loss(model, heads, pools[name], settings, device)
        (loss + jumps + settings.facts * facts).backward()
        norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update()
        if name not in seen:
            wait(device)
            say(f"first step of {name} at {clock.elapsed():.0f} s")
            if step == 0:
                clock.begin()
        step += 1
        seen[name] = seen.get(name, 0) + settings.sizes[name].batch
        log.add({name: loss, f"{name} jumps": jumps, "facts": facts, "gradient": norm})
        log.line(step, share=whole, now=clock.steps is not None)
    wait(device)
    return seen


def _fill(
    vae: Any, name: str, settings: Settings, span: tuple[float, float], clock: Clock, device: str
) -> Pool:
    seed = 10_000 * (list(settings.sizes).index(name) + 1) + int(1000 * span[0])
    pool = Pool(vae, settings.sizes[name], seed, device)
    wait(device)
    spread = pool.clips.latents[:64].float().std().item()
    say(f"pool {name}: {len(pool)} clips at {clock.elapsed():.0f} s, deviation {spread:.2f}")
    return pool


def _choose(
    plan: tuple[tuple[float, Mapping[str, float]], ...], share: float, rng: np.random.Generator
) -> str:
    shares = [row for start, row in plan if share >= start][-1]
    weights = np.array(list(shares.values()))
    return str(rng.choice(list(shares), p=weights / weights.sum()))


def _optimizers(model: Model, heads: FactHeads, lr: float) -> list[torch.optim.Optimizer]:
    matrices, rest = split(model.named_parameters())
    adam = torch.optim.AdamW([*rest, *heads.parameters()], lr, betas=(0.9, 0.98), weight_decay=0)
    return [Muon(matrices, lr, weight_decay=0.02), adam]


def _set_rates(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer, factor in zip(optimizers, (1, 0.5), strict=True):
        optimizer.param_groups[0]["lr"] = rate * factor


def _loss(
    model: Model, heads: FactHeads, pool: Pool, settings: Settings, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the flow's loss, that of its error's jumps in time, that of reading the captions."""
    latents, sprites, ids, facts = pool.draw()
    batch = len(latents)
    no_text = torch.zeros_like(ids)
    no_text[:, 0] = 1  # the end of an empty prompt
    without = torch.rand(batch, 1, device=device) < settings.no_text
    ids, facts = torch.where(without, no_text, ids), facts.masked_fill(without, -1)
    level = _noise_levels(batch, device)
    at = level[:, None, None, None, None]
    noise = torch.randn_like(latents)
    noisy = (1 - at) * latents + at * noise
    with mixed(device):
        text = model.read(ids)
        velocity, reading = model(noisy, level, text), heads(text, ids, facts)
    weight = 1 + 2 * (1 - at) * sprites
    error = velocity.float() - (noise - latents)
    loss = (weight * error.square()).sum() / (weight.sum() * latents.shape[1])
    jumps = ((1 - at) * error.diff(dim=2).square()).mean()
    return loss, settings.flicker * jumps, reading


def _noise_levels(batch: int, device: str) -> Tensor:
    """Three in five around the middle, one even, both shifted as the scheduler does; one early.

    Early is where colours are still to be chosen: below ``_EARLY`` a whole background shows through
    the noise, and the transformer need not read the prompt to know it.
    """
    middle = torch.sigmoid(torch.randn(batch, device=device))
    even, which = torch.rand(2, batch, device=device)
    level = torch.where(which < 0.2, even, middle)
    shifted = _SHIFT * level / (1 + (_SHIFT - 1) * level)
    return torch.where(which > 0.8, _EARLY + (1 - _EARLY) * even, shifted)
