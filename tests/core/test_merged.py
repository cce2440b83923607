"""VidToMe's merging across chunks: by hand, token by token, and as its authors set it."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.merged import Merged
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.schedule import Schedule
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(7, 2, 4, prefix=3, suffix=2)  # chunks of 2, 2, 2 and 1 frames of 8 tokens
ORDER = Merged(chunk_size=2, global_share=0.75)


def qkv(grid, batch=1):
    return [torch.randn(batch, 2, grid.tokens, 8) for _ in range(3)]


def by_hand(key, layer, step, share):
    """Whose output each video token of one sample takes, and which chunks were the source.

    Args:
        key: Of all heads together, ``(video tokens, width)``.
        layer: Of the call.
        step: Of the call.
        share: Of what may merge within chunks.
    """
    drawn = torch.Generator().manual_seed(layer * 100_003 + step)
    unit = F.normalize(key, dim=-1)
    takes, known, sources = list(range(len(key))), [], []

    def merge(tokens, targets, count):
        likeness, best = (unit[tokens] @ unit[targets].T).max(dim=1)
        for at in likeness.argsort(descending=True)[:count].tolist():
            takes[tokens[at]] = targets[int(best[at])]

    for start in range(0, 7, 2):
        frames = list(range(start, min(start + 2, 7)))
        kept = frames.pop(int(torch.randint(len(frames), (), generator=drawn)))
        others = [t for frame in frames for t in range(8 * frame, 8 * frame + 8)]
        target = list(range(8 * kept, 8 * kept + 8))
        if others:
            merge(others, target, round(share * len(others)))
        own = [t for t in sorted(others + target) if takes[t] == t]
        if start and float(torch.rand((), generator=drawn)) > 0.5:
            merge(own, known, round(0.75 * share * len(own)))
            sources.append(start)
        known = [takes[t] for t in own]
    return [takes[takes[t]] for t in range(len(key))], sources


@pytest.mark.parametrize("again", [False, True])
def test_chunks_merge_with_what_the_chunks_before_attend_through(make_inputs, again):
    """Chunks are the source in some calls and not in others; two samples, and another branch."""
    seen, grid = set(), GRID
    q, k, v = qkv(grid, batch=2)
    share = ORDER._share(grid, math.sqrt(0.4) * 56)
    for step in range(6):
        inputs = make_inputs(
            grid, 16, q=q, k=k, v=v, density=0.4, heads=2, layer=1, step=step, remember=True
        )
        arranged = ORDER.arrange(inputs)
        arranged = ORDER.again(dataclasses.replace(inputs, step=step + 1)) if again else arranged
        assert arranged.q_order is not None
        assert arranged.inputs.copies is not None
        for sample in range(2):
            key = k[sample, :, 3:59].transpose(0, 1).flatten(1)
            takes, sources = by_hand(key, 1, step, share)
            seen.add(tuple(sources))
            kept = [t for t in range(56) if takes[t] == t]
            left = [t for t in range(56) if takes[t] != t]
            places = [0, 1, 2, *(t + 3 for t in kept + left), 59, 60]
            assert arranged.q_order[sample, 0].tolist() == places
            assert arranged.inputs.kept == 3 + len(kept)
            source = [0, 1, 2, *(takes[t] + 3 for t in kept + left), 59, 60]
            assert arranged.inputs.copies[sample, 0].tolist() == [places.index(t) for t in source]
    assert len(seen) > 2  # or the coins do nothing
    assert any(4 in sources and 2 in sources for sources in seen)  # through what had merged itself


def test_a_worked_case(make_inputs):
    """Two chunks of two frames of two tokens, whose keys are angles in a plane.

    The last frame of each chunk is drawn and the second chunk is the source. Within: 1 (35) merges
    into 2 (30), 5 (81) into 7 (80). Of what is left of the second chunk, 4 (26), 6 (50) and 7 (80),
    one merges: 4, into the global 2 (30) at 4 degrees, where 6 and 7 are 15 away from 0 (65).
    """
    grid = TokenGrid(4, 1, 2)
    degrees = [65.0, 35.0, 30.0, 0.0, 26.0, 81.0, 50.0, 80.0]
    angle = torch.tensor(degrees).deg2rad()
    key = torch.stack([angle.cos(), angle.sin()], dim=-1)[None, None]
    step = next(s for s in range(100) if draws(s) == (1, 1, True))
    share = 0.5  # half of two tokens, and .75 x .5 of three
    density = _density_of(share, 2, 2)
    inputs = make_inputs(
        grid, 16, q=key, k=key, v=key, density=density, heads=1, step=step, remember=True
    )
    copies = ORDER.arrange(inputs).inputs.copies
    order = ORDER.arrange(inputs).q_order
    assert order is not None
    assert copies is not None
    assert order.tolist() == [[[0, 2, 3, 6, 7, 1, 4, 5]]]
    assert order[0, 0][copies[0, 0]].tolist() == [0, 2, 3, 6, 7, 2, 2, 7]


def draws(step):
    """The frame of each of two chunks of two, and whether the second is the source."""
    drawn = torch.Generator().manual_seed(step)
    first, second = (int(torch.randint(2, (), generator=drawn)) for _ in range(2))
    return first, second, float(torch.rand((), generator=drawn)) > 0.5


def _density_of(share, frames, tokens):
    """Mean square of what two chunks keep, over the one coin, of all pairs."""
    own = frames - share * (frames - 1)
    kept = 2 * own, 2 * own - 0.75 * share * own
    return sum(each**2 for each in kept) / 2 / (2 * frames) ** 2


@pytest.mark.parametrize("density", [0.15, 0.5, 0.9])
def test_the_density_is_that_of_the_mean_over_coins(make_inputs, density):
    grid = TokenGrid(8, 4, 8)
    q, k, v = qkv(grid)
    kept = []
    for step in range(200):
        inputs = make_inputs(grid, 16, q=q, k=k, v=v, density=density, heads=2, step=step)
        kept.append(ORDER.arrange(inputs).inputs.kept)
    shares = [(each / 256) ** 2 for each in kept]
    assert sum(shares) / 200 == pytest.approx(density, rel=0.05)
    assert max(shares) > density > min(shares)


def test_the_preset_merges_as_its_authors_do():
    """Of the other three frames .9, of what is left .8; at 21 latent frames of a Wan video."""
    order: Any = PRESETS["vidtome"].policy.order
    density: Any = PRESETS["vidtome"].policy.density
    grid = TokenGrid(21, 30, 52)
    share = order._share(grid, math.sqrt(density) * grid.video_tokens)
    assert order.chunk_size == 4
    assert share == pytest.approx(0.9, abs=0.001)
    assert order.global_share * share == pytest.approx(0.8, abs=0.001)


def test_a_plan_that_is_used_again_keeps_its_coins():
    """At the next step others would fall."""
    preset = PRESETS["vidtome"].override(
        {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0, "block": 16, "chunk_size": 2,
         "density": 0.3}
    )  # fmt: skip
    preset = dataclasses.replace(preset, schedule=Schedule(warmup=0, ramp_until=0, replan=8))
    engine, grid = SparseAttention(preset, strict=True), TokenGrid(8, 4, 8)
    q, k, v = (x.transpose(1, 2) for x in qkv(grid))

    def out(step):
        call = Call(grid=grid, layer=0, step=step, progress=Progress.alone(0.9))
        return engine(q, k, v, call, lambda q, k, v: q)

    first = out(0)
    assert all(torch.equal(out(step), first) for step in range(1, 8))
    assert not torch.equal(out(8), first)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(BadInputError, match=f"at least 0 and below 1, got {share:g}"):
        Merged(global_share=share)
