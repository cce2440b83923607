"""Pipelines with random weights, without text encoder and VAE: whole runs of every kind."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import guiders as _guiders
from torch import nn

from vidsparse import sparse_attention
from vidsparse.bench import denoising, real_size
from vidsparse.bench.denoising import Video
from vidsparse.bench.dense_engine import dense_preset
from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid
from vidsparse.kernels.dense import dense_attention
from vidsparse.pipelines.models import find_model
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS, TINY, find_checkpoint
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.quantized import quantize_in_place
from vidsparse.pipelines.running.shapes import empty_pipeline, shapes_of
from vidsparse.pipelines.running.stack import Stack
from vidsparse.pipelines.session import Session
from vidsparse.presets import PRESETS

guiders: Any = _guiders  # what it exports, its types do not say
WHERE = Path(__file__).parents[1] / "pipelines" / "tiny_pipelines.py"
BUILD = runpy.run_path(str(WHERE))["BUILDERS"]
GRID = TokenGrid(3, 3, 4)
SMALL = {"cogvideox": (9, 32), "ltx": (9, 32), "hunyuan_video": (9, 32), "flux": (1, 32)}


@pytest.mark.parametrize("name", SMALL)
def test_a_pipeline_of_every_kind_denoises_without_its_text_encoder(name, tmp_path):
    BUILD[name]().save_pretrained(tmp_path)
    found = find_checkpoint(tmp_path)
    frames, side = SMALL[name]
    real = real_size.build(found, layers=None, device="cpu", dtype="float32")
    assert real.pipe.components["vae"] is None
    video = Video(frames=frames, height=side, width=side, guidance=found.guidance)
    calls = []
    hook = real.pipe.transformer.register_forward_hook(lambda *seen: calls.append(seen))
    made = denoising.run(real.pipe, video, 2)
    hook.remove()
    assert len(calls) == 2  # guidance is in the batch, or in the transformer
    assert len(made.step_seconds) == 2
    assert sum(made.step_seconds) <= made.seconds
    assert made.latents.isfinite().all()
    with real_size.without_blocks(real):
        denoising.run(real.pipe, video, 2)
    assert (
        real_size.lists_of(find_model(real.pipe.transformer), real.pipe.transformer) == real.whole
    )


AUDIO = {
    "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8,
}  # fmt: skip
LTX2 = {
    "transformer": {
        "_class_name": "LTX2VideoTransformer3DModel", "in_channels": 8, "out_channels": 8,
        "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
        "num_layers": 2, "caption_channels": 12, **AUDIO,
    },
    "vae": {
        "_class_name": "AutoencoderKLLTX2Video", "latent_channels": 8,
        "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
    },
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
}  # fmt: skip


HUNYUAN_15 = {
    "transformer": {
        "_class_name": "HunyuanVideo15Transformer3DModel", "in_channels": 9, "out_channels": 4,
        "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
        "num_refiner_layers": 1, "text_embed_dim": 12, "text_embed_2_dim": 8,
        "image_embed_dim": 8, "rope_axes_dim": (4, 6, 6), "task_type": "t2v",
    },
    "vae": {"_class_name": "AutoencoderKLHunyuanVideo15", "latent_channels": 4},
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0},
}  # fmt: skip


def write_configs(folder, pipeline, parts):
    """A folder of a pipeline with configs alone."""
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, config in parts.items():
        (folder / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_text(json.dumps(config))
        index[name] = ["diffusers", config["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))
    return find_checkpoint(folder)


def test_a_pipeline_with_a_guider_and_without_a_callback_is_timed_by_its_scheduler(tmp_path):
    found = write_configs(tmp_path, "HunyuanVideo15Pipeline", HUNYUAN_15)
    real = real_size.build(found, layers=1, device="cpu", dtype="float32")
    calls: list[Any] = []
    real.pipe.transformer.register_forward_hook(lambda *seen: calls.append(seen))
    told: list[int] = []
    video = Video(frames=9, height=48, width=64, guidance=None)
    made = denoising.run(real.pipe, video, 2, told.append)
    assert len(calls) == 4  # of two branches, one after the other
    assert len(calls) == 2 * shapes_of(found, GRID).samples
    assert len(made.step_seconds) == 2
    assert told == [0, 1, 2]
    assert "step" not in vars(real.pipe.scheduler)
    assert made.latents.isfinite().all()


def test_the_guider_of_a_folder_is_the_one_that_runs(tmp_path):
    write_configs(tmp_path, "HunyuanVideo15Pipeline", HUNYUAN_15)
    (tmp_path / "guider").mkdir()
    guiders.ClassifierFreeGuidance(enabled=False).save_pretrained(tmp_path / "guider")
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["guider"] = ["diffusers", "ClassifierFreeGuidance"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    real = real_size.build(find_checkpoint(tmp_path), layers=1, device="cpu", dtype="float32")
    calls: list[Any] = []
    real.pipe.transformer.register_forward_hook(lambda *seen: calls.append(seen))
    denoising.run(real.pipe, Video(frames=9, height=48, width=64, guidance=None), 2)
    assert len(calls) == 2


@pytest.mark.parametrize("changed", [{}, {"use_prompt_embeddings": False}])
def test_ltx_2_denoises_video_and_audio_without_connectors_and_vaes(changed, tmp_path):
    """Of LTX-2, and with text as LTX-2.3 takes it: in widths of each stream."""
    parts = LTX2 | {"transformer": LTX2["transformer"] | changed}
    found = write_configs(tmp_path, "LTX2Pipeline", parts)
    real = real_size.build(found, layers=1, device="cpu", dtype="float32")
    video = Video(frames=17, height=96, width=128, guidance=3.0)
    calls: list[tuple[int, int]] = []

    def seen(_, given, named, *__):
        calls.append((len(named["hidden_states"]), named["audio_hidden_states"].shape[1]))

    real.pipe.transformer.register_forward_hook(seen, with_kwargs=True)
    made = denoising.run(real.pipe, video, 2)
    assert calls == [(2, 18), (1, 18), (1, 18)] * 2  # guidance; of blocks; of modalities
    assert sum(samples for samples, _ in calls) == 2 * shapes_of(found, GRID).samples
    assert made.latents.shape == (1, 8, 3, 3, 4)
    assert made.latents.isfinite().all()
    preset = PRESETS["draft"].override(
        {"density": 1.0, "min_tokens": 0, "block": 16, "warmup": 0.0, "ramp_until": 0.0}
    )
    with Session(real.pipe, preset, strict=True) as session:
        again = denoising.run(real.pipe, video, 2).latents
        branches = {key.branch.split("/")[1] for key in session.stats.calls}
    torch.testing.assert_close(again, made.latents, rtol=1e-4, atol=1e-4)
    assert branches == {"cond", "uncond", "uncond_stg", "uncond_modality"}


def test_fewer_blocks_keep_the_class_and_every_other_size():
    real = real_size.build(find_checkpoint("tiny"), layers=3, device="cpu", dtype="bfloat16")
    transformer, whole = real.pipe.transformer, empty_pipeline(find_checkpoint("tiny")).transformer
    assert (real.blocks, real.all_blocks, len(transformer.blocks)) == (3, 8, 3)
    changed = {key for key, value in whole.config.items() if transformer.config[key] != value}
    assert changed == {"num_layers"}
    dtypes = {name: each.dtype for name, each in transformer.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["blocks.0.scale_shift_table"] == torch.float32  # as diffusers keeps it


@pytest.mark.parametrize("layers", [0, 4, 61])
def test_a_model_of_two_kinds_of_blocks_has_fewer_of_both(layers):
    whole = {"transformer_blocks": 20, "single_transformer_blocks": 40}
    with pytest.raises(BadInputError, match=f"--layers {layers} is not possible: the model has 20"):
        real_size.fewer(whole, layers)


@pytest.mark.parametrize("name", [name for name in CHECKPOINTS if name != "tiny"])
def test_every_name_can_be_built(name):
    """The lists of blocks are found, and text of a width that somebody says."""
    transformer = empty_pipeline(find_checkpoint(name)).transformer
    lists = real_size.lists_of(find_model(transformer), transformer)
    assert sum(lists.values()) == find_checkpoint(name).layers
    assert any(transformer.config.get(key) for key in real_size.TEXT_WIDTH)


@pytest.mark.parametrize("quantize", ["int8", "int8-dynamic"])
def test_random_weights_are_quantised_as_diffusers_does(quantize, tmp_path):
    found = find_checkpoint(TINY)
    real = real_size.build(found, layers=None, device="cpu", dtype="float32")
    linear = real.pipe.transformer.blocks[0].attn1.to_q
    x = torch.randn(1, 8, linear.in_features)
    before = linear(x)
    count = quantize_in_place(real.pipe.transformer, quantize)
    error = (linear(x) - before).norm() / before.norm()
    assert 0 < error < 0.05
    pipe = load_pipeline(TINY, stack=Stack(quantize=quantize))
    loaded = {name: type(each) for name, each in pipe.transformer.named_parameters()}
    made = {name: type(each) for name, each in real.pipe.transformer.named_parameters()}
    assert made == loaded
    assert count == sum(kind is not nn.Parameter for kind in made.values())


def test_an_engine_computes_every_dense_call_of_a_session(monkeypatch):
    real = real_size.build(find_checkpoint(TINY), layers=2, device="cpu", dtype="float32")
    video = Video(frames=5, height=64, width=64, guidance=4.0)
    stock = denoising.run(real.pipe, video, 2).latents
    calls = []

    def seen(engine, q, k, v, **how):
        calls.append((engine, *q.shape))
        return dense_attention(engine, q, k, v, **how)

    monkeypatch.setattr(sparse_attention, "dense_attention", seen)
    with Session(real.pipe, dense_preset("torch flash")) as session:
        made = denoising.run(real.pipe, video, 2).latents
        assert dict(session.stats.engines) == {"torch-flash": 8}
        assert not session.stats.fallbacks
    assert calls == [("torch-flash", 1, 4, 128, 64)] * 8  # layers, steps, branches
    torch.testing.assert_close(made, stock, rtol=1e-4, atol=1e-4)
    with Session(real.pipe, dense_preset("diffusers")):
        assert torch.equal(denoising.run(real.pipe, video, 2).latents, stock)
    assert len(calls) == 8
