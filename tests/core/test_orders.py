"""Orders: permutations that leave text alone, on any grid."""

from typing import Any

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.orders import AXES, Axes, Cycle, Hilbert, Raster, Tile, coordinates


def positions(order, grid) -> Any:
    return order.positions(grid)


GRIDS = ["5+7x11x13+3", "1x9x9", "3x1x1", "2x2x2+1", "1x1x1", "13x17x1", "4x8x8"]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    "order",
    [Tile(tile_width=8), Tile(tile_frames=3, tile_height=4, tile_width=5), Hilbert(), Axes()],
    ids=repr,
)
def test_an_order_is_a_permutation_that_leaves_text_where_it_is(grid, order):
    grid = TokenGrid.parse(grid)
    at = order.positions(grid)
    if at is None:
        return
    assert torch.equal(at.sort().values, torch.arange(grid.tokens, dtype=torch.int32))
    start, stop = grid.prefix, grid.prefix + grid.video_tokens
    assert at[:start].tolist() == list(range(start))
    assert at[stop:].tolist() == list(range(stop, grid.tokens))


def test_tiles_are_boxes_in_raster_order_inside():
    at = positions(Tile(tile_frames=1, tile_height=2, tile_width=2), TokenGrid(1, 3, 4))
    assert at.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_hilbert_curve_through_a_cube_only_takes_single_steps(size):
    grid = TokenGrid(size, size, size)
    walk = coordinates(grid)[positions(Hilbert(), grid).long()]
    assert (walk.diff(dim=0).abs().sum(dim=-1) == 1).all()


def test_a_hilbert_curve_through_an_image_only_takes_single_steps():
    grid = TokenGrid(1, 16, 16)
    walk = coordinates(grid)[positions(Hilbert(), grid).long()]
    assert (walk.diff(dim=0).abs().sum(dim=-1) == 1).all()


def test_hilbert_blocks_are_more_compact_than_raster_blocks():
    grid = TokenGrid(9, 20, 23)

    def spread(order):
        blocks = coordinates(grid).float()[order][: 64 * 64].unflatten(0, (-1, 64))
        return float(blocks.var(dim=1).sum(dim=-1).mean())

    raster = torch.arange(grid.tokens)
    assert spread(positions(Hilbert(), grid).long()) < 0.4 * spread(raster)


def test_all_six_nestings_of_the_axes():
    grid = TokenGrid(2, 3, 5)
    place = coordinates(grid)
    for axes in AXES:
        at = positions(Axes(axes=axes), grid)
        walk = place if at is None else place[at.long()]
        inner = "fhw".index(axes[-1])
        steps = walk.diff(dim=0)
        assert (steps[:1] == torch.eye(3, dtype=torch.int64)[inner]).all(), axes
    assert positions(Axes(axes="hwf"), grid)[:4].tolist() == [0, 15, 1, 16]
    with pytest.raises(BadInputError, match=r"axes must be one of fhw.*got 'hfx'"):
        Axes(axes="hfx")


def test_the_boxes_of_vmoba_cycle_with_the_layer():
    grid, cycle = TokenGrid(6, 20, 30), Cycle(chunk_frames=2, chunk_height=4, chunk_width=5)
    boxes = [cycle.in_layer(layer, grid) for layer in range(4)]
    assert [(b.tile_frames, b.tile_height, b.tile_width) for b in boxes] == [
        (2, 20, 30),
        (6, 4, 5),
        (2, 4, 5),
        (2, 20, 30),
    ]


def test_an_order_moves_tokens_and_can_be_undone(make_inputs):
    grid = TokenGrid(3, 5, 7, 2, 1)
    x = torch.arange(grid.tokens).float().view(1, 1, -1, 1).expand(2, 3, -1, 4)
    arranged: Any = Tile().arrange(make_inputs(grid, 16, q=x, k=x, v=x))
    assert torch.equal(arranged.inputs.qkv[1][0, 0, :, 0].int(), arranged.q_order[0, 0])
    assert Raster().arrange(make_inputs(grid, 16)).q_order is None
