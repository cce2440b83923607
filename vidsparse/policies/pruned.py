"""Orders in which some tokens attend for all: those come first, and the others copy an output."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.policies.orders import Arranged, Order, in_order

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


class PruningOrder(Order):
    """What is kept attends to what is kept; every other token takes the output of a kept one.

    As many are kept as the density pays for, its root of all tokens. Text stays and is exact. A
    query that is no number counts as zero, and its own output is no number.
    """

    __slots__ = ()

    static: ClassVar[bool] = False
    prunes: ClassVar[bool] = True

    def refuses(self, policy: Policy) -> str | None:
        """What is kept attends to what is kept, and nothing else does."""
        if not policy.estimator.of_pruned or not policy.selector.takes_masks:
            return (
                "an order that keeps some tokens for all takes estimator=kept, selector=threshold"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept(Estimator):
    """Pairs of what an order keeps: one; all others: zero."""

    of_pruned: ClassVar[bool] = True
    measure: ClassVar[Measure] = Measure.RANK

    def refuses(self, policy: Policy) -> str | None:
        """The order says what is kept."""
        if not policy.order.prunes:
            return "estimator=kept takes an order that keeps some tokens for all, such as coreset"
        return None

    def estimate(self, inputs: Inputs) -> Estimate:
        """Score blocks by whether both hold what is kept, ``(batch, heads, N, N)``."""
        blocks, q = inputs.blocks, inputs.qkv[0]
        assert inputs.kept is not None
        held = torch.arange(blocks.number, device=blocks.device) * blocks.block < inputs.kept
        scores = (held[:, None] & held).float()
        scores = scores.expand(*q.shape[:2], -1, -1)
        return Estimate(scores=scores, threshold=0.5, spent=True)


def wanted(inputs: Inputs) -> float:
    """Tokens to keep, of those of the video: the root of the density on the way."""
    assert inputs.density is not None
    keep = math.sqrt(1.0 - inputs.way * (1.0 - inputs.density))
    return keep * inputs.blocks.grid.video_tokens


def kept_first(inputs: Inputs, video: Tensor, source: Tensor, kept: int) -> Arranged:
    """A call with what is kept before the rest.

    Args:
        inputs: In raster order.
        video: Which video token comes to each place, int64 ``(B|1, H|1, video_tokens)``.
        source: From which of those places each place takes its output, int64, likewise.
        kept: How many come first that are kept.
    """
    grid, q = inputs.blocks.grid, inputs.qkv[0]
    sizes = [grid.prefix, grid.video_tokens, grid.suffix]
    text = torch.arange(grid.tokens, device=q.device)

    def with_text(places: Tensor) -> Tensor:
        before, _, after = text.expand(*places.shape[:2], -1).split(sizes, dim=-1)
        return torch.cat([before, places + grid.prefix, after], dim=-1)

    arranged = in_order(inputs, with_text(video).to(torch.int32))
    made = dataclasses.replace(arranged.inputs, kept=grid.prefix + kept)
    if kept < grid.video_tokens:
        q = made.qkv[0]
        takes = with_text(source).masked_fill(~q.isfinite().all(dim=-1), -1)
        made = dataclasses.replace(made, q=only_finite(q), copies=takes)
    return Arranged(made, arranged.q_order, arranged.kv_order)
