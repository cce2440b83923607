"""All scores of a clip: complete, plain JSON, and silent about what was not measured."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.metrics.catalogue import DENSE, METRICS, info
from vidsparse.metrics.fidelity import fidelity
from vidsparse.metrics.lpips import _alexnet, _vgg16
from vidsparse.metrics.motion import dynamic_degree
from vidsparse.metrics.scores import Scorer, score_clip
from vidsparse.metrics.warp import flow_difference, warp_error
from vidsparse.metrics.weights import Weights

NEED_WEIGHTS = {m for m, facts in METRICS.items() if facts.tier in ("weights", "judge")}


def test_every_metric_of_the_catalogue_is_measured_but_those_without_weights(make_scene):
    scene = make_scene(frames=3, height=161, width=170)
    result = score_clip(scene.noise(), scene.dense)
    assert {m for m in result.values if not m.endswith(DENSE)} == METRICS.keys() - NEED_WEIGHTS
    alone = {m for m, facts in METRICS.items() if facts.better == "closer to dense"} - NEED_WEIGHTS
    assert {m for m in result.values if m.endswith(DENSE)} == {m + DENSE for m in alone}


def test_the_numbers_are_those_of_the_metrics(scene):
    noisy = scene.noise()
    result = score_clip(noisy, scene.dense, fps=8)
    plain = fidelity(noisy, scene.dense)
    assert result.values["psnr"] == pytest.approx(plain.psnr)
    assert result.values["psnr_worst_frame"] == pytest.approx(plain.psnr_worst_frame)
    assert result.values["psnr_pooled"] == pytest.approx(plain.psnr_pooled)
    assert result.values["ssim_worst_frame"] == pytest.approx(plain.ssim_worst_frame)
    assert result.curves["ssim"] == pytest.approx(list(plain.frame_ssim))
    own = warp_error(scene.dense, scene.dense).mean().item()
    assert result.values["proxy/warp_error@dense"] == pytest.approx(own)
    moving = dynamic_degree(noisy, 8).item()
    assert result.values["proxy/dynamic_degree"] == pytest.approx(moving)


def test_identical_clips_are_infinitely_close_and_json_can_say_so(scene):
    result = score_clip(scene.dense, scene.dense)
    values = json.loads(json.dumps(result.values, allow_nan=False))
    assert result.identical_frames == 9
    for metric in ("psnr", "psnr_pooled", "psnr_worst_frame", "temporal_psnr"):
        assert values[metric] is None
    assert values["ssim"] == pytest.approx(1)
    assert values["proxy/flow_difference"] == values["proxy/nss_distance"] == 0
    for metric in values:
        if metric + DENSE in values:
            assert values[metric] == values[metric + DENSE]


def test_curves_have_an_entry_per_frame_and_none_where_nothing_is_defined(scene):
    frames = scene.noise()
    frames[3] = scene.dense[3]
    result = score_clip(frames, scene.dense)
    assert {len(curve) for curve in result.curves.values()} == {9}
    assert result.curves["psnr"][3] is None
    assert result.identical_frames == 1
    assert result.curves["proxy/flow_difference"][0] is None
    changes = flow_difference(frames, scene.dense).tolist()
    assert result.curves["proxy/flow_difference"][1:] == pytest.approx(changes)
    assert {"ssim", "temporal_psnr", "vbench/temporal_flickering", "proxy/warp_error"} <= (
        result.curves.keys()
    )
    assert "proxy/nss_distance" not in result.curves


SMOOTH, DYNAMIC = "proxy/motion_smoothness", "proxy/dynamic_degree"
FLOW = {SMOOTH, DYNAMIC, "proxy/flow_difference", "proxy/warp_error"}
SSIM = {"ssim", "ssim_worst_frame"}


@pytest.mark.parametrize(
    ("frames", "height", "width", "left_out"),
    [
        (9, 64, 64, set()),
        (9, 40, 64, {"proxy/nss_distance"}),
        (9, 16, 16, {"proxy/nss_distance", *FLOW}),
        (9, 8, 8, {"proxy/nss_distance", *FLOW, *SSIM}),
        (2, 64, 64, {SMOOTH, DYNAMIC}),
        (1, 64, 64, {"temporal_psnr", "vbench/temporal_flickering", *FLOW}),
    ],
)
def test_a_clip_too_small_or_short_for_a_metric_leaves_it_out(frames, height, width, left_out):
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 256, (2, frames, height, width, 3), dtype=np.uint8)
    measured = {info(metric).id for metric in score_clip(*clips).values}
    assert METRICS.keys() - NEED_WEIGHTS - measured == left_out | {"ms_ssim"}


def test_weights_are_loaded_once_and_add_their_metric(scene, tmp_path, monkeypatch):
    torch.save(_alexnet().state_dict(), tmp_path / "alex.pth")
    torch.save(_vgg16().state_dict(), tmp_path / "vgg.pth")
    weights = Weights(lpips_alex=tmp_path / "alex.pth", lpips_vgg=tmp_path / "vgg.pth")
    scorer = Scorer(weights)
    (tmp_path / "alex.pth").unlink()
    first = scorer.score(scene.noise()[:2], scene.dense[:2])
    same = scorer.score(scene.dense[:2], scene.dense[:2])
    for metric in ("lpips_alex", "lpips_vgg"):
        assert (first.values[metric] or 0) > 0
        assert len(first.curves[metric]) == 2
        assert same.values[metric] == 0


def test_the_learned_dimensions_are_measured_on_dense_too(scene, tmp_path, monkeypatch):
    class Mean(nn.Module):
        size = 32

        def __init__(self, *_):
            super().__init__()
            self.anchor = nn.Parameter(torch.zeros(1))

        def forward(self, images):
            return images.mean(dim=(2, 3))

    for name in ("dino_b16", "clip_b32", "clip_l14"):
        monkeypatch.setattr(f"vidsparse.metrics.networks.{name}", Mean)
    head = nn.Linear(3, 1)
    monkeypatch.setattr("vidsparse.metrics.networks.aesthetic_head", lambda _: head)
    keys = ("dino", "clip_b32", "clip_l14", "aesthetic_head")
    result = score_clip(
        scene.noise(40), scene.dense, weights=Weights(**dict.fromkeys(keys, tmp_path))
    )
    for metric in ("subject_consistency", "background_consistency", "aesthetic_quality"):
        assert result.values[f"vbench/{metric}"] != result.values[f"vbench/{metric}@dense"]


def test_weights_that_do_not_fit_are_refused_before_anything_is_measured(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(BadInputError, match=r"weights lpips_alex: .*a\.pth does not fit"):
        Scorer(Weights(lpips_alex=tmp_path / "a.pth"))


def test_other_shapes_are_refused(scene):
    with pytest.raises(BadInputError, match="differ in shape"):
        score_clip(scene.dense[:4], scene.dense)
