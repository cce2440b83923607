"""Every row of the model table, on a tiny random model of the real class."""

import math
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models import transformers

import vidsparse
from vidsparse.pipelines import taps
from vidsparse.pipelines.layout import OnlyDense
from vidsparse.pipelines.models import MODELS as ROWS
from vidsparse.pipelines.models import UNSUPPORTED, find_model
from vidsparse.sparse_attention import SparseAttention

MODELS = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
SPARSE: dict[str, Any] = {
    "min_tokens": 0,
    "block": 16,
    "density": 0.3,
    "warmup": 0.05,
    "ramp_until": 0.05,
}
POINT = (1, 2, 3)  # the token of the video that is changed: frame, row, column


@pytest.fixture(params=MODELS)
def tiny(request):
    return MODELS[request.param]()


@pytest.fixture
def calls(monkeypatch):
    """What the engine is called with."""
    seen = []
    engine_call = SparseAttention.__call__

    def spy(self, q, k, v, call, *rest):
        seen.append((call, q))
        return engine_call(self, q, k, v, call, *rest)

    monkeypatch.setattr(SparseAttention, "__call__", spy)
    return seen


def sparsify(target, *, strict=True, **changes):
    return vidsparse.sparsify(target, "draft", strict=strict, **(SPARSE | changes))


def run(tiny, **changes):
    """All tensors that a forward call returns."""
    with torch.no_grad():
        return tensors(tiny.module(**(tiny.inputs | changes), return_dict=False))


def tensors(made):
    if isinstance(made, torch.Tensor):
        return [made]
    return [tensor for each in made if each is not None for tensor in tensors(each)]


def traces(module):
    """All that a session could leave behind in a module tree."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs")
    return {
        path: (
            sorted(vars(child).keys() - {"_diffusers_hook"}),  # diffusers' own, made on demand
            list(child._modules),
            [list(getattr(child, name)) for name in hooks],
            vars(child).get("forward"),
            type(getattr(child, "processor", None)),
        )
        for path, child in module.named_modules()
    }


def assert_equal(made, expected, rtol=0.0, atol=0.0):
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_dense_steps_equal_the_untouched_model(tiny):
    """Bit for bit, where padding is not left out instead of masked."""
    expected = run(tiny)
    with sparsify(tiny.module, density=1.0):
        made = run(tiny)
    assert_equal(made, expected, **({"rtol": 1e-4, "atol": 1e-6} if tiny.masked else {}))


def test_a_plan_that_keeps_all_pairs_equals_the_untouched_model(tiny):
    """So the layout, the scale, the heads and the place of the output are right."""
    expected = run(tiny)
    with sparsify(tiny.module, density=0.9999) as session:
        made = run(tiny)
    assert session.stats.mean_density == 1
    assert session.stats.engines
    assert_equal(made, expected, rtol=1e-3, atol=1e-4)


def test_every_self_attention_layer_is_sparse_on_the_right_grid(tiny, calls):
    dense = run(tiny)
    with sparsify(tiny.module) as session:
        made = run(tiny)
    assert sorted({str(call.grid) for call, _ in calls}) == tiny.grids
    assert {call.layer for call, _ in calls} == set(range(tiny.layers))
    assert all(q.shape[1] == call.grid.tokens for call, q in calls)
    assert not session.stats.fallbacks
    assert session.stats.mean_density < 1
    assert session.stats.sigmas == {0: pytest.approx(0.75, abs=1e-3)}
    assert not all(torch.equal(one, other) for one, other in zip(made, dense, strict=True))


def test_tokens_are_in_raster_order(tiny, calls):
    """One patch of the latents is one token of the first layer: the one that the grid says."""
    with sparsify(tiny.module):
        run(tiny)
        before = [(call, q) for call, q in calls if call.layer == 0]
        calls.clear()
        run(tiny, **disturbed(tiny))
        after = [(call, q) for call, q in calls if call.layer == 0]
    for (call, q), (_, moved) in zip(before, after, strict=True):
        grid = call.grid
        frame, row, column = place(grid)
        token = grid.prefix + (frame * grid.height + row) * grid.width + column
        changed = (q != moved).flatten(2).any(dim=2).any(dim=0).nonzero().flatten().tolist()
        assert changed == [token]


def place(grid):
    frame, row, column = POINT
    return min(frame, grid.frames - 1), row, column


def disturbed(tiny):
    """The argument with the video, one token of it changed."""
    given = tiny.inputs[tiny.latents]
    latents = [x.clone() for x in given] if isinstance(given, list) else [given.clone()]
    grid = vidsparse.TokenGrid.parse(tiny.grids[0])
    for x in latents:
        token(x, tiny, place(grid), grid).add_(1.0)
    return {tiny.latents: latents if isinstance(given, list) else latents[0]}


def token(x, tiny, at, grid):
    """A view of the values that one token is made of."""
    frame, row, column = at
    if tiny.stacked:
        return x[:, -1, :, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    if tiny.axes is None:
        return x[:, tiny.start + (frame * grid.height + row) * grid.width + column]
    where = (frame + tiny.references, row, column)[-len(tiny.axes) :]
    for axis, index, size in zip(tiny.axes, where, tiny.patch, strict=True):
        x = x.narrow(axis, index * size, size)
    return x


def test_removal_restores_the_module_tree(tiny):
    expected, before = run(tiny), traces(tiny.module)
    session = sparsify(tiny.module)
    assert traces(tiny.module) != before
    assert taps.tapped_modules()
    run(tiny)
    session.remove()
    assert traces(tiny.module) == before
    assert taps.tapped_modules() == []
    assert_equal(run(tiny), expected)


def test_an_exception_in_the_middle_of_a_forward_call_leaves_the_model_clean(tiny):
    expected, before = run(tiny), traces(tiny.module)
    layer = find_model(tiny.module).layers(tiny.module)[-1]

    def stop(module, args):
        raise KeyboardInterrupt

    with sparsify(tiny.module):
        healthy = run(tiny)
        hook = layer.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny)
        hook.remove()
        assert_equal(run(tiny), healthy)
        hook = layer.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            run(tiny)
        hook.remove()
    assert taps.current.layer is None
    assert traces(tiny.module) == before
    assert_equal(run(tiny), expected)


def test_every_class_of_the_table_has_a_tiny_model():
    assert {type(make().module).__name__ for make in MODELS.values()} == set(ROWS)


def test_every_image_or_video_transformer_of_diffusers_is_in_the_table_or_refused():
    """A class that a new release brings is either supported or refused with its reason."""
    found: set[str] = set()
    named = re.compile(
        r"^class (\w+(?:2DModel|3DModel|OmniTransformer))\([^)]*ModelMixin", re.MULTILINE
    )
    for path in Path(transformers.__file__).parent.glob("*.py"):
        found |= set(named.findall(path.read_text()))
    found -= {"UNet2DModel"}
    assert len(found) > 50
    assert found <= set(ROWS) | set(UNSUPPORTED)
    assert set(ROWS) <= found


STACKED = {
    "cogvideox": "uncond first",
    "mochi": "uncond first",
    "qwen_image_edit": "calls",
    "ernie_image": "uncond first",
    "z_image": "cond first",
    "hunyuan_video_batch": "calls",
}


class Running:
    """A pipeline whose call is one forward call of its transformer."""

    def __init__(self, tiny, **says):
        self.components = {"transformer": tiny.module}
        vars(self).update(says)

    def __call__(self, tiny, **changes):
        return run(tiny, **changes)


def same_latents(tiny):
    """As guidance has them in both halves of a batch."""
    given = tiny.inputs[tiny.latents]
    if isinstance(given, list):
        return {tiny.latents: [given[0]] * len(given)}
    return {tiny.latents: given[:1].expand_as(given)}


def other_latents(tiny):
    """Of two prompts."""
    given = tiny.inputs[tiny.latents]
    made = [x + at for at, x in enumerate(given)]
    return {tiny.latents: made if isinstance(given, list) else torch.stack(made)}


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("is_guided", [True, False])
@pytest.mark.parametrize("said", ["do_classifier_free_guidance", "guidance_scale"])
def test_stacked_guidance_is_told_apart(name, said, is_guided, calls):
    """By what the running pipeline says, and what the call holds: it may also be two prompts."""
    tiny = MODELS[name]()
    value = is_guided if said == "do_classifier_free_guidance" else 5.0 if is_guided else 1.0
    pipe = Running(tiny, **{said: value})
    with sparsify(pipe):
        pipe(tiny, **other_latents(tiny))
        assert not {call.branch for call, _ in calls} & {"cond", "uncond"}
        calls.clear()
        run(tiny, **same_latents(tiny))
        assert not {call.branch for call, _ in calls} & {"cond", "uncond"}
        calls.clear()
        pipe(tiny, **same_latents(tiny))
    layer = [(call.branch, call.sample) for call, _ in calls if call.layer == tiny.layers - 1]
    if is_guided and STACKED[name] != "calls":
        assert sorted(layer) == [("cond", 0), ("uncond", 0)]
    else:
        assert {branch for branch, _ in layer} == {"call0"}
    if name == "mochi" and is_guided:  # the text of the first entry is the shorter one
        assert {call.branch: str(call.grid) for call, _ in calls} == {
            "uncond": "3x5x7+9",
            "cond": "3x5x7+12",
        }
    if name == "z_image" and is_guided:
        assert {call.branch: str(call.grid) for call, _ in calls if call.layer} == {
            "cond": "1x5x7+61",
            "uncond": "1x5x7+93",
        }


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("kandinsky5", {"sparse_params": {"to_fractal": False}}, "sparse attention of its own"),
        ("flux2", {"kv_cache_mode": "extract"}, "keys of reference images in a cache"),
        ("joyimage_plus", {"shape_list": [[(1, 5, 7)], [(1, 7, 5)]]}, "of a batch differ in size"),
        ("flux", {"img_ids": torch.zeros(35, 3)}, "ids of 35 image tokens span 1 x 1"),
        ("z_image", {"x": [[torch.zeros(4, 1, 10, 14)]]}, "in between text and image"),
        ("ltx_condition", {"video_coords": torch.rand(1, 3, 210)}, "not those of a video"),
    ],
)
def test_what_is_no_video_is_dense_with_a_reason(name, changes, reason):
    tiny = MODELS[name]()
    with pytest.raises(OnlyDense, match=reason):
        find_model(tiny.module).layout(tiny.module.config, tiny.inputs | changes, lambda b: [])


def test_a_layout_that_cannot_be_read_is_a_counted_fallback():
    tiny = MODELS["flux"]()
    changes = {"img_ids": torch.zeros(35, 3)}
    expected = run(tiny, **changes)
    with sparsify(tiny.module, strict=False) as session:
        assert_equal(run(tiny, **changes), expected)
    assert session.stats.fallbacks == {"the ids of 35 image tokens span 1 x 1": 2}


def test_unknown_tokens_are_never_taken_for_video():
    tiny = MODELS["wan"]()
    layout = find_model(tiny.module).layout(
        tiny.module.config, tiny.inputs, lambda batch: [(slice(None), "cond")]
    )
    with pytest.raises(OnlyDense, match="5 tokens are no video, where this model has none"):
        layout.parts(torch.Size((1, 110, 2, 12)), None)


def test_text_that_attends_causally_stays_exact_beside_a_sparse_image():
    tiny = MODELS["omnigen"]()
    seen = []
    layer = find_model(tiny.module).layers(tiny.module)[0]
    layer.register_forward_hook(lambda module, args, out: seen.append(out))
    run(tiny)
    with sparsify(tiny.module):
        run(tiny)
    dense, sparse = seen
    torch.testing.assert_close(sparse[:, :10], dense[:, :10], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(sparse[:, 10:], dense[:, 10:], atol=1e-3)


def test_a_mask_that_differs_between_image_tokens_is_dense_with_a_reason():
    tiny = MODELS["omnigen"]()
    mask = tiny.inputs["attention_mask"].clone()
    mask[1, -1, 20] = 0
    expected = run(tiny, attention_mask=mask)
    with sparsify(tiny.module, strict=False) as session:
        assert_equal(run(tiny, attention_mask=mask), expected)
    assert set(session.stats.fallbacks) == {
        "the model passes an attention mask that differs between queries"
    }


def test_causal_diffusion_forcing_is_dense_with_a_reason():
    """SkyReels-V2 masks the frames to come."""
    tiny = MODELS["skyreels_v2"]()
    tiny.module._set_ar_attention(2)
    changes = {
        "hidden_states": torch.randn(1, 16, 4, 10, 14),
        "timestep": torch.full((1, 4), 500.0),
        "enable_diffusion_forcing": True,
    }
    expected = run(tiny, **changes)
    with sparsify(tiny.module, strict=False) as session:
        assert_equal(run(tiny, **changes), expected)
    assert session.stats.fallbacks == {
        "the model passes an attention mask that differs between queries": 2
    }


@pytest.mark.parametrize("name", ["wan", "hunyuan_video", "cogvideox"])
def test_perturbed_attention_guidance_is_not_undone(name):
    """It replaces the attention that the model calls by the values, and must see it called."""
    tiny = MODELS[name]()
    with AttentionScoreSkipFunctionMode():
        expected = run(tiny)
    with sparsify(tiny.module, strict=False) as session:
        with AttentionScoreSkipFunctionMode():
            assert_equal(run(tiny), expected)
        assert session.stats.fallbacks == {"the guider leaves attention scores out": 2}
    assert not torch.equal(run(tiny)[0], expected[0])


@pytest.mark.parametrize(
    ("timestep", "sigma"),
    [(0.25 * math.log(80), 80 / 81), (0.0, 0.5), (0.25 * math.log(0.002), 0.002 / 1.002)],
)
def test_cosmos_1_tells_its_noise_as_a_logarithm(timestep, sigma):
    tiny = MODELS["cosmos_1"]()
    with sparsify(tiny.module) as session:
        run(tiny, timestep=torch.tensor([timestep]))
    assert session.stats.sigmas == {0: pytest.approx(sigma, abs=1e-3)}
