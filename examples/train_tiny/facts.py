"""Teaching the text encoder what belongs to what, beside the flow's loss.

The trial's model drew the right two colours and swapped them. Here linear heads, thrown away after
training, read from a prompt's tokens, most of all the last, which colour, shape and motion each
sprite has and what the background is: so they must say it, and the transformer finds it there.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .common import load_weights
from .scenes import NAMES, Labels

_SPRITES = 2  # as many as are read
_OF_SPRITES = ("shape", "colour", "motion")
_OF_GROUND = ("tone", "ground", "pattern", "camera")
_SIZES = [len(NAMES[p]) for p in _OF_SPRITES] * _SPRITES + [len(NAMES[p]) for p in _OF_GROUND]


def facts_of(labels: Labels) -> Tensor:
    """Return what is to be read, int64 ``(batch, facts)``, -1 where there is no such sprite."""
    columns = [
        np.where(labels["sprites"] > k, labels[part][:, k], -1)
        for k in range(_SPRITES)
        for part in _OF_SPRITES
    ]
    columns += [labels[part] for part in _OF_GROUND]
    return torch.from_numpy(np.stack(columns, 1)).long()


class FactHeads(nn.Module):
    """One linear head for each fact.

    Args:
        width: Of the text encoder.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = nn.Linear(width, sum(_SIZES))

    def forward(self, text: Tensor, ids: Tensor, facts: Tensor) -> Tensor:
        """Return the mean cross-entropy: half of it the last token's, half all tokens'.

        Args:
            text: Embeddings, ``(batch, words, width)``.
            ids: Tokens, ``(batch, words)``, zero behind the last.
            facts: From ``facts_of``; a row of -1 for a prompt that says nothing.
        """
        said = (ids > 0).float()
        last = said * (said.cumsum(1) == said.sum(1, keepdim=True))
        weight = 0.5 * last + 0.5 * said / said.sum(1, keepdim=True)
        logits = self.heads(text).float().split(_SIZES, 2)
        losses = [
            (weight * _cross_entropy(logit, fact)).sum()
            for logit, fact in zip(logits, facts.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum() / (facts >= 0).sum().clamp(min=1)


def load_heads(folder: Path, width: int) -> FactHeads:
    """Return the checkpoint's heads, or new ones where it has none."""
    heads = FactHeads(width)
    if weights := load_weights(folder, "heads"):
        heads.load_state_dict(weights)
    return heads


def _cross_entropy(logits: Tensor, fact: Tensor) -> Tensor:
    """Return that of each token, ``(batch, words)``, zero where the fact is -1."""
    each = fact[:, None].expand(logits.shape[:2])
    return F.cross_entropy(logits.transpose(1, 2), each, ignore_index=-1, reduction="none")
