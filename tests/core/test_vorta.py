"""VORTA: heads under coreset attention beside others, routed by measured error or by a file."""

import runpy
from pathlib import Path

import pytest
import torch

from vidsparse.calibrated import write_calibrated
from vidsparse.errors import BadInputError
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.choice import CHOICE, _arranged, losses
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.pruned_heads import copied_error
from vidsparse.policies.sampled import Samples
from vidsparse.presets import PRESETS
from vidsparse.sparse_attention import SparseAttention

CASE = runpy.run_path(str(Path(__file__).with_name("test_coreset.py")))
GRID, CALL, dense, by_hand, qkv = (CASE[n] for n in ("GRID", "CALL", "dense", "by_hand", "qkv"))
WINDOW = {"min_tokens": 0, "block": 16, "tile_frames": 2, "tile_height": 2, "tile_width": 4,
          "unit_frames": 2, "unit_height": 2, "unit_width": 4, "window_frames": 2,
          "window_height": 2, "window_width": 4}  # fmt: skip


def vorta(**changes):
    return PRESETS["vorta"].override(WINDOW | changes)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_each_head_is_its_expert_exactly(tmp_path, branch):
    names = ["window", "coreset", "full", "coreset"]
    path = write_calibrated(tmp_path / "router.toml", "vorta", [(1.0, {"0": names})])
    engine, (q, k, v) = SparseAttention(vorta(choices=str(path)), strict=True), qkv(heads=4)
    works = []
    engine.observers.append(lambda call, work, *rest: works.append(work))
    out = engine(q, k, v, CALL, dense)
    if branch == "uncond":  # takes the same tokens, from what the first remembers
        k, v = qkv(heads=4)[1:]
        out = engine(q, k, v, CASE["dataclasses"].replace(CALL, branch="uncond"), dense)
    torch.testing.assert_close(out[:, :, 2], dense(q, k, v)[:, :, 2], atol=1e-5, rtol=1e-4)
    coreset = by_hand(q, k, v)
    for head in (1, 3):
        torch.testing.assert_close(out[:, :, head], coreset[:, :, head], atol=1e-5, rtol=1e-4)
    alone = PRESETS["sta"].policy.estimator  # the window by itself, without alternatives
    policy = vorta().policy
    bare = CASE["dataclasses"].replace(policy, alternatives=None)
    window = CASE["dataclasses"].replace(vorta(), policy=bare)
    assert type(alone) is type(policy.estimator)
    only = SparseAttention(window, strict=True)(q, k, v, CALL, dense)
    torch.testing.assert_close(out[:, :, 0], only[:, :, 0], atol=1e-5, rtol=1e-4)
    # six of twelve tokens, so a quarter of the pairs, beside text; everything; a window
    density = works[0].plan.head_density()[0]
    assert density[2] == 1
    assert 0.25 < density[1] == density[3] < 0.45
    assert density[0] < 0.5


def inputs_of(tensors, **rest):
    q, k, v = (x.transpose(1, 2) for x in tensors)
    blocks = Blocks(GRID, 16, q.device)
    return Inputs(blocks=blocks, q=q, k=k, v=v, heads=q.shape[1], scale=q.shape[-1] ** -0.5, **rest)


def test_the_error_of_copies_is_that_of_the_rule_by_hand():
    tensors = qkv()
    inputs, coreset = inputs_of(tensors), vorta().policy.candidates[1]
    rows = torch.tensor([3, 16, 17, 40, 100, 150, 207, 210])  # text at both ends
    samples = Samples.at(inputs, rows)
    found = copied_error(_arranged(coreset, inputs), samples)
    wrong = (by_hand(*tensors) - dense(*tensors))[:, rows].square().sum(dim=-1)
    wrong[:, [0, -1]] = 0
    torch.testing.assert_close(found, wrong.mean(dim=1), atol=1e-5, rtol=1e-4)


def test_heads_are_routed_by_error_and_cost(tmp_path):
    # a head whose boxes are of equal tokens, one that looks at single tokens far away, and one
    # that looks at its own tile
    q, k, v = qkv(heads=3)
    boxes = CASE["boxes_of"](CASE["TokenGrid"](4, 6, 8), (2, 3, 2), torch.device("cpu"))
    for x in (q, k, v):
        x[:, 16:-5, 0] = x[:, 16:-5, 0][:, boxes.centre]
    far = torch.randn(192, 8) * 6
    q[0, 16:-5, 1], k[0, 16:-5, 1] = far, far.roll(96, dims=0)
    place = torch.arange(192).view(4, 6, 8)
    tile = (place // 96 * 6 + place % 48 // 8 // 2 * 2 + place % 8 // 4).flatten()
    q[0, 16:-5, 2] = k[0, 16:-5, 2] = torch.randn(12, 8)[tile] * 6
    preset = vorta()
    inputs = inputs_of((q, k, v))
    lost = losses(preset.policy, inputs, None, lambda each, at: each.estimator.estimate(at))
    assert lost[2].tolist() == [[pytest.approx(0.5, abs=1e-4)] * 3]
    assert lost[1, 0, 0] == pytest.approx(
        0.125, abs=5e-3
    )  # a quarter of the cost; text weighs more
    engine, chosen = SparseAttention(preset, strict=True), []
    engine.observers.append(lambda call, work, *rest: chosen.append(work.inputs.common.get(CHOICE)))
    engine(q, k, v, CALL, dense)
    assert chosen[0].tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "coreset"}, "takes estimator=kept|static orders"),
        ({"selector": "top_k", "density": 0.2}, "takes a density of its own"),
        ({"compensation": "centroid"}, "takes no compensation"),
    ],
)
def test_what_does_not_go_beside_an_order_that_prunes_is_refused(changes, message):
    with pytest.raises(BadInputError, match=message):
        vorta().override(changes)
