"""Masks that need no data, against the rule token by token and the papers' own numbers."""

import itertools

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.validate import validated
from vidsparse.planner import Planner
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.geometric import Axis, Band, Disc, Neighbourhood, Places, Slab
from vidsparse.policies.orders import Raster, Tile, coordinates
from vidsparse.policies.policy import Policy
from vidsparse.policies.selectors import Threshold


def static_plan(grid, estimator, order=None, density=None, block=16):
    policy = Policy(
        order=order or Raster(),
        estimator=estimator,
        selector=Threshold(),
        density=density,
        block=block,
    )
    inputs = Inputs(blocks=Blocks(grid, block, torch.device("cpu")))
    return Planner(policy).static_plan(inputs, 1.0)


@pytest.mark.parametrize(("window", "density"), [((10, 20, 20), 0.4167), ((6, 12, 12), 0.09)])
def test_sliding_tiles_have_the_density_of_the_paper(window, density):
    """As many tiles as in the paper, each smaller: of two blocks."""
    tile = Tile(tile_frames=2, tile_height=4, tile_width=4)
    estimator = Neighbourhood(
        window_frames=window[0],
        window_height=window[1],
        window_width=window[2],
        unit_frames=2,
        unit_height=4,
        unit_width=4,
    )
    plan = static_plan(TokenGrid(10, 24, 40), estimator, tile, block=16)
    assert plan.density == pytest.approx(density, abs=1e-3)


def brute_force(length, window, stride, dilation):
    """GNA along one axis, from its definition."""
    keep = torch.zeros(length, length, dtype=torch.bool)
    for q, k in itertools.product(range(length), repeat=2):
        leader = min(q // stride * stride + stride // 2, length - 1)
        start = min(max(leader - window // 2, 0), max(0, length - window))
        keep[q, k] = start <= k < start + window and (k - q) % dilation == 0
    return keep


@pytest.mark.parametrize("window", [1, 3, 4, 5, 11, 20])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (3, 1), (1, 2)])
def test_a_neighbourhood_is_the_rule_token_by_token(window, stride, dilation):
    grid = TokenGrid(1, 1, 11)
    rule = Neighbourhood(window_width=window, stride=stride, dilation=dilation)
    place = coordinates(grid)
    inside = rule.distance(grid, place[:, None], place[None]) <= 1
    assert torch.equal(inside, brute_force(11, window, stride, dilation))


def test_every_query_of_a_neighbourhood_sees_equally_much():
    grid = TokenGrid(5, 6, 7)
    place = coordinates(grid)
    rule = Neighbourhood(window_frames=3, window_height=3, window_width=4)
    inside = rule.distance(grid, place[:, None], place[None]) <= 1
    assert (inside.sum(dim=-1) == 3 * 3 * 4).all()


def test_a_window_as_large_as_the_grid_is_dense():
    rule = Neighbourhood(window_frames=9, window_height=9, window_width=9)
    assert static_plan(TokenGrid(3, 7, 7, 4, 2), rule).density == 1.0


def test_a_window_across_all_frames_narrows_to_the_nearest_ones_under_a_density():
    grid, rule = TokenGrid(8, 4, 4), Neighbourhood(window_frames=8, window_height=4, window_width=4)
    frame = torch.arange(8)
    for density, reach in ((0.35, 1), (0.5, 1), (0.54, 2), (0.72, 3)):  # 22, 34, 44 of 64 pairs
        mask = static_plan(grid, rule, density=density, block=16).to_block_mask()[0, 0]
        assert torch.equal(mask, (frame[:, None] - frame).abs() <= reach)  # a frame is a block


@pytest.mark.parametrize(("axis", "of"), [("frames", 0), ("height", 1), ("width", 2)])
def test_a_slab_holds_all_that_is_in_the_same_box_along_its_axis(axis, of):
    grid = TokenGrid(5, 6, 8)
    rule = Slab(axis=Axis(axis), unit_frames=2, unit_height=2, unit_width=4, overlap=1e-9)
    box = Tile(tile_frames=1, tile_height=2, tile_width=4)
    # blocks of 16 are two boxes side by side: the whole width, so narrower than a block is not cut
    mask = static_plan(grid, rule, box, block=16).to_dense_mask()[0, 0]
    positions = box.positions(grid)
    assert positions is not None
    place = coordinates(grid)[positions.long()] // torch.tensor([2, 2, 4])
    same = place[:, None, of] == place[None, :, of]
    assert (mask | ~same).all()
    assert torch.equal(mask, torch.ones_like(mask)) == (axis == "width")
    assert mask.float().mean() == pytest.approx({0: 0.36, 1: 1 / 3, 2: 1.0}[of])


def test_a_circle_leaves_out_what_lies_on_it():
    grid, rule = TokenGrid(1, 9, 9), Disc(radius=3.0, overlap=0.001)
    plan = static_plan(grid, rule, Tile(tile_height=1, tile_width=1), block=16)
    place = coordinates(grid)[:, 1:].float()
    inside = torch.cdist(place, place) < 3
    assert int(inside[40].sum()) == 25  # of the 29 within 3, four lie on the circle
    blocks = inside.float()
    for i, j in itertools.product(range(6), repeat=2):
        any_inside = bool(blocks[i * 16 : i * 16 + 16, j * 16 : j * 16 + 16].any())
        if plan.to_block_mask()[0, 0, i, j]:
            assert any_inside
    with pytest.raises(BadInputError, match="radius must be above 0"):
        Disc(radius=0)


def test_a_band_reaches_as_far_as_the_formula_of_svg_says():
    # f frames, density s: 1 - sqrt(1 - s) of them to each side, 3.43 of 21 at s = 0.3
    grid = TokenGrid(21, 8, 16)
    mask = static_plan(grid, Band(), density=0.3, block=16).to_block_mask()[0, 0]
    middle = mask[mask.shape[0] // 2].nonzero()[:, 0]
    reach = (int(middle[-1]) - int(middle[0]) + 1) / 2 * 16 / grid.frame_tokens
    assert reach == pytest.approx(3.43, abs=0.13)
    rows = torch.arange(len(mask))
    assert torch.equal(mask, (rows[:, None] - rows).abs() <= (int(middle[-1]) - int(middle[0])) / 2)


def test_places_keeps_the_same_place_in_every_frame():
    grid = TokenGrid(6, 8, 8)  # four blocks a frame
    mask = static_plan(grid, Places(), density=0.26, block=16).to_block_mask()[0, 0]
    at = torch.arange(24)
    assert mask[(at[:, None] - at) % 4 == 0].all()


@pytest.mark.parametrize("grid", ["7+5x7x11+3", "1x13x13", "2x2x2"])
@pytest.mark.parametrize("estimator", [Band(), Places(), Neighbourhood(), Slab(), Disc()], ids=repr)
def test_text_is_exact_and_no_row_is_empty_on_ragged_grids(grid, estimator):
    grid = TokenGrid.parse(grid)
    for order in (Raster(), Tile()):
        plan = validated(static_plan(grid, estimator, order, density=0.2))
        mask = plan.to_dense_mask()[0, 0]
        text = torch.ones(grid.tokens, dtype=torch.bool)
        text[grid.prefix : grid.prefix + grid.video_tokens] = False
        assert mask[text].all()
        assert mask[:, text].all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window_height": 0}, "window_height must be at least 1, got 0"),
        ({"unit_width": -1}, "unit_width must be at least 1, got -1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"overlap": 0}, r"overlap must be in \(0, 1\]"),
    ],
)
def test_impossible_windows_are_refused(parameters, message):
    with pytest.raises(BadInputError, match=message):
        Neighbourhood(**parameters)
