"""Where the blocks of a density are shared by need: in a head, or among all heads of a layer."""

from __future__ import annotations

from enum import StrEnum

from torch import Tensor

from vidsparse.head_sharing import all_of, own_of
from vidsparse.kernels.planning.select import Lists, select_budget
from vidsparse.policies.estimator import Inputs


class Scope(StrEnum):
    """Where the blocks of a density are shared by need.

    Attributes:
        HEAD: In each head's map.
        LAYER: Among all heads of a layer.
    """

    HEAD = "head"
    LAYER = "layer"


def spend(
    scores: Tensor,
    always: Tensor,
    inputs: Inputs,
    density: float | Tensor,
    least: int,
    scope: Scope,
) -> Lists:
    """Buy the best blocks for a density, of each head or of a layer; lists of the heads here."""
    if scope is Scope.LAYER:
        return layer_budget(scores, always, inputs, density, least)
    sizes = inputs.blocks.q_sizes, inputs.blocks.kv_sizes
    batch, heads = scores.shape[:2]

    def fold(x: Tensor) -> Tensor:  # heads become entries of the batch
        return x.expand(batch, heads, *x.shape[2:]).flatten(0, 1)[:, None]

    if isinstance(density, Tensor):
        density = density.expand(batch, heads).flatten()
    q_sizes, kv_sizes = (size if size.ndim == 1 else fold(size) for size in sizes)
    always = always if always.ndim == 2 else fold(always)
    count, index = select_budget(
        fold(scores), q_sizes, kv_sizes, density,
        min_count=least, always=always, tokens=inputs.blocks.grid.tokens,
    )  # fmt: skip
    return count.view(batch, heads, -1), index.view(batch, heads, *index.shape[2:])


def layer_budget(
    scores: Tensor, always: Tensor, inputs: Inputs, density: float | Tensor, least: int = 1
) -> Lists:
    """One budget for all heads of a layer; the lists of those that are here."""
    scores, q_sizes, kv_sizes, always = of_the_layer(scores, always, inputs)
    lists = select_budget(
        scores, q_sizes, kv_sizes, density,
        min_count=least, always=always, tokens=inputs.blocks.grid.tokens,
    )  # fmt: skip
    return own_of(inputs.share, lists[0]), own_of(inputs.share, lists[1])


def of_the_layer(
    scores: Tensor, always: Tensor, inputs: Inputs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, sizes of query and of key blocks, and what is always kept, of all heads."""
    share, sizes = inputs.share, (inputs.blocks.q_sizes, inputs.blocks.kv_sizes)
    q_sizes, kv_sizes = (x if x.ndim == 1 else all_of(share, x) for x in sizes)
    always = always if always.ndim == 2 else all_of(share, always)
    return all_of(share, scores), q_sizes, kv_sizes, always
