"""Some tokens of each small box attend for all of it: the coreset attention of VORTA."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.pooling import only_finite
from vidsparse.policies.checks import check_sizes
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.orders import Arranged, coordinates
from vidsparse.policies.pruned import PruningOrder, kept_first, wanted

PLACES = "places of tokens in their boxes"
Sizes = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Coreset(PruningOrder):
    """The tokens of each box that are least like its centre come first, all others last.

    VORTA, arXiv 2505.18809: of a box of 2 x 3 x 2 tokens the centre is kept and the five whose
    queries have the least cosine with the centre's. These attend to one another alone, and a token
    that is not kept takes the output of its centre. Keys and values are kept with their queries.
    Boxes at the end of an axis are smaller where they must be.

    Attributes:
        box_frames: Latent frames of a box.
        box_height: Rows of a box.
        box_width: Columns of a box.
    """

    box_frames: int = 2
    box_height: int = 3
    box_width: int = 2

    def __post_init__(self) -> None:
        check_sizes(self, "box_frames", "box_height", "box_width")
        if not 2 <= self.box_frames * self.box_height * self.box_width <= 256:
            raise BadInputError("a box of a coreset holds from 2 to 256 tokens")

    def arrange(self, inputs: Inputs) -> Arranged:
        """Find what is least like the centres now."""
        grid, boxes = inputs.blocks.grid, self._boxes(inputs)
        q = inputs.qkv[0][:, :, grid.prefix : grid.prefix + grid.video_tokens]
        length = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
        unit = only_finite(q / length.clamp(min=1e-6))
        alike = (unit * unit.index_select(2, boxes.centre)).sum(dim=-1, dtype=torch.float32)
        alike = alike.index_select(-1, boxes.members.flatten()).unflatten(-1, boxes.members.shape)
        alike = alike.masked_fill(boxes.is_centre, -math.inf).masked_fill(~boxes.inside, math.inf)
        places = alike.sort(dim=-1, stable=True).indices.flatten(-2)
        places = places.index_select(-1, boxes.valid).to(torch.uint8)
        if inputs.remember:
            inputs.common.park(PLACES, places, inputs.step)
        return self._arranged(inputs, places, boxes)

    def again(self, inputs: Inputs) -> Arranged:
        """What was least like the centres at the latest call."""
        places = inputs.common.get(PLACES)
        assert places is not None
        return self._arranged(inputs, places, self._boxes(inputs))

    def _boxes(self, inputs: Inputs) -> Boxes:
        return boxes_of(*self._geometry(inputs))

    def _geometry(self, inputs: Inputs) -> tuple[TokenGrid, Sizes, torch.device]:
        """The video without its text, the sizes of a box and the device."""
        sizes = self.box_frames, self.box_height, self.box_width
        grid = dataclasses.replace(inputs.blocks.grid, prefix=0, suffix=0)
        return grid, sizes, inputs.blocks.device

    def _arranged(self, inputs: Inputs, places: Tensor, boxes: Boxes) -> Arranged:
        """With the tokens at these places of their boxes in order, what is kept before the rest."""
        kept = max(len(boxes.members), round(wanted(inputs)))
        perm, source = kept_of_boxes(*self._geometry(inputs), kept)
        video = boxes.members.flatten()[boxes.start + places.long()].index_select(-1, perm)
        return kept_first(inputs, video, source[None, None], kept)

    def label_bytes(self, grid: TokenGrid, block: int) -> int:
        """Bytes a head remembers in host memory: the place of each token in its box."""
        return grid.video_tokens


class Boxes(NamedTuple):
    """The video tokens of a grid by the small box that they lie in.

    Attributes:
        members: Tokens of each box, int64 ``(boxes, most)``; the rest of a smaller one is token 0.
        inside: Which of those are tokens of the box, boolean, likewise.
        is_centre: Which is the centre, boolean, likewise.
        valid: Flat places of the tokens in ``members``, box by box, int64 ``(tokens,)``.
        start: Flat place where the box of each of those begins, int64 ``(tokens,)``.
        centre: The centre of the box of each token in raster order, int64 ``(tokens,)``.
        rank: Place of each of ``valid`` in its box, over the box's size, float32 on the CPU.
        tie: A number for each of ``valid`` that is drawn for its box, float32 on the CPU.
        first: Which of ``valid`` is the first of the same box, int64 on the CPU.
    """

    members: Tensor
    inside: Tensor
    is_centre: Tensor
    valid: Tensor
    start: Tensor
    centre: Tensor
    rank: Tensor
    tie: Tensor
    first: Tensor


@functools.lru_cache(maxsize=8)
def boxes_of(grid: TokenGrid, sizes: Sizes, device: torch.device) -> Boxes:
    """Cut the video of a grid into boxes; those at the end of an axis may be smaller.

    Args:
        grid: Without text.
        sizes: Frames, rows and columns of a box.
        device: Where tensors are made, those that say nothing else.
    """
    with torch.inference_mode(False):  # it outlives the mode that it is made in
        size, at = torch.tensor(sizes), coordinates(grid)
        length = torch.tensor([grid.frames, grid.height, grid.width])
        number = (length + size - 1) // size
        box, inner = at // size, at % size
        centre_at = torch.minimum(torch.ones(3, dtype=torch.int64), length - box * size - 1)
        centre_at = torch.minimum(centre_at, size - 1)
        of_token = (box[:, 0] * number[1] + box[:, 1]) * number[2] + box[:, 2]
        by_box = of_token.argsort(stable=True)
        count = of_token.bincount(minlength=int(number.prod()))
        begin = count.cumsum(0) - count
        place = torch.arange(len(at)) - begin[of_token[by_box]]
        valid = of_token[by_box] * int(count.max()) + place
        members = torch.zeros(len(count) * int(count.max()), dtype=torch.int64)
        inside, is_centre = torch.zeros_like(members, dtype=torch.bool), members.bool()
        members[valid], inside[valid] = by_box, True
        is_centre[valid] = (inner == centre_at).all(dim=-1)[by_box]
        centres = members.masked_select(is_centre)
        drawn = torch.rand(len(count), generator=torch.Generator().manual_seed(0))
        shape = len(count), -1
        return Boxes(
            members.view(shape).to(device), inside.view(shape).to(device),
            is_centre.view(shape).to(device), valid.to(device),
            (of_token[by_box] * int(count.max())).to(device), centres[of_token].to(device),
            place / count[of_token[by_box]], drawn[of_token[by_box]], begin[of_token[by_box]],
        )  # fmt: skip


@functools.lru_cache(maxsize=32)
def kept_of_boxes(
    grid: TokenGrid, sizes: Sizes, device: torch.device, kept: int
) -> tuple[Tensor, Tensor]:
    """Where tokens that stand box by box go, and whose output each place then takes.

    In each box the centre stands first, then the others from the least alike on.

    Args:
        grid: Without text.
        sizes: Frames, rows and columns of a box.
        device: Of the result.
        kept: How many are kept: equal shares of all boxes, as far as that goes.

    Returns:
        Which token comes to each place, kept ones first, and the place of its source, int64
        ``(tokens,)``.
    """
    with torch.inference_mode(False):  # it outlives the mode that it is made in
        boxes = boxes_of(grid, sizes, device)
        best = boxes.tie.argsort(stable=True)
        best = best[boxes.rank[best].argsort(stable=True)]
        is_kept = torch.zeros(len(best), dtype=torch.bool)
        is_kept[best[:kept]] = True
        perm = torch.cat([is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]])
        place = torch.empty_like(perm).scatter_(0, perm, torch.arange(len(perm)))
        source = torch.where(is_kept, place, place[boxes.first])[perm]
        return perm.to(device), source.to(device)
