"""Local weights: read without running code, checked, and refused with the file that is needed."""

import hashlib
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.metrics.weights import NEEDED, Weights, load_strictly, read_state


def test_every_field_says_what_belongs_there():
    assert list(NEEDED) == list(Weights.__dataclass_fields__)


@pytest.mark.parametrize("key", list(NEEDED))
def test_a_path_that_does_not_exist_is_refused_naming_the_file_that_is_needed(key, tmp_path):
    with pytest.raises(BadInputError) as error:
        Weights(**{key: tmp_path / "nothing.pth"})
    assert key in str(error.value)
    assert "nothing.pth" in str(error.value)
    assert NEEDED[key] in str(error.value)


@pytest.mark.parametrize(
    ("given", "missing"), [("clip_l14", "aesthetic_head"), ("aesthetic_head", "clip_l14")]
)
def test_aesthetic_quality_needs_both_its_parts(given, missing, tmp_path):
    with pytest.raises(BadInputError, match=f"but {missing} is missing"):
        Weights(**{given: tmp_path})


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "model.safetensors"])
def test_files_and_folders_are_read(name, tmp_path):
    state = {"weight": torch.arange(3.0)}
    write = save_file if name.endswith("safetensors") else torch.save
    write(state, tmp_path / name)
    path = tmp_path if name.startswith("model") else tmp_path / name
    assert torch.equal(read_state(path, "dino")["weight"], state["weight"])


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"nor a folder with model\.safetensors.*DINO ViT-B/16"):
        read_state(tmp_path, "dino")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_refused(content, tmp_path):
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(BadInputError, match=r"weights lpips_vgg: .*a\.pth cannot be read.*VGG16"):
        read_state(tmp_path / "a.pth", "lpips_vgg")


def test_code_in_a_file_never_runs(tmp_path):
    ran = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return (ran.touch, ())

    (tmp_path / "a.pth").write_bytes(pickle.dumps(Attack(), protocol=2))
    with pytest.raises(BadInputError, match="cannot be read"):
        read_state(tmp_path / "a.pth", "dino")
    torch.save({"weight": Attack()}, tmp_path / "b.pth")
    with pytest.raises(BadInputError, match="cannot be read"):
        read_state(tmp_path / "b.pth", "dino")
    assert not ran.exists()


def test_a_file_that_holds_no_tensors_by_name_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "a.pth")
    with pytest.raises(BadInputError, match="holds no state dict"):
        read_state(tmp_path / "a.pth", "dino")


def test_a_file_whose_name_holds_its_hash_must_have_that_hash(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.pth")
    digest = hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest()
    good = (tmp_path / "a.pth").rename(tmp_path / f"alexnet-owt-{digest[:8]}.pth")
    assert read_state(good, "lpips_alex")
    bad = good.rename(tmp_path / "alexnet-owt-7be5be79.pth")
    with pytest.raises(BadInputError, match=f"damaged, its SHA-256 begins with {digest[:8]}"):
        read_state(bad, "lpips_alex")


def test_a_state_must_fit_to_the_last_tensor(tmp_path):
    layer = nn.Linear(2, 2)
    fits = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    load_strictly(layer, fits, tmp_path, "dino")
    assert torch.equal(layer.weight, torch.ones(2, 2))
    assert not layer.weight.requires_grad
    for state in ({"weight": fits["weight"]}, fits | {"more": torch.ones(1)}):
        with pytest.raises(BadInputError, match=r"does not fit.*give the local path of DINO"):
            load_strictly(layer, state, tmp_path, "dino")
