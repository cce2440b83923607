"""Some tokens of each small box attend for all of it."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.head_sharing import HeadShare
from vidsparse.policies.coreset import Coreset, boxes_of
from vidsparse.policies.geometric import Neighbourhood
from vidsparse.policies.merged import Merged
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 6, 8, prefix=16, suffix=5)  # 32 boxes of 12, half of 192 is six blocks of 16
CALL = Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.9))


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(engine, tensors, call) -> torch.Tensor:
    q, k, v = tensors
    return engine(q, k, v, call, dense)


def make(**changes):
    settings: dict[str, Any] = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0, "block": 16}
    return SparseAttention(PRESETS["coreset"].override(settings | changes), strict=True)


def qkv(grid=GRID, heads=2):
    return [torch.randn(1, grid.tokens, heads, 8) for _ in range(3)]


def by_hand(q, k, v):
    """One head after another, box by box, as the paper has it."""
    out = dense(q, k, v)
    video = torch.arange(192).view(4, 6, 8) + 16
    for head in range(q.shape[2]):
        kept, copies = [], []
        for f, h, w in [(f, h, w) for f in (0, 2) for h in (0, 3) for w in (0, 2, 4, 6)]:
            box = video[f : f + 2, h : h + 3, w : w + 2]
            centre = int(box[1, 1, 1])
            others = [t for t in box.flatten().tolist() if t != centre]
            cosine = {
                t: F.cosine_similarity(q[0, t, head], q[0, centre, head], dim=0) for t in others
            }
            others.sort(key=lambda t: float(cosine[t]))
            kept += [centre, *others[:5]]
            copies += [(t, centre) for t in others[5:]]
        seen = [*range(16), *kept, *range(208, 213)]
        part = dense(
            q[:, kept, head : head + 1], k[:, seen, head : head + 1], v[:, seen, head : head + 1]
        )
        out[:, kept, head] = part[:, :, 0]
        for token, centre in copies:
            out[:, token, head] = out[:, centre, head]
    return out


@pytest.mark.parametrize("again", [False, True])
def test_the_centre_and_the_five_least_alike_attend_for_their_box(again):
    engine, first = make(), qkv()
    tensors = [first[0], *qkv()[1:]] if again else first
    out = attend(engine, first, CALL)
    if again:  # another branch takes the same tokens
        out = attend(engine, tensors, dataclasses.replace(CALL, branch="uncond"))
    torch.testing.assert_close(out, by_hand(*tensors), atol=1e-5, rtol=1e-4)


def test_equal_tokens_of_a_box_lose_nothing_but_block_rounding():
    grid = TokenGrid(4, 6, 8)
    call = dataclasses.replace(CALL, grid=grid)
    box = boxes_of(grid, (2, 3, 2), torch.device("cpu"))
    tensors = [x.index_select(1, box.centre) for x in qkv(grid)]
    torch.testing.assert_close(attend(make(), tensors, call), dense(*tensors), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("density", [0.1, 0.25, 0.6])
def test_the_density_is_that_of_the_pairs_of_what_is_kept(density):
    grid = TokenGrid(8, 16, 16)
    engine = make(density=density)
    attend(engine, qkv(grid), dataclasses.replace(CALL, grid=grid))
    # rows that are not kept still read one block, their own
    assert engine.stats.mean_density == pytest.approx(density + 1 / 128, abs=0.012)


@pytest.mark.parametrize("sizes", [(2, 3, 2), (1, 4, 5), (3, 1, 1)])
def test_boxes_hold_every_token_once_and_smaller_ones_have_a_centre(sizes):
    grid = TokenGrid(3, 5, 7)
    box = boxes_of(grid, sizes, torch.device("cpu"))
    assert sorted(box.members[box.inside].tolist()) == list(range(105))
    assert box.is_centre.sum(dim=1).tolist() == [1] * len(box.members)
    assert len(box.members) == math.prod(-(-n // m) for n, m in zip((3, 5, 7), sizes, strict=True))
    for row, inside in zip(box.members.tolist(), box.inside.tolist(), strict=True):
        tokens = [t for t, is_in in zip(row, inside, strict=True) if is_in]
        assert len({int(box.centre[t]) for t in tokens}) == 1
        assert int(box.centre[tokens[0]]) in tokens


def test_a_centre_that_is_no_number_speaks_for_nobody():
    engine, (q, k, v) = make(), qkv()
    centre = int(boxes_of(TokenGrid(4, 6, 8), (2, 3, 2), torch.device("cpu")).centre[0]) + 16
    q[:, centre] = math.nan
    out = engine(q, k, v, CALL, dense)
    assert out[:, centre].isnan().all()
    assert out.isfinite().all(dim=-1).sum() == out[..., 0].numel() - 2


@pytest.mark.parametrize("again", [False, True])
def test_tokens_merge_into_what_they_are_most_like_in_the_drawn_frame(make_inputs, again):
    """Chunks of 2 frames and one left over: by hand, frame by frame."""
    grid = TokenGrid(5, 4, 8, prefix=3, suffix=2)
    q, k, v = (x.transpose(1, 2) for x in qkv(grid))
    inputs = make_inputs(grid, 16, q=q, k=k, v=v, density=0.5, heads=2, remember=True)
    order = Merged(chunk_size=2)
    arranged = order.arrange(inputs)
    arranged = order.again(inputs) if again else arranged
    drawn = torch.Generator().manual_seed(0)
    key = F.normalize(k[:, :, 3:163].transpose(1, 2).flatten(2), dim=-1)[0].view(5, 32, 16)
    source = {t: t for t in range(165)}
    share = (160 - 0.5**0.5 * 160) / 64
    for start in (0, 2):
        into = start + int(torch.randint(2, (), generator=drawn))
        other = 2 * start + 1 - into
        likeness, best = (key[other] @ key[into].T).max(dim=1)
        for t in likeness.argsort(descending=True)[: round(share * 32)].tolist():
            source[3 + 32 * other + t] = 3 + 32 * into + int(best[t])
    kept = [t for t in range(3, 163) if source[t] == t]
    left = [t for t in range(3, 163) if source[t] != t]
    places = [0, 1, 2, *kept, *left, 163, 164]
    assert arranged.q_order is not None
    assert arranged.inputs.copies is not None
    assert arranged.q_order.tolist() == [[places]]
    assert arranged.inputs.kept == 3 + len(kept)
    by_hand = [places.index(source[t]) for t in places]
    assert arranged.inputs.copies.tolist() == [[by_hand, by_hand]]


def test_heads_that_devices_share_do_not_merge(make_inputs):
    grid = TokenGrid(2, 4, 8)
    share = HeadShare(order=(0, 1), devices=2, rank=0, exchange=lambda x: x)
    q, k, v = (x.transpose(1, 2) for x in qkv(grid))
    with pytest.raises(BadInputError, match="here devices share the heads"):
        Merged().arrange(make_inputs(grid, 16, q=q, k=k, v=v, density=0.5, heads=2, share=share))


def test_two_equal_frames_merge_into_one_and_the_output_is_exact_of_what_is_kept():
    """Their rule weighs a token that stands for two as one; with all tokens doubled that is all."""
    grid = TokenGrid(2, 8, 8)
    tensors = [x[:, :64].repeat(1, 2, 1, 1) for x in qkv(grid)]
    call = dataclasses.replace(CALL, grid=grid)
    settings = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0, "block": 16, "density": 0.25}
    engine = SparseAttention(PRESETS["vidtome"].override(settings), strict=True)
    torch.testing.assert_close(attend(engine, tensors, call), dense(*tensors), atol=1e-5, rtol=1e-4)
    assert engine.stats.mean_density == pytest.approx(0.25 + 1 / 16, abs=0.001)


def test_inward_windows_are_of_one_size():
    """FreeSwim: 20 rows, half a window of 5: query 0 sees 0 to 10, query 10 5 to 15, 19 9 to 19."""
    grid, rows = TokenGrid(1, 20, 1), torch.arange(20)
    window = Neighbourhood(window_frames=4096, window_height=11, window_width=11)
    at = torch.stack([torch.zeros_like(rows), rows, torch.zeros_like(rows)], dim=-1)
    seen = window.distance(grid, at[:, None], at) <= 1
    assert [seen[q].nonzero().flatten().tolist() for q in (0, 10, 19)] == [
        list(range(11)), list(range(5, 16)), list(range(9, 20))
    ]  # fmt: skip
    rule: Any = PRESETS["freeswim"].policy.estimator
    assert (rule.window_height, rule.window_width) == (2 * 15 + 1, 2 * 26 + 1)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("coreset", {"box_width": 0}, "box_width must be at least 1, got 0"),
        ("coreset", {"box_width": 1, "box_height": 1, "box_frames": 1}, "from 2 to 256 tokens"),
        ("draft", {"order": "coreset"}, "for all takes estimator=kept, selector=threshold"),
        ("vidtome", {"chunk_size": 1}, "chunk_size must be at least 2 frames, got 1"),
        ("draft", {"estimator": "kept"}, "estimator=kept takes an order that keeps some tokens"),
        ("coreset", {"density": "none"}, "give it a density"),
        ("coreset", {"anchor": "keys"}, "the order moves keys by what they are"),
    ],
)
def test_what_does_not_go_together_is_refused(name, changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS[name].override(changes)
    assert Coreset().prunes
