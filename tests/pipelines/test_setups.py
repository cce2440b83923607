"""Real set-ups: offload, casting, LoRA, quantised weights, caches; before a session or within."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers import hooks as _hooks
from diffusers.hooks.layer_skip import AttentionScoreSkipFunctionMode
from diffusers.models.attention_dispatch import attention_backend
from peft import LoraConfig

import vidsparse
from vidsparse.pipelines import taps

SPARSE: dict[str, Any] = {
    "min_tokens": 0,
    "block": 16,
    "density": 0.3,
    "warmup": 0.05,
    "ramp_until": 0.05,
}
hooks: Any = _hooks  # what it exports, its types do not say
CPU = torch.device("cpu")
Setup = Callable[..., object]


def sparsify(pipe, **changes):
    return vidsparse.sparsify(pipe, "draft", strict=True, **(SPARSE | changes))


def lora(pipe):
    torch.manual_seed(3)
    targets = ["to_q", "to_k", "to_v"]
    pipe.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights=False, target_modules=targets)
    )


def lora_fused(pipe):
    lora(pipe)
    pipe.transformer.fuse_lora()


def lora_taken_out(pipe):
    lora_fused(pipe)
    pipe.transformer.unfuse_lora()
    pipe.transformer.delete_adapters("default")


def int8(pipe):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())


def bitsandbytes(make: str, **weights: Any) -> Setup:
    """Layers quantised one by one: ``quantization_config`` asks for a GPU."""

    def quantise(pipe):
        package = pytest.importorskip("bitsandbytes")
        for block in pipe.transformer.blocks:
            for name, module in list(block.named_modules()):
                if type(module) is not torch.nn.Linear:
                    continue
                size = module.in_features, module.out_features
                new = getattr(package.nn, make)(*size, **weights)
                new.load_state_dict(module.state_dict())
                parent, _, leaf = name.rpartition(".")
                setattr(block.get_submodule(parent), leaf, new.to("cpu"))

    return quantise


def cache(config: Callable[..., object]) -> Setup:
    return lambda pipe: pipe.transformer.enable_cache(config(pipe))


def broadcast(pipe):
    return hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 900),
        spatial_attention_block_identifiers=("blocks",),
        current_timestep_callback=lambda: pipe.current_timestep,
    )


def faster_cache(pipe):
    return hooks.FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 900),
        current_timestep_callback=lambda: pipe.current_timestep,
        attention_weight_callback=lambda _: 0.5,
        spatial_attention_block_identifiers=("blocks",),
        tensor_format="BCFHW",
        is_guidance_distilled=True,
    )


def mag_cache(pipe):
    return hooks.MagCacheConfig(
        num_inference_steps=3, mag_ratios=torch.ones(3), threshold=0.5, retention_ratio=0.3
    )


def taylor_seer(pipe):
    return hooks.TaylorSeerCacheConfig(
        cache_interval=2,
        max_order=1,
        disable_cache_before_step=1,
        cache_identifiers=[r"blocks\.\d+\.attn1"],
    )


def cache_dit(pipe):
    package = pytest.importorskip("cache_dit")
    config = package.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, residual_diff_threshold=0.5
    )
    package.enable_cache(pipe, cache_config=config)


def group_offload(kind: str) -> Setup:
    return lambda pipe: pipe.transformer.enable_group_offload(
        onload_device=CPU, offload_type=kind, num_blocks_per_group=1
    )


CHANGE_NOTHING: dict[str, Setup] = {
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "group offload of blocks": group_offload("block_level"),
    "group offload of leaves": group_offload("leaf_level"),
    "sequential offload": lambda pipe: cpu_offload(pipe.transformer, CPU),
    "fused projections": lambda pipe: pipe.transformer.fuse_qkv_projections(),
    "LoRA taken out": lora_taken_out,
    "another backend": lambda pipe: pipe.transformer.set_attention_backend("_native_math"),
}
CHANGE_THE_MODEL: dict[str, Setup] = {
    "layerwise casting": lambda pipe: pipe.transformer.enable_layerwise_casting(
        storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "LoRA": lora,
    "LoRA fused": lora_fused,
    "torchao int8": int8,
    "bitsandbytes nf4": bitsandbytes("Linear4bit", quant_type="nf4"),
    "bitsandbytes int8": bitsandbytes("Linear8bitLt", has_fp16_weights=False),
}
SKIP_CALLS: dict[str, Setup] = {
    "FirstBlockCache": cache(lambda pipe: hooks.FirstBlockCacheConfig(threshold=0.2)),
    "PyramidAttentionBroadcast": cache(broadcast),
    "FasterCache": cache(faster_cache),
    "MagCache": cache(mag_cache),
    "TaylorSeer": cache(taylor_seer),
    "cache-dit": cache_dit,
}
ALL = CHANGE_NOTHING | CHANGE_THE_MODEL | SKIP_CALLS
CALLS = 12  # two layers, two branches, three steps


@contextlib.contextmanager
def the_users_backend_stays() -> Iterator[None]:
    """What set_attention_backend changes for the whole process is put back."""
    with attention_backend("native"):
        yield


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("first", [True, False])
def test_a_session_and_a_set_up_go_together_in_either_order(wan, untouched, name, first):
    with the_users_backend_stays():
        alone, pipe = wan.build["one_expert"](), wan.build["one_expert"]()
        ALL[name](alone)
        expected = wan.generate(alone)
        if first:
            ALL[name](pipe)
        with sparsify(pipe) as session:
            if not first:
                ALL[name](pipe)
            video = wan.generate(pipe)
            assert torch.equal(wan.generate(pipe), video)
            stats = session.stats
            assert stats.generations == 2
            assert set(stats.sigmas) <= {0, 1, 2}
            assert (len(stats.calls) < CALLS) == (name in SKIP_CALLS)
            assert stats.mean_density < 1 or name == "MagCache"  # which skips all sparse steps
        torch.testing.assert_close(wan.generate(pipe), expected, rtol=1e-4, atol=1e-5)
        if name in CHANGE_NOTHING:
            with sparsify(plain := wan.build["one_expert"]()):
                torch.testing.assert_close(video, wan.generate(plain), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(expected, untouched("one_expert"), rtol=1e-4, atol=1e-5)
        else:
            assert not torch.allclose(video, untouched("one_expert"), atol=1e-4)
        if name in CHANGE_THE_MODEL:
            assert not torch.allclose(expected, untouched("one_expert"), atol=1e-5)
    assert taps.tapped_modules() == []


@pytest.mark.parametrize("name", ALL)
def test_at_density_one_a_set_up_does_what_it_does_alone(wan, name):
    with the_users_backend_stays():
        alone, pipe = wan.build["one_expert"](), wan.build["one_expert"]()
        for each in (alone, pipe):
            ALL[name](each)
        with sparsify(pipe, density=1.0):
            torch.testing.assert_close(wan.generate(pipe), wan.generate(alone))


def test_the_users_backend_is_the_dense_path(wan, monkeypatch):
    from diffusers.models import attention_dispatch

    pipe, ran = wan.build["one_expert"](), []
    backends = attention_dispatch._AttentionBackendRegistry._backends
    name = attention_dispatch.AttentionBackendName("_native_math")
    original = backends[name]
    monkeypatch.setitem(backends, name, lambda *a, **k: ran.append(1) or original(*a, **k))
    supported = attention_dispatch._AttentionBackendRegistry._supported_arg_names
    assert supported[name]
    with the_users_backend_stays(), sparsify(pipe) as session:
        pipe.transformer.set_attention_backend("_native_math")
        wan.generate(pipe)
        dense = sum(bool(density.min() == 1) for density in session.stats.calls.values())
        crossed = CALLS
        assert len(ran) == dense + crossed
        assert 0 < dense < CALLS


def test_perturbed_attention_guidance_is_dense_and_counted(wan):
    pipe = wan.build["one_expert"]()
    with AttentionScoreSkipFunctionMode():
        alone = wan.generate(pipe)
    with vidsparse.sparsify(pipe, "draft", **SPARSE) as session:
        with AttentionScoreSkipFunctionMode():
            torch.testing.assert_close(wan.generate(pipe), alone)
        assert set(session.stats.fallbacks) == {"the guider leaves attention scores out"}


def test_an_interrupted_run_ends_early_and_the_next_is_whole(wan):
    pipe = wan.build["one_expert"]()

    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return tensors

    with sparsify(pipe) as session:
        expected = wan.generate(pipe)
        wan.generate(pipe, callback_on_step_end=stop)
        assert {key.step for key in session.stats.calls} == {0}
        assert torch.equal(wan.generate(pipe), expected)


def test_pipelines_that_share_a_transformer_share_its_session(wan):
    pipe, other = wan.build["one_expert"](), wan.build["one_expert"]()
    other.register_modules(transformer=pipe.transformer)
    with sparsify(pipe) as session:
        expected = wan.generate(pipe)
        assert torch.equal(wan.generate(other), expected)
        assert session.stats.generations == 2
        with pytest.raises(vidsparse.BadInputError, match="already has a vidsparse session"):
            sparsify(other)


def test_a_copy_of_a_sparse_transformer_is_dense_and_can_have_a_session_of_its_own(wan, untouched):
    pipe, other = wan.build["one_expert"](), wan.build["one_expert"]()
    with sparsify(pipe) as session:
        wan.generate(pipe)
        before = len(session.stats.calls)
        other.transformer = copy.deepcopy(pipe.transformer)
        assert torch.equal(wan.generate(other), untouched("one_expert"))
        assert len(session.stats.calls) == before
    with sparsify(other) as own:
        wan.generate(other)
        assert own.stats.mean_density < 1
    assert torch.equal(wan.generate(other), untouched("one_expert"))
