"""LPIPS with random backbones, against torchmetrics' network with the same ones."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.lpips import LPIPSNetwork, lpips


def torchvision_features(backbone):
    """The convolutional part of torchvision's networks, written out, of random weights."""
    layers, channels = [], 3
    if backbone == "alex":
        plan = [(64, 11, 4, 2), "M", (192, 5, 1, 2), "M"]
        plan += [(384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), "M"]
        pool = nn.MaxPool2d(3, 2)
    else:
        widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", *[512, 512, 512, "M"] * 2]
        plan = [w if w == "M" else (w, 3, 1, 1) for w in widths]
        pool = nn.MaxPool2d(2, 2)
    step: Any
    for step in plan:
        if step == "M":
            layers.append(pool)
        else:
            width, size, stride, padding = step
            layers += [nn.Conv2d(channels, width, size, stride, padding), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)  # else deep features hardly differ
            channels = width
    return nn.Sequential(*layers)


@pytest.fixture(params=["alex", "vgg"])
def both(request, tmp_path, monkeypatch):
    """Our network and torchmetrics', of the same random backbone."""
    from torchmetrics.functional.image import lpips as theirs

    features = torchvision_features(request.param)
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_, **__: features)
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    torch.save(state | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "net.pth")
    oracle = theirs._NoTrainLpips(net=request.param, pnet_rand=True)
    return LPIPSNetwork(request.param, tmp_path / "net.pth"), oracle


@pytest.fixture
def network(tmp_path):
    torch.save(torchvision_features("alex").state_dict(), tmp_path / "bare.pth")
    return LPIPSNetwork("alex", tmp_path / "bare.pth")


def test_each_frame_equals_torchmetrics_of_the_same_weights(both, make_scene):
    ours, oracle = both
    scene = make_scene(frames=2, height=64, width=80)
    frames = scene.noise(40)
    x, y = (torch.from_numpy(clip).movedim(-1, 1) / 127.5 - 1 for clip in (frames, scene.dense))
    with torch.no_grad():
        expected = oracle(x, y).flatten()
    assert expected.min() > 1e-5
    assert lpips(frames, scene.dense, ours).tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_identical_frames_give_exactly_zero_and_damage_more(network, scene):
    assert lpips(scene.dense, scene.dense, network).tolist() == [0.0] * 9
    little, much = (lpips(scene.noise(levels), scene.dense, network).mean() for levels in (5, 50))
    assert 0 < little < much


def test_weights_of_the_other_backbone_are_refused(tmp_path):
    torch.save(torchvision_features("vgg").state_dict(), tmp_path / "vgg.pth")
    with pytest.raises(BadInputError, match=r"weights lpips_alex: .*vgg\.pth does not fit"):
        LPIPSNetwork("alex", tmp_path / "vgg.pth")


def test_a_missing_layer_is_refused(tmp_path):
    state = torchvision_features("alex").state_dict()
    del state["10.bias"]
    torch.save(state, tmp_path / "cut.pth")
    with pytest.raises(BadInputError, match=r"10\.bias.*torchvision's AlexNet"):
        LPIPSNetwork("alex", tmp_path / "cut.pth")


def test_a_frame_too_small_is_refused(network):
    small = np.zeros((1, 31, 64, 3), np.uint8)
    with pytest.raises(BadInputError, match="32 x 32 pixels, got 31 x 64"):
        lpips(small, small, network)


def test_the_smallest_frame_is_measured(network):
    rng = np.random.default_rng(0)
    frames, reference = rng.integers(0, 256, (2, 1, 32, 32, 3), dtype=np.uint8)
    assert lpips(frames, reference, network).item() > 0


def test_clips_weigh_the_same_whatever_their_length(network, scene):
    metric = Accumulated("lpips_alex", network=network)
    metric.update(scene.noise(30)[:2], scene.dense[:2])
    metric.update(scene.dense, scene.dense)
    bad = metric.values[0].mean().item()
    assert metric.compute().item() == pytest.approx(bad / 2)
