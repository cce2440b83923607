"""Masks that were made offline: PAROAttention, arXiv 2506.16054."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.head_sharing import own_of
from vidsparse.kernels.planning.bits import unpack_bits
from vidsparse.policies.estimator import Estimate, Estimator, Inputs, Measure
from vidsparse.stored_masks import StoredMasks

if TYPE_CHECKING:
    from vidsparse.policies.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored(Estimator):
    """The blocks that a file names, by layer, head and part of the run: no data is looked at.

    Heads take them in the order that they were made in. Text may be longer or shorter than it was:
    it stays whole.

    Attributes:
        mask_file: As ``vidsparse calibrate`` writes it beside a preset file.
    """

    mask_file: StoredMasks | None = None

    needs_data: ClassVar[bool] = True  # they differ from step to step
    per_layer: ClassVar[bool] = True
    has_mask: ClassVar[bool] = True
    in_place_of_density: ClassVar[str | None] = "mask_file"
    measure: ClassVar[Measure] = Measure.RANK

    @property
    def kept(self) -> float | None:
        """Mean of all masks."""
        return None if self.mask_file is None else self.mask_file.density

    def refuses(self, policy: Policy) -> str | None:
        """A mask says what is kept, of blocks of its own size."""
        if self.mask_file is None:
            return "estimator=stored takes mask_file=FILE, such as vidsparse calibrate paro writes"
        if not policy.selector.takes_masks:
            return "what is stored is a mask: give selector=threshold"
        if policy.block != self.mask_file.block:
            made = self.mask_file.block
            return f"the masks {self.mask_file} are of blocks of {made}: give that block"
        return None

    def estimate(self, inputs: Inputs) -> Estimate:
        """One for blocks that are kept, zero for others, ``(1, heads, M, N)``."""
        masks, blocks = self.mask_file, inputs.blocks
        assert masks is not None
        grid, made = blocks.grid, masks.grid
        masks.check_grid(grid.frames, grid.height, grid.width)
        if grid.prefix != made.prefix:
            raise BadInputError(
                f"the masks {masks} are of {made.prefix} text tokens before the video, and there "
                f"are {grid.prefix}: calibrate with a prompt of the same length"
            )
        bits = masks.of(inputs.expert, inputs.layer, inputs.done)
        if bits.shape[0] != inputs.all_heads:
            raise BadInputError(
                f"the masks {masks} are of {bits.shape[0]} heads in layer {inputs.layer}, which "
                f"has {inputs.all_heads}: calibrate this model"
            )
        bits = own_of(inputs.share, bits[None].to(blocks.device, non_blocking=True))
        keep = unpack_bits(bits, -(-made.tokens // masks.block))
        rows, columns = blocks.rows - keep.shape[-2], blocks.columns - keep.shape[-1]
        keep = F.pad(keep, (0, columns, 0, rows))  # what comes after the video is text
        return Estimate(scores=keep.float(), threshold=0.5)
