"""What is found in dense runs on a GPU is what a CPU finds, and masks of a file run there."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.calibrated import Calibrated
from vidsparse.calibrating.finders import Choices, Margins, Masks
from vidsparse.calibrating.watch import watched
from vidsparse.grid import TokenGrid
from vidsparse.kernels.planning.bits import unpack_bits
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention
from vidsparse.stored_masks import write_masks

pytestmark = pytest.mark.gpu
GRID = TokenGrid(5, 11, 33, 3, 21)
LAYERS = (("transformer", 1, 2),)


def dense(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def run(preset, finder, device):
    """Four steps of one layer with the same tokens on every device."""
    engine, draw = SparseAttention(watched(preset), strict=True), torch.Generator().manual_seed(0)
    engine.observers.append(finder)
    finder.start_run()
    for progress in Progress.first(4).steps():
        q, k, v = (torch.randn(1, GRID.tokens, 2, 64, generator=draw) for _ in range(3))
        q, k, v = (x.to(device) for x in (2 * q, k, v))
        call = Call(grid=GRID, layer=0, layers=1, step=progress.at, progress=progress)
        engine(q, k, v, call, dense)
    return finder


@pytest.mark.parametrize("name", ["sparse-vdit", "paro", "vorta", "sta", "mminference"])
def test_heads_lose_as_much_by_each_choice(name):
    settings = {"block": 64, "warmup": 0.0, "ramp_until": 0.0}
    preset = PRESETS[name].override(settings)
    on_cpu, on_gpu = (run(preset, Choices(preset), device).lost for device in ("cpu", "cuda"))
    assert on_cpu.keys() == on_gpu.keys()
    for at, lost in on_cpu.items():
        torch.testing.assert_close(on_gpu[at].cpu(), lost, atol=2e-2, rtol=2e-2)


def test_margins_are_within_one_step_of_each_other():
    preset = PRESETS["lite-attention"].override({"block": 64})
    on_cpu, on_gpu = (run(preset, Margins(preset, 0.1), device).least for device in ("cpu", "cuda"))
    assert on_cpu.keys() == on_gpu.keys()
    assert all(abs(on_cpu[at] - on_gpu[at]) <= 1 for at in on_cpu)


def test_masks_are_nearly_the_same_and_run_from_their_file(tmp_path):
    parts = ((1.0, (("0", ("hwf", "whf")),)),)
    preset = PRESETS["paro"].override(
        {"choices": Calibrated("x", LAYERS, "paro", parts), "min_tokens": 0, "density": 0.3}
    )
    on_cpu, on_gpu = (run(preset, Masks(preset), device) for device in ("cpu", "cuda"))
    for key, bits in on_cpu.bits.items():
        number = -(-GRID.tokens // 64)
        same = unpack_bits(bits, number) == unpack_bits(on_gpu.bits[key], number)
        assert float(same.float().mean()) > 0.98  # near ties may fall the other way
    ends, bits = on_gpu.parts()
    masks = write_masks(
        tmp_path / "m.safetensors", bits, layers=LAYERS, grid=GRID, block=64,
        density=on_gpu.density, ends=ends,
    )  # fmt: skip
    stored = preset.override({"estimator": "stored", "selector": "threshold", "mask_file": masks})
    q, k, v = torch.randn(3, 1, GRID.tokens, 2, 64)
    call = Call(grid=GRID, layer=0, step=0, progress=Progress.first(4))
    expected = SparseAttention(stored, strict=True)(q, k, v, call, dense)
    engine = SparseAttention(stored, strict=True)
    found = engine(q.cuda(), k.cuda(), v.cuda(), call, dense).cpu()
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)
    assert engine.stats.mean_density == pytest.approx(on_gpu.density, abs=0.03)
