"""VBench's learned dimensions: the formulas on features we choose, the networks at random."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

from vidsparse.errors import BadInputError
from vidsparse.metrics import networks
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.dino import DINO
from vidsparse.metrics.learned import (
    aesthetic_quality,
    background_consistency,
    subject_consistency,
)
from vidsparse.metrics.scores import Scorer
from vidsparse.metrics.weights import Weights


class Colours(nn.Module):
    """A network whose feature is the mean colour, of a clip of pure colours a chosen vector."""

    size = 32

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return images.mean(dim=(2, 3))


@pytest.fixture
def clip_folder(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def solid(*colours, size=40):
    return np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours])


def normalised(colour, mean, spread):
    return (np.array(colour) / 255 - mean) / spread


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def test_consistency_is_that_of_vbench_worked_by_hand():
    mean, spread = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    colours = [(255, 10, 10), (240, 80, 20), (0, 0, 255), (250, 20, 30)]
    features = [normalised(colour, mean, spread) for colour in colours]
    expected = [
        (max(0, cosine(now, then)) + max(0, cosine(now, features[0]))) / 2
        for then, now in zip(features[:-1], features[1:], strict=True)  # noqa: RUF007
    ]
    assert min(expected[0], expected[2]) > 0
    assert expected[1] == 0  # both cosines negative: clipped, each by itself
    found = subject_consistency(solid(*colours), Colours())  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_frozen_clip_is_perfectly_consistent(scene, clip_folder):
    network = networks.CLIPImages(clip_folder, "clip_b32")
    assert background_consistency(scene.frozen(), network).tolist() == pytest.approx([1] * 8)
    assert background_consistency(scene.jitter(20), network).min() < 1 - 1e-6


def test_frames_are_resized_as_vbench_does(make_scene):
    """Shorter side to 224 (DINO) without a crop, or to the network's size and a centre crop."""
    clip = make_scene(frames=2, height=48, width=81).dense
    network = Colours()
    subject_consistency(clip, network)  # type: ignore[arg-type]
    background_consistency(clip, network)  # type: ignore[arg-type]
    assert [tuple(seen.shape) for seen in network.seen] == [(2, 3, 224, 378), (2, 3, 32, 32)]
    columns = np.zeros((2, 32, 64, 3), np.uint8)
    columns[:, :, 16:48] = 255
    background_consistency(columns, network)  # type: ignore[arg-type]
    assert network.seen[-1].min() > 1  # nothing but the white middle


def test_clip_frames_are_resized_bicubically_and_dinos_bilinearly():
    """The one overshoots at an edge, the other does not."""
    network = Colours()
    edge = np.zeros((2, 20, 20, 3), np.uint8)
    edge[:, :, 10:] = 255
    subject_consistency(edge, network)  # type: ignore[arg-type]
    background_consistency(edge, network)  # type: ignore[arg-type]
    highest = [seen[:, 0].max().item() for seen in network.seen]
    white = [(1 - 0.485) / 0.229, (1 - 0.48145466) / 0.26862954]
    assert highest[0] == pytest.approx(white[0])
    assert highest[1] > white[1] + 0.05


def test_a_long_clip_is_seen_eight_frames_at_a_time(scene):
    network = Colours()
    clip = np.concatenate([scene.dense, scene.dense])
    subject_consistency(clip, network)  # type: ignore[arg-type]
    assert [len(seen) for seen in network.seen] == [8, 8, 2]


def test_aesthetic_quality_is_the_head_on_unit_features_over_ten():
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    spread = np.array([0.26862954, 0.26130258, 0.27577711])
    head = nn.Linear(3, 1)
    head.weight.data, head.bias.data = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([5.0])
    feature = normalised((200, 100, 50), mean, spread)
    expected = (feature / np.linalg.norm(feature) @ [1, 2, 3] + 5) / 10
    found = aesthetic_quality(solid((200, 100, 50)), Colours(), head)  # type: ignore[arg-type]
    assert found.tolist() == pytest.approx([expected], abs=1e-5)


def test_the_metrics_average_clips(scene, clip_folder, tmp_path):
    ViTModel(
        ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=256)
    ).save_pretrained(tmp_path / "vit")
    clip_network = networks.CLIPImages(clip_folder, "clip_b32")
    metrics = [
        Accumulated("vbench/subject_consistency", network=DINO(tmp_path / "vit")),
        Accumulated("vbench/background_consistency", network=clip_network),
        Accumulated("vbench/aesthetic_quality", network=clip_network, head=nn.Linear(16, 1)),
    ]
    for metric in metrics:
        metric.update(scene.dense[:3])
        first = metric.compute().item()
        metric.update(scene.frozen())
        last = metric.values[1].mean().item()
        assert metric.compute().item() == pytest.approx((first + last) / 2)


def test_smaller_relatives_of_vbenchs_networks_are_refused(clip_folder, tmp_path):
    ViTModel(
        ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=256)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(BadInputError, match=r"1 layers of 64, patches of 16.*DINO ViT-B/16"):
        networks.dino_b16(tmp_path / "vit")
    with pytest.raises(BadInputError, match=r"32 wide with patches of 8.*CLIP ViT-B/32"):
        networks.clip_b32(clip_folder)
    with pytest.raises(BadInputError, match=r"32 wide with patches of 8.*CLIP ViT-L/14"):
        networks.clip_l14(clip_folder)
    torch.save(nn.Linear(512, 1).state_dict(), tmp_path / "head.pth")
    with pytest.raises(BadInputError, match=r"aesthetic_head.*768.*LAION"):
        networks.aesthetic_head(tmp_path / "head.pth")


def test_a_folder_that_holds_no_clip_is_refused_without_a_download(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=r"weights clip_b32: .*empty does not fit"):
        networks.CLIPImages(tmp_path / "empty", "clip_b32")
    ViTModel(
        ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=256)
    ).save_pretrained(tmp_path / "vit")
    with pytest.raises(BadInputError, match="does not fit"):
        networks.CLIPImages(tmp_path / "vit", "clip_b32")


def test_a_single_frame_has_no_consistency(scene):
    with pytest.raises(BadInputError, match="subject consistency needs at least 2 frames, got 1"):
        subject_consistency(scene.dense[:1], Colours())  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["lpips_alex", "lpips_vgg", "dino", "clip_b32"])
@pytest.mark.parametrize("kind", ["text", "numbered", "list", "module", "odd", "config"])
def test_a_file_of_another_kind_is_refused_in_a_sentence(tmp_path, key, kind):
    path = tmp_path / "weights.pth"
    if kind == "text":
        path.write_text("hello")  # to an unpickler, commands
    elif kind == "config":
        config = {"model_type": "clip", "vision_config": {"hidden_size": 10**9}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        path = tmp_path
    else:
        names = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        saved = {
            "numbered": {1: torch.zeros(2)},
            "list": [torch.zeros(2)],
            "module": torch.nn.Linear(2, 2),
            "odd": {name: torch.zeros(()) for name in names},
        }
        torch.save(saved[kind], path)
    with pytest.raises(BadInputError, match=f"weights {key}: ") as caught:
        Scorer(Weights(**{key: path}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
