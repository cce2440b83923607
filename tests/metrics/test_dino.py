"""Our DINO against transformers' vision transformer and against its authors' format."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import ViTConfig, ViTModel

from vidsparse.errors import BadInputError
from vidsparse.metrics.dino import DINO


@pytest.fixture
def theirs():
    """A small transformer of random weights, two heads of DINO's 64 channels."""
    config = ViTConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        image_size=64,
        layer_norm_eps=1e-6,
    )
    model = ViTModel(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.1)
    return model


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def as_the_authors_name_them(ours):
    """The state of our network under the names of dino_vitbase16_pretrain.pth."""
    state = {}
    for name, tensor in ours.state_dict().items():
        for old, new in {
            "positions": "pos_embed",
            "patches.": "patch_embed.proj.",
            "layers.": "blocks.",
            "self_attn.in_proj_": "attn.qkv.",
            "self_attn.out_proj.": "attn.proj.",
            "linear1.": "mlp.fc1.",
            "linear2.": "mlp.fc2.",
        }.items():
            name = name.replace(old, new)
        state[name] = tensor
    return state


def test_a_transformers_folder_gives_transformers_features(theirs, folder):
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images).last_hidden_state[:, 0]
        assert torch.allclose(DINO(folder)(images), expected, atol=1e-5)


def test_the_authors_file_gives_the_same_features(folder, tmp_path):
    ours = DINO(folder)
    torch.save(as_the_authors_name_them(ours), tmp_path / "dino.pth")
    again = DINO(tmp_path / "dino.pth")
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(again(images), ours(images))
    assert (again.width, again.patch, again.depth) == (128, 16, 2)


def test_positions_of_another_size_are_stretched_as_dino_does(folder):
    """By a factor a tenth of a patch above the exact one, rows before columns."""
    ours = DINO(folder)
    found = ours._positions(4, 7)
    square = ours.positions[:, 1:].mT.reshape(1, 128, 4, 4)
    expected = interpolate(square, scale_factor=(4.1 / 4, 7.1 / 4), mode="bicubic")
    assert expected.shape[-2:] == (4, 7)
    assert torch.equal(found[0, 1 + 7], expected[0, :, 1, 0])
    assert torch.equal(found[:, 0], ours.positions[:, 0])


def test_wide_images_are_close_to_transformers(theirs, folder):
    images = torch.randn(1, 3, 64, 112)
    with torch.inference_mode():
        expected = theirs(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        assert torch.allclose(DINO(folder)(images), expected, atol=1e-2)


def test_other_weights_are_refused(tmp_path, folder):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(BadInputError, match=r"has no layers\.0\.linear1\.weight, patches"):
        DINO(tmp_path / "a.pth")
    state = as_the_authors_name_them(DINO(folder))
    del state["blocks.1.attn.qkv.bias"]
    torch.save(state, tmp_path / "b.pth")
    with pytest.raises(BadInputError, match=r"does not fit.*in_proj_bias"):
        DINO(tmp_path / "b.pth")
