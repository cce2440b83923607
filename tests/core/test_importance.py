"""Keys sorted by importance within segments."""

import dataclasses
from typing import Any

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.permute import unpermute_tokens
from vidsparse.policies.importance import Importance
from vidsparse.policies.pooled import Pooled
from vidsparse.presets import PRESETS


def tokens(grid, heads=2):
    return {name: torch.randn(1, heads, grid.tokens, 8) for name in "qkv"}


def test_heavy_keys_at_the_ends_of_four_blocks_gather_in_the_first(make_inputs):
    grid = TokenGrid(1, 8, 16)  # two segments of four blocks of 16
    qkv: dict[str, Any] = tokens(grid, heads=1)
    qkv["q"][..., 0] = 1.0
    qkv["k"][..., 0] = 0.0
    heavy = [15, 31, 47, 63, 79]
    qkv["k"][:, :, heavy, 0] = 40.0
    arranged: Any = Importance(segment=64).arrange(make_inputs(grid, 16, **qkv))
    order = arranged.kv_order[0, 0].tolist()
    assert sorted(order[:4]) == heavy[:4]
    assert order[64] == heavy[4]
    assert arranged.q_order is None
    assert arranged.inputs.q is qkv["q"]
    assert torch.equal(unpermute_tokens(arranged.inputs.k, arranged.kv_order), qkv["k"])
    mass = Pooled().estimate(arranged.inputs).scores.softmax(dim=-1)
    assert (mass[..., [0, 4]].sum(dim=-1) > 0.99).all()


def test_the_order_is_that_of_the_mean_share_of_the_judges(make_inputs):
    grid = TokenGrid(2, 5, 7, prefix=5, suffix=9)  # 84 tokens: segments of 32, 32 and 20
    qkv: dict[str, Any] = tokens(grid)
    order = Importance(segment=32, judges=10_000)  # all rows judge, each once
    arranged: Any = order.arrange(make_inputs(grid, 16, scale=0.3, **qkv))
    share = (qkv["q"] @ qkv["k"].mT * 0.3).softmax(dim=-1).mean(dim=2)[0]
    for head in range(2):
        by_hand = []
        for start in range(0, 84, 32):
            segment = range(start, min(start + 32, 84))
            video = sorted(
                (t for t in segment if 5 <= t < 75), key=lambda t: -float(share[head, t])
            )
            by_hand += [t for t in segment if t < 5] + video + [t for t in segment if t >= 75]
        assert arranged.kv_order[0, head].tolist() == by_hand


@pytest.mark.parametrize("segment", [32, 300])
def test_another_branch_finds_the_order_of_the_first(make_inputs, segment):
    grid, other = TokenGrid(4, 5, 7, 3, 4), TokenGrid(4, 5, 7, 3, 11)
    order = Importance(segment=segment)
    inputs = make_inputs(grid, 16, remember=True, **tokens(grid))
    made: Any = order.arrange(inputs)
    again: Any = order.again(
        dataclasses.replace(make_inputs(other, 16, **tokens(other)), state=inputs.state)
    )
    assert torch.equal(again.kv_order[..., :143], made.kv_order[..., :143])
    assert again.kv_order[0, 0, 143:].tolist() == list(range(143, 154))
    expected = order.label_bytes(grid, 16) * 2
    assert inputs.state.host_nbytes() == expected == 140 * 2 * (1 if segment == 32 else 2)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pbs", {"segment": 1}, "segment must be from 2 to 32768 keys, got 1"),
        ("pbs", {"judges": 0}, "judges must be at least 1, got 0"),
        ("pbs", {"segment": 128}, "segment=128 lies within one block of 128 keys"),
        ("pbs", {"anchor": "keys"}, "anchor=keys keeps the blocks of the first frame"),
        ("sta", {"order": "importance"}, "order=importance moves keys by what they are"),
        ("lite", {"order": "importance"}, "order=importance moves keys by what they are"),
        ("paro", {"order": "importance"}, "one that follows the data cannot compete"),
    ],
)
def test_what_does_not_go_with_the_order_is_refused(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)


def test_it_is_an_order_for_other_methods_too():
    for name in ("balanced", "xattention", "draft", "psa"):
        preset = PRESETS[name].override({"order": "importance", "segment": 512})
        assert preset.policy.order == Importance(segment=512)
