"""Each method does its paper's rule: small cases worked by hand."""

import pytest
import torch

from vidsparse.as_published import AS_PUBLISHED
from vidsparse.grid import TokenGrid
from vidsparse.policies.estimator import Estimate, Measure
from vidsparse.policies.orders import Tile
from vidsparse.policies.percentile import Percentile
from vidsparse.policies.selectors import Selection
from vidsparse.presets import PRESETS


def select(selector, scores, inputs, *, density=None, always=None, measure=Measure.LOG_MASS):
    """The block mask of ``(heads, M, N)`` scores."""
    blocks = inputs.blocks
    kept = blocks.always_kept if selector.keeps_diagonal else blocks.text_kept
    lists = selector.select(
        Selection(
            estimate=Estimate(scores=scores[None]), measure=measure, inputs=inputs, least=1,
            always=kept if always is None else always, density=density, way=1.0,
        )
    )  # fmt: skip
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    for at in torch.cartesian_prod(*map(torch.arange, scores.shape[:2])).tolist():
        head, row = at
        mask[head, row, lists[1][0, head, row, : lists[0][0, head, row]].long()] = True
    return mask


def test_every_row_of_the_table_is_a_preset_once():
    names = [row.preset for row in AS_PUBLISHED]
    assert len(set(names)) == len(names)
    assert set(names) <= PRESETS.keys()


# DraftAttention


def test_windows_of_draft_attention_are_blocks():
    positions = Tile(tile_frames=1, tile_height=8, tile_width=16).positions(TokenGrid(1, 16, 32))
    assert positions is not None
    at = positions.tolist()
    assert at[:16] == list(range(16))  # row 0, columns 0 to 15
    assert at[16:32] == list(range(32, 48))  # row 1
    assert (at[128], at[256]) == (16, 8 * 32)  # the windows at (0, 16) and at (8, 0)


def test_draft_attention_keeps_a_share_of_the_whole_map_and_all_that_tie(make_inputs):
    rows = torch.tensor([[0.7, 0.1, 0.1, 0.1], *[[0.25] * 4] * 3])
    inputs = make_inputs(TokenGrid(1, 8, 8), 16)
    keep = select(Percentile(), rows.log()[None], inputs, density=0.25)[0]
    assert keep.tolist() == [[True, False, False, False], *[[True] * 4] * 3]  # 13 of 16, not 4


def test_draft_attention_counts_windows_of_video_and_keeps_text_besides(make_inputs):
    # rows and columns 4 and 5 hold text; of the 16 entries of video the 4 best stay, all in row 0
    inputs = make_inputs(TokenGrid(1, 8, 8, 0, 20), 16)
    scores = torch.full((1, 6, 6), -4.0)
    scores[0, 0, :4] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    scores[0, 1, :4] = torch.tensor([-9.0, -9.5, -9.0, -8.0])
    scores[0, :, 4:] = 50.0
    keep = select(Percentile(), scores, inputs, density=0.25)[0]
    assert keep[4:].all()
    assert keep[:, 4:].all()
    by_hand = [[1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert keep[:4, :4].int().tolist() == by_hand


def test_draft_attention_is_published_with_its_own_warm_up():
    schedule = PRESETS["draft-attention"].schedule
    assert (schedule.warmup, schedule.ramp_until, schedule.dense_layers) == (0.3, 0.3, 1)


@pytest.mark.parametrize(("text", "density"), [(0, 0.25), (256, 0.25), (256, 0.1)])
def test_draft_attention_computes_the_share_that_its_rule_says(make_inputs, text, density):
    grid = TokenGrid(4, 16, 32, 0, text)
    q, k = torch.randn(2, 1, 2, grid.tokens, 8)
    inputs = make_inputs(grid, 128, q=q, k=k, v=k)
    policy = PRESETS["draft-attention"].policy
    arranged = policy.order.arrange(inputs).inputs
    made = policy.plan(policy.estimator.estimate(arranged), arranged, density=density).density
    video, whole = grid.video_tokens, grid.tokens
    entries = (video // 128) ** 2
    kept = (entries - int((1 - density) * entries) + 1) / entries  # the percentile itself stays
    of_rule = (kept * video**2 + whole**2 - video**2) / whole**2
    assert made == pytest.approx(of_rule, rel=0.01)
