"""Blocks of keys smaller than those of queries: exact at full density, counted, text kept whole."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.kernels.validate import validated
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.pooled import subblock_mass
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

MEANS = {"estimator": "routing", "compensation": "centroid"}
CASES = [
    ("balanced", {"block": 64, "key_block": 16}),
    ("balanced", {"block": 32, "key_block": 48, "mass": "rows"}),
    ("balanced", {"block": 64, "key_block": 16} | MEANS),
    ("balanced", {"block": 64} | MEANS),
    ("balanced", {"block": 32, "key_block": 16, "compensation": "centroid"}),
    ("draft", {"block": 64, "key_block": 32, "compensation": "centroid"}),
    ("draft", {"block": 64, "key_block": 32, "estimator": "subblock", "anchor": "both"}),
    ("semantic", {"sides": "keys", "kv_clusters": 9, "block": 32}),
    ("semantic", {"sides": "queries", "q_clusters": 5, "key_block": 16}),
    ("semantic", {"sides": "queries", "q_clusters": 5, "block": 32}),
    ("semantic", {"q_clusters": 5, "kv_clusters": 9, "group": 4, "start": "tiles"}),
]
GRIDS = ["2x13x11", "7+3x9x11+5", "70+2x5x9", "1x2x2", "3x1x43+1"]


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def make(name, engine="cpu", **changes) -> Any:
    settings = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0, "correction": "none"}
    return SparseAttention(PRESETS[name].override(settings | changes), engine=engine, strict=True)


def qkv(grid, batch=2, heads=3):
    return [torch.randn(batch, grid.tokens, heads, 8) for _ in range(3)]


def call_on(grid, **changes):
    return Call(**{"grid": grid, "layer": 0, "step": 0, "progress": Progress.alone(0.5)} | changes)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_engines_agree_and_a_density_of_all_is_dense(name, changes, grid):
    grid = TokenGrid.parse(grid)
    q, k, v = qkv(grid)
    for density, is_dense in ((1 - 1e-9, True), (0.3, False)):
        outs, found = [], []
        for engine in ("cpu", "reference"):
            attention = make(name, engine, density=density, **changes)
            outs.append(attention(q, k, v, call_on(grid), dense))
            found.append(attention.stats.mean_density)
        torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)
        assert found[0] == found[1]
        if is_dense:
            torch.testing.assert_close(outs[0], dense(q, k, v), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_text_is_kept_and_the_density_counts_what_is_computed(name, changes, grid):
    grid = TokenGrid.parse(grid)
    works: list[Any] = []
    attention = make(name, density=0.3, **changes)
    attention.observers.append(lambda call, work, *tensors: works.append(work))
    attention(*qkv(grid), call_on(grid), dense)
    plan = validated(works[0].plan)
    pairs = plan.to_dense_mask().float()
    video_end = grid.prefix + grid.video_tokens
    for text in (pairs[:, :, : grid.prefix], pairs[:, :, video_end:], pairs[..., : grid.prefix]):
        assert bool(text.all())
    assert bool(pairs[..., video_end:].all())
    by_hand = pairs.sum(dim=(-2, -1))
    if plan.pooled is not None:
        skipped = ~plan.to_block_mask() & (plan.kv_sizes > 0).unsqueeze(-2)
        by_hand = by_hand + (skipped.sum(dim=-1) * plan.q_sizes).sum(dim=-1)
    expected = float((by_hand / grid.tokens**2).mean())
    assert attention.stats.mean_density == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("key_block", [16, 32, 48, 96])
def test_every_token_sees_its_own_block_of_keys(key_block):
    blocks = Blocks(TokenGrid(3, 9, 11), 64, torch.device("cpu"), key_block=key_block)
    at = torch.arange(blocks.grid.tokens)
    assert bool(blocks.always_kept[at // 64, at // key_block].all())
    assert int(blocks.always_kept.sum()) < blocks.always_kept.numel()


@pytest.mark.parametrize(("anchor", "rows", "columns"), [("keys", 0, 1), ("queries", 1, 0)])
def test_an_anchor_on_the_first_frame_is_cut_by_each_sides_blocks(anchor, rows, columns):
    grid = TokenGrid(4, 4, 8)  # 32 tokens a frame
    preset = PRESETS["draft"].override({"block": 32, "key_block": 16, "anchor": anchor})
    always = preset.policy.always(
        Inputs(blocks=Blocks(grid, 32, torch.device("cpu"), key_block=16))
    )
    always = always.expand(1, 1, -1, -1)[0, 0]
    assert bool(always[0].all()) == bool(rows)
    assert bool(always[:, :2].all()) == bool(columns)
    assert not bool(always[1:, 4:6].all())


def test_the_mass_of_a_block_of_keys_is_that_of_the_smaller_ones_in_it():
    grid = TokenGrid(2, 8, 16)
    q, k, v = (x.transpose(1, 2) for x in qkv(grid))

    def mass(key_block):
        blocks = Blocks(grid, 64, torch.device("cpu"), key_block=key_block)
        return subblock_mass(Inputs(blocks=blocks, q=q, k=k, v=v), 4)

    whole, half, quarter = mass(None), mass(32), mass(16)
    torch.testing.assert_close(half.unflatten(-1, (-1, 2)).logsumexp(dim=-1), whole)
    torch.testing.assert_close(quarter.unflatten(-1, (-1, 4)).logsumexp(dim=-1), whole)


@pytest.mark.parametrize("width", [12, 13])
@pytest.mark.parametrize(("name", "changes"), [*CASES, ("balanced", {})])
def test_a_plan_serves_a_branch_whose_text_after_the_video_is_longer(name, changes, width):
    """Also where only one side then has more blocks, and where a block of video gets text."""
    attention = make(name, density=0.2, replan=2, **changes)
    works: list[Any] = []
    attention.observers.append(lambda call, work, *tensors: works.append(work))
    grids = [TokenGrid(2, 8, width, 0, text) for text in (0, 1, 17, 60)]
    for grid in grids:
        attention(*qkv(grid), call_on(grid, branch=str(grid)), dense)
    first, *others = (validated(work.plan) for work in works)
    video = grids[0].video_tokens
    for plan in others:
        pairs = plan.to_dense_mask()
        assert bool(pairs[..., video:].all())
        assert bool(pairs[:, :, video:].all())
        assert bool((pairs[:, :, :video, :video] | ~first.to_dense_mask()).all())


@pytest.mark.parametrize("name", ["balanced", "semantic", "draft"])
def test_a_branch_in_other_blocks_plans_for_itself(monkeypatch, name):
    """Text may make one branch a long sequence, with larger blocks, and leave the other a short."""
    long = 230
    monkeypatch.setattr(
        "vidsparse.policies.policy.usual_block",
        lambda device, tokens, dim: 64 if tokens >= long else 32,
    )
    grids = [TokenGrid(2, 8, 14, 0, text) for text in (0, 20)]
    assert grids[0].tokens < long <= grids[1].tokens
    together, alone = (make(name, density=0.4, replan=2) for _ in range(2))
    given = [qkv(grid) for grid in grids]
    calls = [call_on(grid, branch=str(grid)) for grid in grids]
    outs = [together(*x, call, dense) for x, call in zip(given, calls, strict=True)]
    assert torch.equal(outs[1], alone(*given[1], calls[1], dense))
    assert together.stats.plans == {"made": 2}


@pytest.mark.parametrize("share_branches", [True, False])
@pytest.mark.parametrize(("name", "changes"), CASES)
def test_what_is_remembered_is_what_shapes_say(name, changes, share_branches):
    changes = changes | {"replan": 2, "share_branches": share_branches}
    attention, grid = make(name, density=0.2, **changes), TokenGrid(2, 8, 12, 3, 5)
    for branch in ("cond", "uncond"):
        attention(*qkv(grid), call_on(grid, branch=branch), dense)
    for on_host, held in (
        (False, attention.stats.memory_bytes),
        (True, attention.stats.host_memory_bytes),
    ):
        said = layer_state_bytes(attention.preset, grid, 3, 8, itemsize=4, batch=2, on_host=on_host)
        assert said.of_run(1) == held


def test_a_plan_of_an_earlier_step_is_used_with_these_keys():
    grid = TokenGrid(2, 8, 12, 3, 5)
    q, k, v = qkv(grid)
    for name, changes in CASES:
        attention = make(name, density=0.2, replan=2, **changes)
        first = attention(q, k, v, call_on(grid), dense)
        again = attention(q, k, v, call_on(grid, step=1), dense)
        if changes.get("mass") != "rows":
            torch.testing.assert_close(first, again)
        other = attention(q, k, -v, call_on(grid, step=1), dense)
        torch.testing.assert_close(other, -again)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "balanced",
            {"key_block": 24},
            "key_block must be a multiple of 16 from 16 to 256, got 24",
        ),
        ("balanced", {"key_block": 512}, "key_block must be a multiple of 16 from 16 to 256"),
        ("adaspa", {"key_block": 16}, "key_block=16 cuts keys finer than queries: use estimator"),
        ("radial", {"key_block": 16}, "key_block=16 cuts keys finer than queries: use estimator"),
        ("rectified", {"key_block": 16}, "any selector but threshold, and compensation none or"),
        ("svg", {"key_block": 16}, "key_block=16 cuts keys finer than queries"),
        ("semantic", {"key_block": 16}, "key_block does nothing .*: the clusters"),
        ("semantic", {"sides": "keys", "key_block": 16}, "key_block does nothing"),
        ("semantic", {"sides": "keys", "q_clusters": 16}, "q_clusters does nothing .* keys alone"),
        ("semantic", {"sides": "queries", "kv_clusters": 16}, "kv_clusters does nothing"),
        ("svg2", {"block": 32}, "block does nothing .* sizes of their own"),
        ("svg2", {"sides": "queries", "key_block": 16, "block": 32}, "block does nothing"),
        ("semantic", {"tile_width": 4}, "tile_width does nothing .* both stand in clusters"),
        (
            "semantic",
            {"start": "tiles", "seed": 3},
            "seed does nothing .* nothing is drawn",
        ),
        ("semantic", {"sides": "values"}, "sides takes both or keys or queries, got 'values'"),
        ("semantic", {"sides": "keys", "tile_width": 0}, "tile_width must be at least 1, got 0"),
        (
            "semantic",
            {"estimator": "value_aware", "mass": "rows"},
            "mass=rows draws rows in equal blocks, and a semantic order makes clusters",
        ),
    ],
)
def test_what_does_not_go_together_is_said(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


def test_parameters_are_listed_where_they_act():
    listed = {
        "balanced": {"block", "key_block"},
        "adaspa": {"block"},
        "radial": {"block"},
        "svg2": {"sides", "q_clusters", "kv_clusters"},
        "semantic": {"block", "sides", "q_clusters", "kv_clusters"},
    }
    every = {"block", "key_block", "sides", "q_clusters", "kv_clusters"}
    for name, names in listed.items():
        assert every & PRESETS[name].parameters().keys() == names
    keys = PRESETS["semantic"].override({"sides": "keys"})
    boxes = {"tile_frames", "tile_height", "tile_width"}
    assert (every | boxes) & keys.parameters().keys() == {"block", "sides", "kv_clusters"} | boxes
    queries = PRESETS["semantic"].override({"sides": "queries"})
    assert every & queries.parameters().keys() == {"block", "key_block", "sides", "q_clusters"}


def test_one_side_stays_in_boxes_and_the_other_is_clustered():
    grid = TokenGrid(2, 8, 12, 3, 5)
    q, k, v = (x.transpose(1, 2) for x in qkv(grid))
    for sides, clustered, boxed in (("keys", "kv", "q"), ("queries", "q", "kv")):
        order = PRESETS["semantic"].override({"sides": sides}).policy.order
        blocks = Blocks(grid, 32, torch.device("cpu"))
        made = order.arrange(Inputs(blocks=blocks, q=q, k=k, v=v, heads=3, remember=True))
        again = order.again(dataclasses.replace(made.inputs, blocks=blocks, q=q, k=k, v=v))
        assert getattr(made.inputs.blocks, f"{boxed}_offsets") is None
        assert getattr(made, f"{boxed}_order").shape == (1, 1, grid.tokens)
        assert getattr(made, f"{clustered}_order").shape == (2, 3, grid.tokens)
        assert torch.equal(
            getattr(made, f"{clustered}_order"), getattr(again, f"{clustered}_order")
        )
        side = "k" if sides == "keys" else "q"
        assert {*made.inputs.state.steps} == {f"{side} labels", f"{side} members"}
