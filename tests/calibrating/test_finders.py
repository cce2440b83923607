"""What finders see in a dense run: cases worked by hand."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.calibrated import Calibrated
from vidsparse.calibrating.finders import Choices, Margins, Masks
from vidsparse.calibrating.watch import parts_of, watched
from vidsparse.calibration import Visit
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.policies.observed import Observed, Sweep
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.stored_masks import StoredMasks, write_masks


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def run(preset, finder, call, grid, *, steps, scale=None):
    """A run of ``steps`` whose layer 0 calls attention with the same q, k and v at each."""
    engine = SparseAttention(preset, strict=True)
    engine.observers.append(finder)
    finder.start_run()
    q, k, v = call
    for progress in Progress.first(steps).steps():
        at = Call(grid=grid, layer=0, step=progress.at, progress=progress, layers=1, scale=scale)
        engine(q, k, v, at, dense)


def test_a_watched_run_is_dense_and_counts_as_sparse_where_the_preset_would_be():
    grid, seen = TokenGrid(2, 8, 8), []
    preset = PRESETS["sta"].override({"warmup": 0.25, "block": 16})
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 8)
    engine = SparseAttention(watched(preset), strict=True)
    engine.observers.append(lambda call, *rest: seen.append(call.step))
    for step in range(4):
        call = Call(grid=grid, layer=0, step=step, progress=list(Progress.first(4).steps())[step])
        torch.testing.assert_close(engine(q, k, v, call, dense), dense(q, k, v))
    assert seen == [1, 2, 3]


def test_parts_of_a_run_end_where_steps_do_and_equal_neighbours_are_one():
    found = {
        ((at / 4, (at + 1) / 4), expert, layer): (("a", "b") if at < 2 else ("b", "b"))
        for at in range(1, 4)
        for expert in ("transformer",)
        for layer in (0, 10, 2)
    }
    layers = {"0": ("a", "b"), "2": ("a", "b"), "10": ("a", "b")}
    later = dict.fromkeys(layers, ("b", "b"))
    parts = parts_of(found, ["transformer"])
    assert parts == ((0.5, tuple(layers.items())), (1.0, tuple(later.items())))
    two = parts_of({((0.0, 0.5), "transformer_2", 0): (1.0,)}, ["transformer", "transformer_2"])
    assert two == ((1.0, (("transformer_2/0", (1.0,)),)),)


def test_a_run_that_changes_transformers_elsewhere_takes_the_nearest_part():
    parts = (
        (0.25, (("transformer/0", (1.0,)),)),
        (0.5, (("transformer/0", (2.0,)),)),
        (1.0, (("transformer_2/0", (3.0,)),)),
    )
    layers = (("transformer", 1, 2), ("transformer_2", 1, 2))
    file = Calibrated("x", layers, "lite-attention", parts)
    at = [(done, file.of("transformer", 0, done, 2)) for done in (0.0, 0.4, 0.7)]
    assert at == [(0.0, (1.0, 1.0)), (0.4, (2.0, 2.0)), (0.7, (2.0, 2.0))]
    assert file.of("transformer_2", 0, 0.1, 2) == (3.0, 3.0)
    by_hand = Calibrated("x", (), "lite-attention", parts)  # a layer that is left out is so meant
    assert by_hand.of("transformer", 0, 0.7, 2) is None


def test_heads_take_what_loses_least_over_all_calls():
    # a head that looks along its own frame, one that looks along its own place
    grid = TokenGrid(8, 4, 8)
    f = torch.arange(8).repeat_interleave(32)
    place = torch.arange(32).repeat(8)
    x = torch.stack([F.one_hot(f, 32), F.one_hot(place, 32)], dim=1)[None].float() * 12
    v = torch.randn(1, grid.tokens, 2, 32)
    preset = PRESETS["svg"].override({"block": 16, "density": 0.25, "warmup": 0.0})
    preset = preset.override({"dense_layers": 0})
    finder = Choices(preset)
    run(watched(preset), finder, (x, x, v), grid, steps=2, scale=1.0)
    assert {at: values for (at, _, _), values in finder.found().items()} == {
        (0.0, 0.5): ("fhw", "hwf"),
        (0.5, 1.0): ("fhw", "hwf"),
    }


def test_margins_of_a_run_hold_the_error_though_what_is_dropped_stays_away():
    # scores of 4 blocks: -6, 5, 8 and 0; going down from block 3 the leads are inf, 8, -3, -14
    scores = torch.tensor([-6.0, 5.0, 8.0, 0.0]).repeat_interleave(16)[None, :, None, None]
    q, k, v = torch.ones_like(scores), scores, torch.randn(1, 64, 1, 1)
    exact = dense(q, k, v).transpose(1, 2)
    preset = PRESETS["lite-attention"].override({"block": 16})
    finder = Margins(preset, 1e-3)
    run(watched(preset), finder, (q, k, v), TokenGrid(1, 1, 64), steps=3)
    first, second, third = (values[0] for values in finder.found().values())
    rule = Observed(margin=0.0, sweep=Sweep.ALTERNATE)
    every = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    visit = Visit(q, k, v, every, block=16, rule=rule, always=torch.eye(4, dtype=torch.bool))
    # block 1 holds e^-3 of the mass and stays: a margin of -5 keeps its lead of -4.3 in log2
    assert first == -5.0
    left = visit.left(-5.0)
    assert left[0, 0, 2].tolist() == [False, True, True, True]
    again = Visit(q, k, v, left, block=16, rule=rule, step=1, always=torch.eye(4, dtype=torch.bool))
    assert torch.isneginf(again.lead[0, 0, 2, 0])
    # going up block 3 lags by 8 units and holds e^-8: any margin will do; then down as at first
    assert (second, third) == (0.0, -5.0)
    assert float((again.out - exact).abs().sum() / exact.abs().sum()) < 1e-3


def test_masks_are_the_blocks_of_most_mass_in_the_order_of_each_head(tmp_path):
    grid = TokenGrid(8, 4, 8)
    place = torch.arange(32).repeat(8)
    x = F.one_hot(place, 32)[None, :, None].float().expand(1, -1, 2, -1) * 12
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) * 0.01
    v = torch.randn(1, grid.tokens, 2, 32)
    preset = PRESETS["paro"].override({"block": 16, "density": 0.125, "min_tokens": 0})
    layers = (("transformer", 1, 2),)
    # a head with the frames of a place side by side, and one in raster order
    parts = ((1.0, (("0", ("hwf", "fhw")),)),)
    chosen = preset.override({"choices": Calibrated("x", layers, "paro", parts)})
    finder = Masks(chosen)
    run(watched(chosen), finder, (x, x, v), grid, steps=4, scale=1.0)
    ends, bits = finder.parts()
    assert ends == (0.25, 0.5, 1.0)  # two of the first half, and one for all others
    assert sorted(bits) == [(part, "transformer", 0) for part in range(3)]
    # two places a block of 16: side by side, a place's frames are in its own block alone
    masks = write_masks(
        tmp_path / "m.safetensors", bits, layers=layers, grid=grid, block=16,
        density=finder.density, ends=ends,
    )  # fmt: skip
    stored = chosen.override({"estimator": "stored", "selector": "threshold", "mask_file": masks})
    works = []
    engine = SparseAttention(stored, strict=True)
    engine.observers.append(lambda call, work, *rest: works.append(work))
    call = Call(grid=grid, layer=0, step=3, progress=list(Progress.first(4).steps())[3], scale=1.0)
    out = engine(x, x, v, call, dense)
    assert torch.equal(works[0].plan.to_block_mask()[0, 0], torch.eye(16, dtype=torch.bool))
    exact = dense(x * 32**0.25, x * 32**0.25, v).transpose(1, 2)
    torch.testing.assert_close(out.transpose(1, 2)[:, 0], exact[:, 0], atol=1e-3, rtol=1e-3)
    # in raster order a place lies in every second block: 8 of 16, of which two a row are kept
    far = works[0].plan.to_block_mask()[0, 1]
    assert far.float().mean() == pytest.approx(0.125, abs=0.01)
    at = torch.arange(16)
    assert not far[(at[:, None] - at) % 2 == 1].any()
    assert finder.density == works[0].plan.density == pytest.approx((1 / 16 + 1 / 8) / 2, abs=0.01)


def test_stored_masks_are_of_their_file_grid_heads_and_block(tmp_path):
    grid, layers = TokenGrid(1, 8, 8, suffix=4), (("transformer", 1, 2),)
    bits = torch.full((2, 5, 1), 0b00001, dtype=torch.uint8)  # every row sees the first block
    path = tmp_path / "m.safetensors"
    made = write_masks(
        path, {(0, "transformer", 0): bits}, layers=layers, grid=grid, block=16, density=0.3,
        ends=(1.0,),
    )  # fmt: skip
    assert StoredMasks.read(str(path), made.sha256) == made
    preset = PRESETS["draft"].override(
        {"estimator": "stored", "selector": "threshold", "mask_file": str(path), "block": 16,
         "min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0}
    )  # fmt: skip

    def plan(grid, heads=2):
        works, engine = [], SparseAttention(preset, strict=True)
        engine.observers.append(lambda call, work, *rest: works.append(work))
        q, k, v = torch.randn(3, 1, grid.tokens, heads, 8)
        engine(q, k, v, Call(grid=grid, layer=0, step=0, progress=Progress.first(2)), dense)
        return works[0].plan.to_block_mask()[0, 0]

    longer = plan(TokenGrid(1, 8, 8, suffix=20))  # text of another length is whole all the same
    by_hand = torch.eye(6, dtype=torch.bool)
    by_hand[:, 0] = by_hand[4:] = by_hand[:, 4:] = True
    assert torch.equal(longer, by_hand)
    assert torch.equal(plan(TokenGrid(1, 8, 8)), by_hand[:4, :4])
    for other, heads, message in (
        (TokenGrid(1, 8, 16), 2, "are of 1 x 8 x 8 tokens, and this video has 1 x 8 x 16"),
        (TokenGrid(1, 8, 8, prefix=1), 2, "are of 0 text tokens before the video"),
        (grid, 3, "are of 2 heads in layer 0, which has 3"),
    ):
        with pytest.raises(BadInputError, match=message):
            plan(other, heads)
    for changes, message in (
        ({"block": 32}, "of blocks of 16: give that block"),
        ({"selector": "top_k", "density": 0.2}, "change its mask_file"),
        ({"mask_file": "none"}, "takes mask_file=FILE"),
    ):
        with pytest.raises(BadInputError, match=message):
            preset.override(changes)
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(BadInputError, match="its checksum is another"):
        StoredMasks.read(str(path), made.sha256)
    with pytest.raises(BadInputError, match="cannot read the masks"):
        StoredMasks.read(str(tmp_path / "none.safetensors"))
