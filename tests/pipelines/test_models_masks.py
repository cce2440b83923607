"""Padding masks that models multiply out stay one row, dense or sparse."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import vidsparse
from vidsparse.pipelines.layout import key_padding
from vidsparse.pipelines.padding import Padding, keep_padding, source_of
from vidsparse.pipelines.undo import Undo

MODELS = runpy.run_path(str(Path(__file__).with_name("tiny_models.py")))["MODELS"]
SPARSE: dict[str, Any] = {"min_tokens": 0, "block": 16, "warmup": 0.05, "ramp_until": 0.05}
VALID = torch.tensor([[True, True, True, False], [True, True, True, True]])


class Allocations(TorchDispatchMode):
    """The boolean tensors that are made, by size in bytes; views take no memory."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.bool:
            self.masks.append(made.untyped_storage().nbytes())
        return made


def largest_mask(tiny):
    with torch.no_grad(), Allocations() as allocations:
        made = tiny.module(**tiny.inputs, return_dict=False)[0]
    return made, max(allocations.masks)


@pytest.mark.parametrize("name", ["hunyuan_video_15", "hunyuan_video_15_i2v"])
@pytest.mark.parametrize("density", [1.0, 0.9999])
def test_hunyuan_video_15_allocates_no_mask_of_queries_by_keys(name, density):
    tiny = MODELS[name]()
    tokens = 105 + 12 + 6 + 5
    expected, size = largest_mask(tiny)
    assert size >= tokens**2  # so the test sees what it should
    with vidsparse.sparsify(tiny.module, "draft", strict=True, density=density, **SPARSE):
        made, size = largest_mask(tiny)
    assert size <= 4 * tokens  # of text by text, in its refiner
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layers"), [("hunyuan_video_15", 2), ("qwen_image", 2), ("hunyuan_video", 2)]
)
def test_padding_is_read_once_for_all_layers(name, layers, monkeypatch):
    """Each time waits for a GPU."""
    read = []

    def spy(mask, shape, own_rows):
        read.append(shape)
        return key_padding(mask, shape, own_rows)

    monkeypatch.setattr("vidsparse.pipelines.forward.key_padding", spy)
    tiny = MODELS[name]()
    with vidsparse.sparsify(tiny.module, "draft", strict=True, density=0.5, **SPARSE) as session:
        for _ in range(2):
            with torch.no_grad():
                tiny.module(**tiny.inputs)
    assert len(read) == 2
    assert len({call.layer for call in session.stats.calls}) == layers


def test_rows_and_their_transpose_are_views_of_the_padding():
    mask = Padding.of(VALID)
    padded = F.pad(mask, (2, 0), value=True).bool()
    rows = padded.view(2, 1, 1, 6).repeat(1, 1, 6, 1)
    for both in (rows & rows.transpose(2, 3), rows.transpose(2, 3) & rows):
        assert both.shape == (2, 1, 6, 6)
        assert both.stride(2) == 0
        assert both.untyped_storage().nbytes() == 12
        assert torch.equal(
            key_padding(both, torch.Size((2, 6, 1, 1))), F.pad(VALID, (2, 0), value=True)
        )
        assert source_of(both) is VALID


def test_everything_else_is_an_ordinary_tensor():
    mask = Padding.of(VALID)
    assert type(mask + 1) is torch.Tensor
    assert type(mask.sum()) is torch.Tensor
    assert torch.equal(mask.repeat(2, 1), VALID.repeat(2, 1))
    assert torch.equal(mask & ~VALID, VALID & ~VALID)
    assert mask.tolist() == VALID.tolist()
    q = torch.randn(2, 1, 4, 8)
    attended = F.scaled_dot_product_attention(q, q, q, mask[:, None, None])
    assert type(attended) is torch.Tensor
    assert torch.equal(attended, F.scaled_dot_product_attention(q, q, q, VALID[:, None, None]))


def test_a_module_gets_its_padding_until_that_is_taken_back(monkeypatch):
    module = MODELS["qwen_image"]().module.transformer_blocks[0].attn
    seen = []
    module.forward = lambda mask=None, other=None: seen.append(mask)
    undo = Undo()
    keep_padding(module, "mask", undo)
    module(mask=VALID.long())
    module(mask=None)
    module(other=VALID)
    module(mask=VALID[:, None, None])
    with monkeypatch.context() as patch:
        patch.setattr("torch.compiler.is_compiling", lambda: True)
        module(mask=VALID)
    undo.run()
    module(mask=VALID)
    assert [type(mask) for mask in seen] == [Padding, *[type(None)] * 2, *[torch.Tensor] * 3]
    assert torch.equal(seen[0], VALID)
