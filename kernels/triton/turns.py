"""Which tile a program of a Gluon kernel takes next: the first that nobody has taken.

Programs stay on their multiprocessors. Were each to take every ``num_programs``-th tile, one would
get all long lists where the tiles of a head are a multiple of that: 512 tokens of text, which see
all keys, before 16,384 of an image fall to 8 of 264 programs, and the others wait for these.

A producer draws, one tile ahead, and tells the others through shared memory. It tells of a tile
once the queries of the one before the last are read; whoever is slowest then hears of the last but
one at worst, so four places are enough.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

PLACES = gl.constexpr(4)


def counter(device: torch.device) -> Tensor:
    """What a launch counts its tiles with, int32 ``(1,)``."""
    return torch.zeros(1, dtype=torch.int32, device=device)


@gluon.jit
def allocate():
    """Shared memory for the numbers of tiles, and what says that they are there."""
    flat: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    told = gl.allocate_shared_memory(gl.int32, [PLACES, 1], flat)
    ready = gl.allocate_shared_memory(gl.int64, [PLACES, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(PLACES):
        mbarrier.init(ready.index(place), count=1)
    return told, ready


@gluon.jit
def draw(counter_ptr):
    """The next tile; as many are taken without drawing as there are programs."""
    return gl.atomic_add(counter_ptr, 1, sem="relaxed") + gl.num_programs(0)


@gluon.jit
def tell(turns, turn, tile):
    """Say which tile turn ``turn``, from 1, has; by one warp that has waited to copy queries."""
    told, ready = turns
    place = turn % PLACES
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    told.index(place).store(gl.full([1], tile, gl.int32, one))
    mbarrier.arrive(ready.index(place), count=1)


@gluon.jit
def hear(turns, turn, WARPS: gl.constexpr):
    """Which tile turn ``turn``, from 1, has."""
    told, ready = turns
    place = turn % PLACES
    mbarrier.wait(ready.index(place), ((turn - 1) // PLACES) & 1)
    one: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    return gl.max(told.index(place).load(one), 0)
