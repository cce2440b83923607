"""Latents of rendered clips, encoded ahead and renewed bit by bit: one pool for each size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from vidsparse.pipelines.running.prompts import TOKENIZER

from . import fast_vae
from .common import mixed
from .facts import facts_of
from .render import full_grid, render
from .scenes import draw_labels, draw_scenes, write_captions

WORDS = 64  # tokens kept of a caption: the longest has about 50
_PATTERNS = (0.12, 0.24, 0.16, 0.12, 0.22, 0.14)  # more stripes and waves, which are the hardest
_RENEWED = 10  # one clip is made anew for so many that are drawn
_CHUNK = 64 * 25 * 160 * 160  # pixels rendered and encoded at once


@dataclass(frozen=True)
class Size:
    """A size of clips to train on.

    Attributes:
        frames: 4k + 1.
        height: In pixels, a multiple of 16.
        width: The same.
        batch: Clips a step.
        pool: Clips that are ready at any time.
    """

    frames: int
    height: int
    width: int
    batch: int
    pool: int

    @property
    def tokens(self) -> int:
        return ((self.frames - 1) // 4 + 1) * (self.height // 8) * (self.width // 8)


class Batch(NamedTuple):
    """Some clips of a pool.

    Attributes:
        latents: ``(batch, channels, frames, height, width)``.
        sprites: 1 where a latent sees a sprite, ``(batch, 1, frames, height, width)``.
        ids: Tokens of the captions, ``(batch, WORDS)``.
        facts: What the captions say, from ``facts_of``.
    """

    latents: Tensor
    sprites: Tensor
    ids: Tensor
    facts: Tensor


class Pool:
    """Latents, captions and where the sprites are, of one size.

    Args:
        vae: Encodes.
        size: Of the clips.
        seed: Of the scenes.
        device: Where it lives.
    """

    def __init__(self, vae: Any, size: Size, seed: int, device: str) -> None:
        self.vae, self.size, self.device = vae, size, device
        self.rng = np.random.default_rng(seed)
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER))
        per_clip = size.frames * size.height * size.width
        self.chunk = min(max(1, _CHUNK // per_clip), size.pool)
        chunks = -(-size.pool // self.chunk)
        made = [self._make(self.chunk) for _ in range(chunks)]
        self.clips = Batch(*(torch.cat(part) for part in zip(*made, strict=True)))
        self.next, self.drawn = 0, 0

    def draw(self) -> Batch:
        """Return a batch; now and then renew a part of the pool."""
        self.drawn += self.size.batch
        if self.drawn >= _RENEWED * self.chunk:
            self.drawn = 0
            self._renew()
        at = torch.randint(len(self), (self.size.batch,), device=self.device)
        latents, sprites, ids, facts = (part[at] for part in self.clips)
        return Batch(latents.float(), sprites.float(), ids, facts)

    def __len__(self) -> int:
        return len(self.clips.ids)

    def _renew(self) -> None:
        rows = slice(self.next, self.next + self.chunk)
        for old, new in zip(self.clips, self._make(self.chunk), strict=True):
            old[rows] = new
        self.next = rows.stop % len(self)

    @torch.no_grad()
    def _make(self, clips: int) -> Batch:
        size, short = self.size, min(self.size.height, self.size.width)
        labels = draw_labels(self.rng, clips, patterns=_PATTERNS)
        scenes = draw_scenes(self.rng, labels, wide=size.width / short, tall=size.height / short)
        made = render(scenes, full_grid(clips, size.frames, size.height, size.width, self.device))
        with mixed(self.device):
            latents = fast_vae.encode(self.vae, made.clips)[0].float()
        mean, deviation = fast_vae.latent_scale(self.vae, self.device)
        ids = encode_captions(self.tokenizer, write_captions(self.rng, labels))
        latents = ((latents - mean) / deviation).bfloat16()
        sprites = sprite_places(made.coverage).bfloat16()
        return Batch(latents, sprites, ids.to(self.device), facts_of(labels).to(self.device))


def encode_captions(tokenizer: Tokenizer, captions: list[str]) -> Tensor:
    """Return token ids, int64 ``(batch, WORDS)``, zero behind the last."""
    ids = torch.zeros(len(captions), WORDS, dtype=torch.int64)
    for row, encoding in zip(ids, tokenizer.encode_batch(captions), strict=True):
        row[: len(encoding.ids)] = torch.tensor(encoding.ids)
    return ids


def sprite_places(coverage: Tensor) -> Tensor:
    """Return 1 where a latent sees a sprite or its edge, else 0.

    Args:
        coverage: ``(batch, frames, height, width)``, how much of a pixel is sprite.

    Returns:
        ``(batch, 1, (frames - 1) / 4 + 1, height / 8, width / 8)``.
    """
    cells = F.max_pool2d(coverage, 8)
    later = cells[:, 1:].unflatten(1, (-1, 4)).amax(2) if cells.shape[1] > 1 else cells[:, 1:]
    return (torch.cat([cells[:, :1], later], 1)[:, None] > 0.02).float()
