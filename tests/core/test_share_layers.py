"""Neighbouring layers that use one plan."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vidsparse.calibrated import write_calibrated
from vidsparse.errors import BadInputError
from vidsparse.footprint import layer_state_bytes
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(4, 6, 7)
CALL = Call(grid=GRID, layer=0, step=0, progress=Progress.alone(0.9), layers=16)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def attend(engine, tensors, call) -> torch.Tensor:
    q, k, v = tensors
    return engine(q, k, v, call, dense)


def qkv(heads=3, grid=GRID):
    return [torch.randn(1, grid.tokens, heads, 8) for _ in range(3)]


def make(name, **changes):
    settings: dict[str, Any] = {"min_tokens": 0, "warmup": 0.0, "ramp_until": 0.0}
    if PRESETS[name].policy.mean_density is not None:
        settings["density"] = 0.25
    if "block" in PRESETS[name].parameters():
        settings["block"] = 16
    engine = SparseAttention(PRESETS[name].override(settings | changes), strict=True)
    works: list[Any] = []
    engine.observers.append(lambda call, work, *tensors: works.append((call.layer, work)))
    return engine, works


def masks(works):
    return [work.plan.to_block_mask() for _, work in works]


def test_two_of_sixteen_layers_select_and_the_others_follow():
    """Layers 0 and 1 are dense; 2 selects for 2 to 8, 9 for 9 to 15."""
    engine, works = make("tidal", dense_layers=2)
    for step in range(2):
        for layer in range(16):
            for branch in ("cond", "uncond"):
                call = dataclasses.replace(CALL, layer=layer, step=step, branch=branch)
                attend(engine, qkv(), call)
    made = {"made": 4, "kept": 4, "of another layer": 48}
    assert engine.stats.plans == made == engine.stats.to_dict()["plans"]
    assert "48 calls ran the plan of another layer, 8 not" in engine.stats.summary()
    found = masks(works)
    assert [layer for layer, _ in works[::2]] == [*range(2, 16)] * 2
    for step in range(2):
        for start in (0, 14):
            group = found[28 * step + start : 28 * step + start + 14]
            assert all(torch.equal(mask, group[0]) for mask in group)
    assert not torch.equal(found[0], found[14])
    assert not torch.equal(found[0], found[28])


@pytest.mark.parametrize("name", ["semantic", "paro", "pbs", "draft"])
@pytest.mark.parametrize("share_branches", [True, False])
def test_orders_choices_and_residuals_go_with_a_plan_of_another_layer(name, share_branches):
    changes: dict[str, Any] = {"share_layers": 3, "share_branches": share_branches, "replan": 2}
    changes |= {"compensation": "residual"} if name == "draft" else {}
    engine, works = make(name, **changes)
    for step in range(4):
        for layer in range(4):
            for branch in ("cond", "uncond"):
                tensors = qkv()
                call = dataclasses.replace(CALL, layer=layer, step=step, branch=branch)
                out = attend(engine, tensors, call)
                assert out.isfinite().all()
                if name == "draft" and step % 2 == 0:  # measured for every layer by itself
                    torch.testing.assert_close(out, dense(*tensors), atol=1e-5, rtol=1e-4)
    by_call = {(n // 8, n % 8 // 2, n % 2): work for n, (_, work) in enumerate(works)}
    for step in range(4):
        for layer in range(3):
            for branch in range(2):
                first = by_call[step, 0, 0 if share_branches else branch]
                one: Any = by_call[step, layer, branch]
                assert torch.equal(one.plan.to_block_mask(), first.plan.to_block_mask())
                for a, b in ((one.q_order, first.q_order), (one.kv_order, first.kv_order)):
                    assert a is b or torch.equal(a, b)
    makers = 2 * 2 * (1 if share_branches else 2)  # steps, groups, branches
    assert engine.stats.plans["made"] == makers


def test_a_layer_whose_first_was_left_out_plans_for_the_rest():
    engine, works = make("draft", share_layers=4)
    for layer in (1, 2, 3):
        attend(engine, qkv(), dataclasses.replace(CALL, layer=layer))
    assert engine.stats.plans == {"made": 1, "of another layer": 2}
    assert len({mask.numpy().tobytes() for mask in masks(works)}) == 1


def test_an_unknown_step_shares_nothing_and_a_new_generation_counts_anew():
    engine, _ = make("draft", share_layers=4)
    for layer in (0, 1):
        attend(engine, qkv(), dataclasses.replace(CALL, layer=layer, known=False))
    assert engine.stats.plans == {"made": 2}
    engine.start_generation()
    assert engine.stats.plans == {}


def test_layers_of_other_heads_are_refused():
    engine, _ = make("draft", share_layers=2)
    attend(engine, qkv(3), CALL)
    with pytest.raises(BadInputError, match="layer 1 has 4 heads, and layer 0, whose plan it"):
        attend(engine, qkv(4), dataclasses.replace(CALL, layer=1))


def test_neighbours_remember_one_plan():
    sizes = []
    for layers in (1, 3):
        engine, _ = make("draft", share_layers=layers)
        for layer in range(3):
            attend(engine, qkv(), dataclasses.replace(CALL, layer=layer))
        sizes.append(engine.stats.host_memory_bytes)
        held = layer_state_bytes(engine.preset, GRID, 3, 8, on_host=True)
    assert sizes == [3 * held.common, held.common]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("psa", "plans depend on levels"),
        ("lite", "on observations of their own layer"),
        ("radial", "made of the geometry"),
        ("vmoba", "observations of their own layer"),
        ("auto", "the error is measured of each layer"),
    ],
)
def test_layers_that_cannot_share_say_why(name, message):
    with pytest.raises(BadInputError, match=f"'{name}' takes share_layers=1 alone: .*{message}"):
        PRESETS[name].override({"share_layers": 2})
    assert "share_layers" not in PRESETS[name].parameters()


def test_parts_that_cannot_share_leave_it_out_and_none_is_refused():
    assert PRESETS["tidal"].override({"order": "cycle"}).schedule.share_layers == 1
    with pytest.raises(BadInputError, match="differs from layer to layer"):
        PRESETS["draft"].override({"order": "cycle", "share_layers": 2})
    with pytest.raises(BadInputError, match="share_layers must be at least 1, got 0"):
        PRESETS["tidal"].override({"share_layers": 0})


def test_layers_whose_heads_a_file_names_do_not_share(tmp_path):
    path = write_calibrated(tmp_path / "orders.toml", "paro", [(1.0, {"0": ["hwf"]})])
    with pytest.raises(BadInputError, match="a file of choices names what the heads of each layer"):
        PRESETS["paro"].override({"choices": path, "share_layers": 2})
