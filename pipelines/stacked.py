"""Branches of guidance that are stacked in one batch: what a call holds, beside what is said.

Whoever guides gives every branch the same latents, so a batch is stacked when its halves (or
thirds) are equal. A pipeline that guides also makes calls that are not, such as that of skip-layer
guidance, or those after guidance was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 3  # branches that pipelines of diffusers stack


def copies_in(latents: Tensor | Sequence[Tensor]) -> int:
    """How many equal parts a batch consists of: 2, 3, or 1 where its entries differ.

    Reads the latents back from their device.

    Args:
        latents: ``(batch, ...)``, or a list of the entries.
    """
    batch = len(latents)
    for copies in range(2, MOST + 1):
        if batch % copies == 0 and _repeats(latents, batch // copies):
            return copies
    return 1


def branches_of(batch: int, copies: int, guidance: str, branch: str) -> Sequence[tuple[slice, str]]:
    """The parts of a batch and their branches; others share what the first of them planned.

    Args:
        batch: Its size.
        copies: How many branches are stacked in it.
        guidance: "cond first" or "uncond first", of two.
        branch: Name of the call, where it is all one branch.
    """
    if copies == 1:
        return [(slice(None), branch)]
    size = batch // copies
    parts = [slice(at * size, (at + 1) * size) for at in range(copies)]
    if copies > 2:
        return [(part, f"branch{at}") for at, part in enumerate(parts)]
    cond, uncond = parts if guidance == "cond first" else reversed(parts)
    return [(cond, "cond"), (uncond, "uncond")]


def _repeats(latents: Tensor | Sequence[Tensor], size: int) -> bool:
    """Whether all entries equal those ``size`` before them."""
    if isinstance(latents, Tensor):
        return torch.equal(latents[size:], latents[:-size])
    pairs = zip(latents[size:], latents[:-size], strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
