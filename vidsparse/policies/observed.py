"""Tile skipping from what the kernel itself saw: LiteAttention, arXiv 2511.11062."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from vidsparse.calibrated import Calibrated
from vidsparse.errors import BadInputError
from vidsparse.head_sharing import own_of
from vidsparse.kernels.engines.observe import Observed as Seen
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.planning.bits import pack_bits, unpack_bits
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy

TILES = "tiles"


class Sweep(StrEnum):
    """In which order a row of blocks is visited.

    Attributes:
        ROUND: From the query block itself on, and round: queries mostly score high near
            themselves, so few blocks pass for want of a maximum.
        ALTERNATE: From the last block to the first, the other way at every other step.
    """

    ROUND = "round"
    ALTERNATE = "alternate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Estimator):
    """Visit the blocks that mattered when they were last visited; all of them at first.

    A visited block stays if, in any row, one of its scores came within the threshold of the largest
    score so far. Alone this only ever drops blocks: ``rotate`` is the way back, since a block that
    is always kept for one step is seen again.

    Attributes:
        margin: In log2 units: -10 is careful, 0 keeps only blocks that raise a row's maximum.
        sweep: In which order blocks are visited.
        must_keep: Positions of tokens whose keys every query sees, such as ``0-1559,4680-6239``;
            the blocks that hold them are never dropped.
        margins: A calibration file with a margin for each layer, in parts of the run; layers that
            it does not name take ``margin``.
    """

    margin: float = -6.0
    sweep: Sweep = Sweep.ROUND
    must_keep: str = ""
    margins: Calibrated | None = None

    needs_data: ClassVar[bool] = True
    per_layer: ClassVar[bool] = False
    has_mask: ClassVar[bool] = True
    observes: ClassVar[bool] = True
    keeps_over_steps: ClassVar[str | None] = "the blocks that mattered"
    in_place_of_density: ClassVar[str | None] = "margin"
    measure: ClassVar[Measure] = Measure.RANK

    def __post_init__(self) -> None:
        if not math.isfinite(self.margin):
            raise BadInputError(f"margin must be a number, got {self.margin}")
        read_ranges(self.must_keep)
        if self.margins is not None:
            self.margins.check("margins")

    def refuses(self, policy: Policy) -> str | None:
        """The kernel that reports what it saw takes equal blocks and nothing beside them."""
        if not policy.selector.takes_masks:
            return "what was observed has a threshold: leave selector=threshold"
        if policy.compensation.compensates or (policy.block or 0) > 128:
            return "observing takes blocks of at most 128 tokens and no compensation"
        if policy.alternatives is not None:
            return "what was observed is of one order: heads cannot choose among alternatives"
        return None

    def state_bytes(self, blocks: int) -> int:
        """A bit for each block."""
        return blocks * -(-blocks // 8)

    def estimate(self, inputs: Inputs) -> Estimate:
        """One for blocks to visit, zero for others, ``(batch, heads, M, N)``."""
        number = inputs.blocks.number
        tiles = inputs.state.get(TILES)
        if tiles is None:
            scores = torch.ones(
                *inputs.qkv[0].shape[:2], number, number, device=inputs.blocks.device
            )
        else:
            scores = unpack_bits(tiles, number).float()
        for first, last in read_ranges(self.must_keep):
            scores[..., first // inputs.blocks.block : last // inputs.blocks.block + 1] = 1.0
        return Estimate(scores=scores, threshold=0.5)

    def visits(self, plan: BlockPlan, step: int = 0) -> BlockPlan:
        """The plan with each list as ``sweep`` says: turned round or back, or as it is."""
        index, count = plan.kv_index, plan.kv_count[..., None]
        at = torch.arange(index.shape[-1], device=index.device)
        if self.sweep is Sweep.ALTERNATE:
            back = (count - 1 - at).clamp(min=0)
            return plan if step % 2 else dataclasses.replace(plan, kv_index=index.gather(-1, back))
        row = torch.arange(index.shape[-2], device=index.device)[:, None]
        before = ((index < row) & (at < count)).sum(dim=-1, keepdim=True)
        turned = index.gather(-1, (at + before) % count.clamp(min=1))
        return dataclasses.replace(plan, kv_index=turned)

    def _margins(self, inputs: Inputs) -> float | Tensor:
        """Of this layer, or of each of its heads, ``(1, heads, 1, 1)``."""
        if self.margins is None:
            return self.margin
        found = self.margins.of(inputs.expert, inputs.layer, inputs.done, inputs.all_heads)
        if found is None:
            return self.margin
        numbers = torch.tensor([[float(each) for each in found]])[..., None, None]
        return own_of(inputs.share, numbers.to(inputs.blocks.device))

    def observe(self, inputs: Inputs, plan: BlockPlan, seen: Seen, way: float) -> None:
        """Remember which of the visited blocks mattered; early on, the margin is wider.

        Args:
            inputs: Of the call.
            plan: As the blocks were visited.
            seen: What the kernel reported of each.
            way: How far the schedule has come from dense, in (0, 1].
        """
        cutoff = (self._margins(inputs) + math.log2(max(way, 1e-9))) * math.log(2)
        used = torch.arange(plan.kv_index.shape[-1], device=plan.kv_index.device)
        mattered = (seen.margin >= cutoff) & (used < plan.kv_count[..., None])
        listed = plan.kv_index.where(used < plan.kv_count[..., None], 0).long()
        tiles = torch.zeros(
            *mattered.shape[:3], plan.num_kv_blocks, dtype=torch.int32, device=listed.device
        ).scatter_add_(-1, listed.expand(mattered.shape), mattered.int())
        inputs.state.put(TILES, pack_bits(tiles > 0), inputs.step)


def read_ranges(text: str) -> list[tuple[int, int]]:
    """Ranges of positions, both ends in them, of text such as ``0-99,300-399``.

    Raises:
        BadInputError: For anything else.
    """
    if not text.strip():
        return []
    found = [re.fullmatch(r"(\d+)-(\d+)", each.strip()) for each in text.split(",")]
    ranges = [(int(each[1]), int(each[2])) for each in found if each is not None]
    if len(ranges) < len(found) or any(first > last for first, last in ranges):
        raise BadInputError(
            f"must_keep takes ranges of positions such as 0-99,300-399, got {text!r}"
        )
    return ranges
