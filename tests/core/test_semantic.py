"""Semantic order: clusters as blocks, text apart, warm from a few members."""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.policy import Anchor, Policy
from vidsparse.policies.pooled import Pooled
from vidsparse.policies.semantic import Semantic, Start, mean_of, members_of
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(2, 7, 9, prefix=5, suffix=3)


def clustered(groups=6, heads=2, spread=0.05, grid=GRID):
    """Tokens around a few centres, shuffled."""
    centres = torch.randn(heads, groups, 8)
    label = torch.randint(groups, (heads, grid.tokens))
    x = centres.gather(1, label[..., None].expand(-1, -1, 8))
    return (x + spread * torch.randn_like(x))[None], label


def arranged(make_inputs, order, **tensors) -> Any:
    return order.arrange(make_inputs(GRID, 16, **tensors))


def test_text_keeps_its_place_in_clusters_of_its_own(make_inputs):
    q, k, v = (torch.randn(1, 2, GRID.tokens, 8) for _ in range(3))
    made = arranged(make_inputs, Semantic(q_clusters=4, kv_clusters=6), q=q, k=k, v=v)
    blocks = made.inputs.blocks
    assert blocks.q_offsets.shape == (1, 2, 4 + 2 + 1)
    assert blocks.kv_offsets.shape == (1, 2, 6 + 2 + 1)
    for order, offsets in ((made.q_order, blocks.q_offsets), (made.kv_order, blocks.kv_offsets)):
        assert torch.equal(order.sort(dim=-1).values[0, 0].long(), torch.arange(GRID.tokens))
        assert order[0, 0, :5].tolist() == [0, 1, 2, 3, 4]
        assert order[0, 0, -3:].tolist() == [131, 132, 133]
        assert (offsets[..., 0] == 0).all()
        assert (offsets[..., 1] == 5).all()
        assert (offsets[..., -1] == GRID.tokens).all()
    assert torch.equal(made.inputs.q[0, 1], q[0, 1, made.q_order[0, 1].long()])
    assert torch.equal(made.inputs.v[0, 1], v[0, 1, made.kv_order[0, 1].long()])


def test_tokens_of_one_kind_end_in_one_cluster(make_inputs):
    grid = TokenGrid(2, 20, 20)
    k, label = clustered(grid=grid)
    order = Semantic(q_clusters=8, kv_clusters=40, first_iterations=20)
    made: Any = order.arrange(make_inputs(grid, 16, q=k, k=k, v=k))
    offsets = made.inputs.blocks.kv_offsets[0, 0].tolist()
    for start, stop in pairwise(offsets):
        members = made.kv_order[0, 0, start:stop].long()
        assert label[0, members].unique().numel() <= 1


def test_queries_and_keys_are_clustered_independently(make_inputs):
    q, k = clustered()[0], clustered()[0]
    made = arranged(make_inputs, Semantic(q_clusters=4, kv_clusters=4), q=q, k=k, v=k)
    assert not torch.equal(made.q_order, made.kv_order)


def test_members_are_tokens_of_their_cluster_and_stand_for_its_centre():
    from vidsparse.kernels.planning.kmeans import kmeans

    x, _ = clustered(spread=0.01)
    clusters = kmeans(x, 5, iterations=10)
    members = members_of(clusters, 4)
    assert members.shape == (1, 2, 5, 4)
    for h in range(2):
        for c in range(5):
            if int(clusters.sizes[0, h, c]):
                assert (clusters.labels[0, h, members[0, h, c].long()] == c).all()
    full = clusters.sizes[0, 0] > 0
    torch.testing.assert_close(
        mean_of(x, members)[0, 0][full], clusters.centroids[0, 0][full], atol=1.5, rtol=0.5
    )


def spread_within(x, order, offsets):
    """Mean squared distance of tokens from the mean of their cluster."""
    total = 0.0
    for start, stop in pairwise(offsets[0, 0].tolist()):
        tokens = x[0, 0, order[0, 0, start:stop].long()]
        total += float((tokens - tokens.mean(dim=0)).square().sum()) if len(tokens) else 0.0
    return total


def test_later_steps_start_where_the_clusters_were(make_inputs):
    grid = TokenGrid(2, 12, 12)
    k = torch.randn(1, 2, grid.tokens, 8)
    order = Semantic(q_clusters=6, kv_clusters=18, first_iterations=50, iterations=1)
    inputs = make_inputs(grid, 16, q=k, k=k, v=k)
    made: list[Any] = [order.arrange(inputs) for _ in range(2)]
    spreads = [spread_within(k, m.kv_order, m.inputs.blocks.kv_offsets) for m in made]
    once = Semantic(q_clusters=6, kv_clusters=18, first_iterations=1)
    cold = once.arrange(make_inputs(grid, 16, q=k, k=k, v=k))
    assert spreads[1] < 1.05 * spreads[0]
    assert spreads[1] < spread_within(k, cold.kv_order, cold.inputs.blocks.kv_offsets)
    assert order.state_bytes(grid, 16) * 2 == inputs.state.nbytes()


@pytest.mark.parametrize("grid", ["2x12x12", "5+3x13x11+2", "1x1x1"])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_means_of_boxes_are_a_start_that_nothing_is_drawn_for(make_inputs, grid, group):
    grid = TokenGrid.parse(grid)
    k = torch.randn(1, 2, grid.tokens, 8)
    made: list[Any] = []
    for seed in (0, 1):
        order = Semantic(start=Start.TILES, first_iterations=2, group=group, seed=seed)
        made.append(order.arrange(make_inputs(grid, 16, q=k, k=k, v=k)))
        assert torch.equal(
            made[-1].kv_order.sort(dim=-1).values[0, 0].long(), torch.arange(len(k[0, 0]))
        )
    assert torch.equal(made[0].kv_order, made[1].kv_order)


def test_the_first_centroids_are_means_of_boxes(make_inputs):
    grid = TokenGrid(2, 16, 16, prefix=3)
    k = torch.randn(1, 1, grid.tokens, 8)
    order = Semantic(kv_clusters=8, first_iterations=1, start=Start.TILES)  # a box of 8 x 8 each
    made: Any = order.arrange(make_inputs(grid, 16, q=k, k=k, v=k))
    video = k[0, 0, 3:].view(2, 2, 8, 2, 8, 8)
    centres = video.mean(dim=(2, 4)).flatten(0, 2)
    nearest = torch.cdist(k[0, 0, 3:], centres).argmin(dim=-1)
    edges = made.inputs.blocks.kv_offsets[0, 0, 1:].tolist()
    for number, (start, stop) in enumerate(pairwise(edges)):
        members = made.kv_order[0, 0, start:stop].long() - 3
        assert members.tolist() == (nearest == number).nonzero()[:, 0].tolist()


@pytest.mark.parametrize(("group", "box"), [(2, (1, 1, 2)), (4, (1, 2, 2)), (8, (2, 2, 2))])
def test_tokens_that_are_clustered_as_one_stay_together(make_inputs, group, box):
    grid = TokenGrid(2, 6, 8, prefix=5, suffix=3)
    q, k, v = (torch.randn(1, 2, grid.tokens, 8) for _ in range(3))
    made: Any = Semantic(q_clusters=4, kv_clusters=6, group=group).arrange(
        make_inputs(grid, 16, q=q, k=k, v=v)
    )
    offsets, order = made.inputs.blocks.kv_offsets, made.kv_order
    cluster = torch.searchsorted(
        offsets, torch.arange(grid.tokens).expand(1, 2, -1).int(), right=True
    )
    of_token = torch.empty_like(cluster).scatter_(-1, order.long(), cluster)[0, :, 5:-3]
    sides = zip((2, 6, 8), box, strict=True)
    boxes = of_token.view(2, *(n for side, of in sides for n in (side // of, of)))
    boxes = boxes.permute(0, 1, 3, 5, 2, 4, 6).flatten(4)
    assert bool((boxes == boxes[..., :1]).all())
    assert torch.equal(made.inputs.k, k.gather(2, order.long()[..., None].expand(k.shape)))


def test_clusters_of_groups_start_where_they_were_and_serve_another_step(make_inputs):
    grid = TokenGrid(2, 12, 13)
    k = torch.randn(1, 2, grid.tokens, 8)
    order = Semantic(q_clusters=6, kv_clusters=18, group=4, iterations=1)
    inputs = make_inputs(grid, 16, q=k, k=k, v=k, remember=True)
    first: Any = order.arrange(inputs)
    spread = spread_within(k, first.kv_order, first.inputs.blocks.kv_offsets)
    second: Any = order.arrange(inputs)
    assert spread_within(k, second.kv_order, second.inputs.blocks.kv_offsets) < 1.05 * spread
    again: Any = order.again(inputs)
    assert torch.equal(second.kv_order, again.kv_order)
    assert order.state_bytes(grid, 16) * 2 == inputs.state.nbytes()
    assert order.label_bytes(grid, 16) * 2 == inputs.state.host_nbytes()


@pytest.mark.parametrize("name", ["svg2", "svg2-ear"])
@pytest.mark.parametrize("grid", ["2x7x9", "5+3x5x7+3", "1x2x2", "1x1x1"])
def test_clusters_at_full_share_are_dense_attention(name, grid):
    grid = TokenGrid.parse(grid)
    preset = PRESETS[name].override({"p": 1.0, "min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0})
    q, k, v = (torch.randn(2, grid.tokens, 3, 8) for _ in range(3))

    def dense(q, k, v):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    engine = SparseAttention(preset, strict=True)
    for step in range(3):
        out = engine(
            q, k, v, Call(grid=grid, layer=0, step=step, progress=Progress.alone(0.5)), dense
        )
        torch.testing.assert_close(out, dense(q, k, v), atol=2e-5, rtol=1e-4)


def test_svg2_keeps_the_likeliest_clusters_by_size_weighted_softmax(make_inputs):
    # three key clusters of sizes 1, 2 and 3 at scores ln 6, 0 and 0: P = 6, 2, 3 of 11
    from vidsparse.policies.estimator import Estimate
    from vidsparse.policies.selectors import TopP

    scores = torch.tensor([6.0, 2.0, 3.0]).log()[None, None, None]
    policy = Policy(order=Semantic(), estimator=Pooled(), selector=TopP(p=0.8))
    inputs = make_inputs(TokenGrid(1, 1, 6), 16)
    object.__setattr__(inputs.blocks, "q_offsets", torch.tensor([[[0, 6]]], dtype=torch.int32))
    object.__setattr__(
        inputs.blocks, "kv_offsets", torch.tensor([[[0, 1, 3, 6]]], dtype=torch.int32)
    )
    plan = policy.plan(Estimate(scores=scores), inputs)
    assert plan.to_block_mask()[0, 0].tolist() == [[True, False, True]]  # 9 of 11 is above 0.8
    more = policy.plan(Estimate(scores=scores), inputs, way=0.85)
    assert more.to_block_mask().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Semantic(q_clusters=0), "q_clusters must be from 1 to 4096, got 0"),
        (lambda: Semantic(iterations=0), "iterations must be at least 1"),
        (lambda: Semantic(group=3), "group must be 1, 2, 4 or 8, got 3"),
        (
            lambda: Policy(order=Semantic(), estimator=Pooled(), density=0.3, anchor=Anchor.KEYS),
            "clusters, not equal blocks",
        ),
    ],
)
def test_what_clusters_cannot_do_is_refused(make, message):
    with pytest.raises(BadInputError, match=message):
        make()


@pytest.mark.parametrize(
    ("grid", "block", "numbers"),
    [
        ("21x45x80", 128, (591, 1182)),  # Wan 14B at 720p
        ("512+1x64x64", 64, (64, 128)),  # text is not counted
        ("2x5x7", 64, (2, 4)),
        ("2x5x7", 16, (4, 4)),  # no more than one for 16 tokens
        ("1x1024x1024", 128, (4096, 4096)),  # nor than there may be
    ],
)
def test_unnamed_numbers_of_clusters_follow_blocks(grid, block, numbers):
    grid = TokenGrid.parse(grid)
    order = Semantic(q_clusters=None, kv_clusters=None)
    assert order.counts_blocks
    assert order.clusters(grid, block) == numbers
    text = (grid.prefix > 0) + (grid.suffix > 0)
    assert order.block_counts(grid, block) == tuple(number + text for number in numbers)
    assert not Semantic(q_clusters=5, kv_clusters=9).counts_blocks
    assert Semantic(q_clusters=5, kv_clusters=None).clusters(grid, block)[0] == min(5, numbers[1])


def test_an_order_makes_as_many_clusters_as_blocks(make_inputs):
    grid = TokenGrid(2, 12, 13)
    k = torch.randn(1, 2, grid.tokens, 8)
    order = Semantic(q_clusters=None, kv_clusters=None, start=Start.TILES)
    for block, rows in ((32, 10), (64, 5)):
        made: Any = order.arrange(make_inputs(grid, block, q=k, k=k, v=k))
        assert made.inputs.blocks.rows == rows
        assert made.inputs.blocks.columns == min(2 * rows, 19)  # 16 tokens each
