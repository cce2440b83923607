"""Stage 3: the text encoder by itself, on captions, until tokens say what belongs to what.

An encoder starts out almost deaf to the order of words: what tells it are its position biases, a
few numbers that learn slowly, so they have a rate of their own. Its embeddings are held near those
that the transformer knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from vidsparse.pipelines.running.prompts import TOKENIZER

from .common import Clock, Log, save_curves, save_weights, say
from .dit import Model
from .facts import FactHeads, facts_of, load_heads
from .optim import Muon, split
from .pools import encode_captions
from .scenes import draw_labels, write_captions

_RENEWED_AFTER = 600  # steps


@dataclass(frozen=True)
class Settings:
    """What the text stage is run with.

    Attributes:
        batch: Captions a step.
        pool: Captions that are ready at any time.
        lr: Peak rate of Muon; AdamW, for embeddings, has half.
        bias_lr: That of the position biases.
        heads_lr: That of the heads that read.
        hold: Weight of how far the embeddings go from what they were.
    """

    batch: int = 512
    pool: int = 30_000
    lr: float = 1.5e-3
    bias_lr: float = 2e-2
    heads_lr: float = 5e-3
    hold: float = 0.3


SMALL = Settings(batch=4, pool=8)


def train_text(folder: Path, clock: Clock, settings: Settings, device: str) -> None:
    """Train until the clock says so; write ``model-*`` and the heads, ``heads.safetensors``."""
    model, before = Model(folder).to(device), Model(folder).to(device)
    heads = load_heads(folder, model.encoder.config.d_model).to(device)
    log, rng = Log(clock), np.random.default_rng(31)
    optimizers = _optimizers(model, heads, settings)
    pool, step = _captions(rng, settings.pool, device), 0
    clock.begin()
    while (share := clock.share(step)) < 1:
        if step % _RENEWED_AFTER == _RENEWED_AFTER - 1:
            pool = _captions(rng, settings.pool, device)
        rate = min(1, (step + 1) / 50) * min(1, 2 * (1 - share))
        at = torch.randint(len(pool[0]), (settings.batch,), device=device)
        reading, moved = _loss(model, before, heads, pool[0][at], pool[1][at])
        (reading + settings.hold * moved).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        log.add({"facts": reading, "moved": moved})
        log.line(step, share=share, now=clock.steps is not None)
    log.line(step, share=1, now=True)
    save_weights(folder, "model", model.weights())
    save_weights(folder, "heads", heads.state_dict())
    save_curves(folder, "text", rows=log.rows, captions=step * settings.batch)
    say(f"text done at {clock.elapsed():.0f} s")


def _loss(
    model: Model, before: Model, heads: FactHeads, ids: Tensor, facts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of reading, and how far embeddings have moved as a share of their square."""
    text = model.read(ids)
    with torch.no_grad():
        known = before.read(ids)
    moved = (text - known).square().sum() / known.square().sum()
    return heads(text, ids, facts), moved


def _optimizers(model: Model, heads: FactHeads, settings: Settings) -> list[torch.optim.Optimizer]:
    named = [(f"encoder.{name}", p) for name, p in model.encoder.named_parameters()]
    biases = [p for name, p in named if "relative_attention_bias" in name]
    matrices, rest = split((n, p) for n, p in named if "relative_attention_bias" not in n)
    groups: list[dict[str, Any]] = [
        {"params": rest, "peak": settings.lr / 2},
        {"params": biases, "peak": settings.bias_lr},
        {"params": list(heads.parameters()), "peak": settings.heads_lr},
    ]
    muon = Muon(matrices, settings.lr)
    muon.param_groups[0]["peak"] = settings.lr
    return [muon, torch.optim.AdamW(groups, 1, betas=(0.9, 0.98), weight_decay=0)]


def _captions(rng: np.random.Generator, number: int, device: str) -> tuple[Tensor, Tensor]:
    labels = draw_labels(rng, number)
    ids = encode_captions(Tokenizer.from_file(str(TOKENIZER)), write_captions(rng, labels))
    width = int((ids > 0).sum(1).max())
    return ids[:, :width].to(device), facts_of(labels).to(device)
