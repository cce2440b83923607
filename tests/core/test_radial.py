"""Radial Attention against the published densities and a mask made token by token."""

from itertools import pairwise

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.policy import Policy
from vidsparse.policies.radial import Radial
from vidsparse.policies.selectors import Threshold


@pytest.mark.parametrize(
    ("grid", "radial", "density"),
    [
        ("18x48x80", Radial(decay=0.2), 0.269),
        ("18x48x80", Radial(decay=1.0), 0.408),
        ("21x45x80", Radial(decay=0.2), 0.245),
        ("21x45x80", Radial(decay=1.0), 0.382),
        ("21x30x52", Radial(decay=0.2), 0.307),
        ("30x48x80+256", Radial(decay=0.95, first_frame=False), 0.263),
        ("33x45x80+256", Radial(decay=0.95, first_frame=False), 0.257),
    ],
)
def test_token_density_equals_the_published_tables(grid, radial, density):
    # the rows of ALGORITHMS.md 2.1: Wan with the first frame as a sink, HunyuanVideo without
    assert round(radial.token_density(TokenGrid.parse(grid), 128), 3) == density


GRIDS = [
    (TokenGrid(7, 5, 7), 16),  # frames of 35: no multiple of the block, every 2nd far frame dropped
    (TokenGrid(9, 1, 31), 16),  # every 2nd and every 4th
    (TokenGrid(3, 5, 3), 16),  # no frame but the neighbours is left
    (TokenGrid(6, 3, 5), 64),  # a block longer than a frame
    (TokenGrid(2, 2, 3), 48),  # and than the whole video
    (TokenGrid(5, 5, 7, prefix=9), 16),
    (TokenGrid(5, 5, 7, suffix=21), 16),
    (TokenGrid(5, 5, 7, prefix=17, suffix=6), 32),
    (TokenGrid(1, 9, 9), 16),
]


def token_mask(grid, block, radial):
    """The rule of ALGORITHMS.md 2.1, one pair of tokens at a time."""
    n = grid.frame_tokens

    def frame_and_place(token):
        video = token - grid.prefix
        return divmod(video, n) if 0 <= video < grid.video_tokens else (None, 0)

    def kept(row, col):
        (row_frame, row_place), (col_frame, col_place) = frame_and_place(row), frame_and_place(col)
        if row_frame is None or col_frame is None:
            return True
        if radial.first_frame and col_frame == 0:
            return True
        distance = abs(row_frame - col_frame)
        if distance <= 1:
            return True
        length = 2 ** n.bit_length() / 2 ** distance.bit_length()
        if length < block and distance % int(block / length) != 0:
            return False
        return abs(row_place - col_place) <= max(length * radial.decay, block)

    tokens = range(grid.tokens)
    return torch.tensor([[kept(row, col) for col in tokens] for row in tokens])


def block_mask(grid, block, mask, overlap):
    """Blocks that the token mask covers by at least ``overlap``, the diagonal, and all text."""
    cuts = range(0, grid.tokens, block)
    video = range(grid.prefix, grid.prefix + grid.video_tokens)

    def has_text(start):
        return any(t not in video for t in range(start, min(start + block, grid.tokens)))

    def kept(row, col):
        covered = mask[row : row + block, col : col + block]
        enough = int(covered.sum()) >= overlap * covered.numel()
        return row == col or has_text(row) or has_text(col) or enough

    return torch.tensor([[kept(row, col) for col in cuts] for row in cuts])


@pytest.mark.parametrize("first_frame", [True, False])
@pytest.mark.parametrize("decay", [0.2, 1.3, 8])
@pytest.mark.parametrize(("grid", "block"), GRIDS, ids=str)
def test_mask_and_density_equal_the_rule_token_by_token(
    make_inputs, grid, block, decay, first_frame
):
    radial = Radial(decay=decay, first_frame=first_frame)
    mask = token_mask(grid, block, radial)
    assert radial.token_density(grid, block) == pytest.approx(
        float(mask.double().mean()), abs=1e-12
    )
    policy = Policy(estimator=radial, selector=Threshold(), block=block)
    inputs = make_inputs(grid, block)
    keep = policy.plan(radial.estimate(inputs), inputs).to_block_mask()
    assert torch.equal(keep[0, 0], block_mask(grid, block, mask, radial.overlap))


@pytest.mark.parametrize("overlap", [0.01, 0.25, 1.0])
def test_overlap_is_the_share_of_a_block_that_must_be_covered(make_inputs, overlap):
    grid, radial = TokenGrid(7, 5, 7), Radial(overlap=overlap)
    policy = Policy(estimator=radial, selector=Threshold(), block=16)
    inputs = make_inputs(grid, 16)
    keep = policy.plan(radial.estimate(inputs), inputs).to_block_mask()
    assert torch.equal(keep[0, 0], block_mask(grid, 16, token_mask(grid, 16, radial), overlap))


def test_blocks_with_text_are_always_kept_whatever_the_density(make_inputs):
    grid, radial = TokenGrid(9, 5, 7, prefix=9, suffix=21), Radial()
    policy = Policy(estimator=radial, selector=Threshold(), density=0.01, block=16)
    inputs = make_inputs(grid, 16)
    keep = policy.plan(radial.estimate(inputs), inputs).to_block_mask()[0, 0]
    text = [0, -1, -2]  # 9 tokens before; 21 after, of which the last block holds 9
    assert keep[text].all()
    assert keep[:, text].all()
    assert not keep.all()


def test_a_density_buys_nested_masks_that_never_cost_more(make_inputs):
    grid, radial = TokenGrid(9, 8, 12), Radial()
    policy = Policy(estimator=radial, selector=Threshold(), block=16)
    inputs = make_inputs(grid, 16)
    estimate = radial.estimate(inputs)
    asked = [0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95]
    plans = [policy.plan(estimate, inputs, density=density) for density in asked]
    masks = [plan.to_block_mask() for plan in plans]
    for smaller, larger in pairwise(masks):
        assert (larger | ~smaller).all()
    least = masks[0].sum()
    for plan, mask, density in zip(plans, masks, asked, strict=True):
        assert plan.density <= density or mask.sum() == least
    assert plans[-1].density > 0.85  # the budget is used, not only kept to


def test_more_decay_means_a_wider_mask():
    densities = [Radial(decay=d).token_density(TokenGrid(21, 30, 52), 64) for d in (0.2, 0.6, 2)]
    assert densities == sorted(set(densities))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decay": 0}, r"decay must be in \(0, 8\], got 0"),
        ({"decay": 8.1}, r"decay must be in \(0, 8\], got 8.1"),
        ({"decay": float("nan")}, "decay must be"),
        ({"overlap": 0}, r"overlap must be in \(0, 1\], got 0"),
        ({"overlap": 1.5}, "overlap must be"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(BadInputError, match=message):
        Radial(**parameters)
