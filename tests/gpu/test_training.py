"""Checkpoints on a GPU, where the backward pass and what it recomputes run in another thread."""

import functools
from typing import Any

import diffusers
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import vidsparse

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def wan(where):
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(  # type: ignore[attr-defined]
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=16,
        out_channels=16, text_dim=16, freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32,
    ).to(where)  # fmt: skip


def loss_of(model, where, time):
    draw = torch.Generator().manual_seed(1)
    latents, text = (torch.randn(s, generator=draw) for s in ((1, 16, 4, 32, 32), (1, 7, 16)))
    timestep = torch.tensor([time], device=where)
    out = model(latents.to(where), timestep, text.to(where), return_dict=False)[0]
    return out.square().mean()


def gradients(model):
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return made


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["balanced", "semantic", "psa"])
@pytest.mark.parametrize("where", DEVICES)
def test_each_backward_pass_recomputes_its_own_forward_call(where, name, reentrant):
    model = wan(where)
    changes: dict[str, Any] = {"min_tokens": 0, "warmup": 0.05, "ramp_until": 0.6}
    if vidsparse.PRESETS[name].policy.mean_density is not None:  # out of reach with such a ramp
        changes["density"] = 0.25
    with vidsparse.sparsify(model, name, **changes):
        loss_of(model, where, 700.0).backward()
        expected = gradients(model)
    model.enable_gradient_checkpointing(functools.partial(again, reentrant))
    with vidsparse.sparsify(model, name, **changes) as session:
        early, late = loss_of(model, where, 700.0), loss_of(model, where, 300.0)
        engines = dict(session.stats.engines)
        late.backward()
        gradients(model)
        early.backward()
        assert dict(session.stats.engines) == engines
    for each, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[each], rtol=1e-2, atol=1e-5, msg=each)


def again(reentrant, module, *args):
    return checkpoint(module.__call__, *args, use_reentrant=reentrant)
