"""A session under autocast, plain and compiled: what attention is given is cast once."""

from typing import Any

import diffusers
import pytest
import torch

import vidsparse

SPARSE: dict[str, Any] = {
    "min_tokens": 0, "dense_layers": 0, "warmup": 0.05, "ramp_until": 0.05, "strict": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def wan():
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(  # type: ignore[attr-defined]
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).eval()  # fmt: skip


@torch.no_grad()
def step(model, device="cpu", time=500.0):
    draw = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(s, generator=draw) for s in ((1, 16, 3, 10, 14), (1, 7, 16)))
    with torch.autocast(device, torch.bfloat16):
        return model(
            latents.to(device), torch.tensor([time], device=device), text.to(device),
            return_dict=False,
        )[0]  # fmt: skip


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["semantic", "svg2"])
def test_compiled_code_casts_as_eager_code_does(name, backend, device):
    model = wan().to(device)
    dense, dtypes = step(model, device), []
    with vidsparse.sparsify(model, name, **SPARSE) as session:
        session.observe(lambda call, work, q, k, v, out: dtypes.append((q.dtype, v.dtype)))
        sparse = step(model, device)
        assert sparse.dtype == dense.dtype
        assert not torch.allclose(sparse, dense, atol=1e-3)
        model.compile_repeated_blocks(fullgraph=True, backend=backend)
        compiled = step(model, device)
        early = step(model, device, 990.0)
    assert dtypes == [(torch.bfloat16, torch.bfloat16)] * 4
    torch.testing.assert_close(compiled, sparse, atol=0.03, rtol=0.03)
    torch.testing.assert_close(early, step(wan().to(device), device, 990.0), atol=0.03, rtol=0.03)
