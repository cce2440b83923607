"""What is known of a model without its weights is what a run with weights then does."""

import dataclasses
import functools
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers.schedulers.scheduling_flow_match_heun_discrete import (
    FlowMatchHeunDiscreteScheduler,
)

import vidsparse
from vidsparse.comparison.job import make_request
from vidsparse.errors import BadInputError
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.pipelines.models import IMAGE, VIDEO
from vidsparse.pipelines.running.checkpoints import (
    CHECKPOINTS,
    Geometry,
    checkpoint_of,
    find_checkpoint,
    geometry_of,
)
from vidsparse.pipelines.running.generate import Request, denoise, generate
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.named import named_skeleton
from vidsparse.pipelines.running.shapes import empty_transformer, shapes_of
from vidsparse.presets import PRESETS

BUILDERS = runpy.run_path(str(Path(__file__).parents[1] / "tiny_pipelines.py"))["BUILDERS"]
SIZES = {
    "cogvideox": (9, 64, 96),
    "ltx": (9, 64, 96),
    "hunyuan_video": (9, 64, 96),
    "mochi": (13, 64, 96),
    "flux": (1, 24, 32),
    "pixart": (1, 128, 160),
}


@pytest.fixture(params=SIZES)
def made(request, tmp_path):
    """A pipeline, what is known of its folder, and a size."""
    name = request.param
    text = {"cogvideox": 226, "mochi": 256}
    pipe = BUILDERS[name](**({"text_tokens": text[name]} if name in text else {}))
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    frames, height, width = SIZES[name]
    return SimpleNamespace(
        pipe=pipe,
        known=find_checkpoint(tmp_path),
        size={"frames": frames, "height": height, "width": width},
    )


def test_a_second_transformer_is_guided_as_its_authors_recommend(wan):
    known = CHECKPOINTS["wan2.2-a14b"]
    left_out, told = make_request(known, "a"), make_request(known, "a", guidance=5.0)
    assert (left_out.guidance, left_out.guidance_2) == (4.0, 3.0)
    assert (told.guidance, told.guidance_2) == (5.0, None)  # which the pipeline takes for both
    small: dict[str, Any] = {"frames": 5, "height": 32, "width": 32, "steps": 2}
    pipe = wan.build["two_experts"]()
    for request, expected in ((left_out, 3.0), (told, 5.0)):
        denoise(pipe, dataclasses.replace(request, **small))
        assert pipe._guidance_scale_2 == expected


@pytest.mark.parametrize(
    ("rate", "told"), [(24, {"frame_rate": 24}), (12.5, {"frame_rate": 12.5}), (None, {})]
)
def test_a_pipeline_that_asks_for_the_rate_is_told_that_of_the_file(monkeypatch, rate, told):
    pipe, seen = BUILDERS["ltx"](), {}
    run = type(pipe).__call__

    @functools.wraps(run)
    def watched(self, *args, **named):
        seen.update({name: named[name] for name in ("frame_rate", "fps") if name in named})
        return run(self, *args, **named)

    monkeypatch.setattr(type(pipe), "__call__", watched)
    known = dataclasses.replace(checkpoint_of(pipe, "ltx"), frames=9, height=64, width=64)
    denoise(pipe, make_request(known, "a", steps=2, fps=rate))
    assert seen == told
    assert type(seen.get("frame_rate")) in (int if rate == 24 else float, type(None))
    assert make_request(CHECKPOINTS["flux.1-dev"], "a", fps=1).fps is None  # an image has none


@pytest.mark.parametrize("name", ["wan2.1-14b", "qwen-image", "hunyuanvideo-1.5", "tiny"])
def test_a_negative_prompt_is_asked_for_where_guidance_uses_it(name):
    known = CHECKPOINTS[name]
    assert make_request(known, "a", negative_prompt="b").negative_prompt == "b"
    assert make_request(known, "a").negative_prompt is None


@pytest.mark.parametrize(
    ("name", "guidance", "why"),
    [
        ("flux.1-dev", None, "FluxPipeline reads a negative prompt only with a true_cfg_scale"),
        ("hunyuanvideo", None, "HunyuanVideoPipeline reads a negative prompt only with a true_cfg"),
        ("flux.2-dev", None, "Flux2Pipeline takes no negative prompt"),
        ("wan2.1-14b", 1.0, "guidance 1 is off, and a negative prompt then does nothing"),
    ],
)
def test_a_negative_prompt_that_does_nothing_is_refused(name, guidance, why):
    with pytest.raises(BadInputError, match=re.escape(why)) as error:
        make_request(CHECKPOINTS[name], "a", guidance=guidance, negative_prompt="b")
    assert "leave --negative-prompt (negative_prompt=) out" in str(error.value)


@pytest.mark.parametrize("name", ["wan2.1-14b", "wan2.2-a14b", "wan2.2-ti2v-5b", "mochi-1"])
def test_a_folder_of_a_release_has_the_settings_of_its_name(name):
    names = ("release", "frames", "height", "width", "steps", "guidance", "guidance_2", "fps")
    found, known = checkpoint_of(named_skeleton(name), "./downloaded"), CHECKPOINTS[name]
    assert {each: getattr(found, each) for each in names} == {
        each: getattr(known, each) for each in names
    }


def test_a_run_has_the_grid_and_layers_that_its_folder_promised(made):
    pipe, known, steps = made.pipe, made.known, 6
    options = {"min_tokens": 0, "block": 16, "density": 0.3, "warmup": 0.0, "ramp_until": 0.0}
    seen = []
    request = Request(
        prompt="a red circle", **made.size, steps=steps, guidance=known.guidance, seed=0
    )
    with vidsparse.sparsify(pipe, "draft", strict=True, **options) as session:
        session.observe(lambda call, *_: seen.append(call))
        frames = generate(pipe, request)
        assert len(session.stats.step_density) == steps
    assert frames.shape == (*made.size.values(), 3)
    assert known.geometry == geometry_of(pipe)
    assert {call.layer for call in seen} == set(range(known.layers))
    promised = known.geometry.sequence(**made.size)
    for grid in {call.grid for call in seen}:
        assert (grid.frames, grid.height, grid.width) == (
            promised.frames, promised.height, promised.width,
        )  # fmt: skip
        assert grid.prefix <= promised.prefix
        assert grid.suffix <= promised.suffix
        assert bool(grid.prefix + grid.suffix) == bool(promised.prefix + promised.suffix)


COG = ["AutoencoderKLCogVideoX", "CogVideoXTransformer3DModel"]
COG_15 = {"patch_size_t": 2, "sample_frames": 81, "sample_height": 96, "sample_width": 170}
COG_15["num_attention_heads"] = 2  # of 30, for speed: a table of all positions is as wide
IMAGE_VAE = {"block_out_channels": [128, 256, 512, 512], "latent_channels": 16}
PUBLISHED = {
    "Wan": (["AutoencoderKLWan", "WanTransformer3DModel"], {}, {}, "21x45x80", 40),
    "HunyuanVideo": (["AutoencoderKLHunyuanVideo", "HunyuanVideoTransformer3DModel"], {}, {},
                     "33x45x80+256", 60),
    "HunyuanVideo15": (["AutoencoderKLHunyuanVideo15", "HunyuanVideo15Transformer3DModel"], {}, {},
                       "31x30x53+1256", 54),
    "CogVideoX": (COG, {}, {}, "226+13x30x45", 30),
    "CogVideoX 1.5": (COG, {}, COG_15, "226+11x48x85", 30),
    "LTX": (["AutoencoderKLLTXVideo", "LTXVideoTransformer3DModel"], {}, {}, "21x16x22", 28),
    "Mochi": (["AutoencoderKLMochi", "MochiTransformer3DModel"], {}, {}, "28x30x53+256", 48),
    "Flux": (["AutoencoderKL", "FluxTransformer2DModel"], IMAGE_VAE, {}, "512+1x64x64", 57),
    "StableDiffusion3": (["AutoencoderKL", "SD3Transformer2DModel"], IMAGE_VAE, {},
                         "1x64x64+333", 18),
    "QwenImage": (["AutoencoderKLQwenImage", "QwenImageTransformer2DModel"], {}, {},
                  "512+1x64x64", 60),
    "PixArtSigma": (["AutoencoderKL", "PixArtTransformer2DModel"],
                    IMAGE_VAE | {"latent_channels": 4}, {}, "1x64x64", 28),
}  # fmt: skip


@pytest.fixture
def configs(tmp_path):
    """Write the configs of a pipeline, at the sizes of diffusers' classes; no weights."""

    def write(pipeline, vae, transformer):
        kinds = {"vae": vae, "transformer": transformer}
        index = {name: ["diffusers", config["_class_name"]] for name, config in kinds.items()}
        for name, config in kinds.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(json.dumps(config))
        whole = {"_class_name": pipeline, "text_encoder": ["transformers", "T5EncoderModel"]}
        (tmp_path / "model_index.json").write_text(json.dumps(whole | index))
        return tmp_path

    return write


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_of_published_sizes_have_their_tokens_and_layers(configs, name):
    (vae, transformer), vae_config, config, sequence, layers = PUBLISHED[name]
    folder = configs(
        f"{name.split()[0]}Pipeline",
        {"_class_name": vae, **vae_config},
        {"_class_name": transformer, **config},
    )
    known = find_checkpoint(folder)
    assert str(known.geometry.sequence(**known.size())) == sequence
    assert known.layers == layers
    assert known.image == (known.frames == 1)
    assert known.takes_guidance == (name not in ("HunyuanVideo15", "QwenImage"))
    assert known.steps is not None


@pytest.mark.parametrize(
    ("pipeline", "vae", "transformer", "message"),
    [
        ("NopePipeline", "AutoencoderKL", "FluxTransformer2DModel", "has no NopePipeline"),
        ("FluxPipeline", "AutoencoderKL", "SanaTransformer2DModel", "self-attention is linear"),
        ("FluxPipeline", "AutoencoderKLNope", "FluxTransformer2DModel", "has no AutoencoderKLNope"),
    ],
)
def test_a_folder_that_cannot_be_planned_is_refused(configs, pipeline, vae, transformer, message):
    folder = configs(pipeline, {"_class_name": vae}, {"_class_name": transformer})
    with pytest.raises(BadInputError, match=message):
        find_checkpoint(folder)


def test_a_pipeline_without_a_transformer_is_refused(tmp_path):
    index = {"_class_name": "StableDiffusionXLPipeline", "unet": ["diffusers", "UNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadInputError, match="has no transformer"):
        find_checkpoint(tmp_path)


def test_what_a_pipeline_does_not_recommend_has_to_be_said(configs):
    folder = configs(
        "ZImagePipeline",
        {"_class_name": "AutoencoderKL", **IMAGE_VAE},
        {"_class_name": "ZImageTransformer2DModel", "n_layers": 2, "n_refiner_layers": 1},
    )
    known = find_checkpoint(folder)
    with pytest.raises(BadInputError, match="ZImagePipeline recommends no height of its own"):
        known.size()
    assert known.size(height=1024, width=768) == {"frames": 1, "height": 1024, "width": 768}


def test_an_image_is_one_frame():
    geometry = Geometry(temporal=None)
    assert str(geometry.token_grid(1, 64, 96)) == "1x4x6"
    with pytest.raises(BadInputError, match="an image, which is 1 frame"):
        geometry.check_size(5, 64, 96)


def test_names_of_the_command_line_stand_in_the_table_of_models():
    releases = [each for row in VIDEO + IMAGE for each in row.releases if each.hub is not None]
    shorts = [each.hub.short for each in releases if each.hub]
    assert list(CHECKPOINTS) == ["tiny", *shorts]
    known = CHECKPOINTS["wan2.2-ti2v-5b"]
    assert known.layers == 30
    assert known.fps == 24
    assert known.size() == {"frames": 121, "height": 704, "width": 1280}
    assert str(known.geometry.sequence(**known.size())) == "31x22x40"


@pytest.mark.parametrize(
    ("name", "grid", "calls", "billions"),
    [
        ("mochi-1", "28x30x53+256", 2, 10.0),
        ("hunyuanvideo-1.5", "31x30x53+1256", 2, 8.3),  # guidance by a part of the pipeline
        ("flux.2-dev", "512+1x64x64", 1, 32.2),  # guidance is an input of the transformer
    ],
)
def test_named_models_have_the_tokens_calls_and_weights_of_their_cards(name, grid, calls, billions):
    known = CHECKPOINTS[name]
    assert str(known.geometry.sequence(**known.size())) == grid
    assert shapes_of(known, TokenGrid.parse(grid)).samples == calls
    weights = sum(each.numel() for each in empty_transformer(known)[0].parameters())
    assert weights == pytest.approx(billions * 1e9, rel=0.03)


def test_fewer_steps_than_a_pipeline_can_do_are_refused_before_it_is_loaded():
    known = dataclasses.replace(CHECKPOINTS["tiny"], least_steps=2)
    assert known.or_default("steps", None) == 20
    with pytest.raises(BadInputError, match="steps must be at least 2, got 1"):
        known.or_default("steps", 1)


def test_a_scheduler_that_calls_twice_a_step_is_planned_by_its_calls(folder):
    """Heun's: seven calls in four steps."""
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchHeunDiscreteScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    FlowMatchHeunDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    known, steps = find_checkpoint(folder), 4
    size: Any = {"frames": 9, "height": 64, "width": 64}
    preset = PRESETS["balanced"].override({"min_tokens": 0, "block": 16, "mean_density": 0.5})
    grid = known.geometry.sequence(**known.size(**size))
    found = forecast(preset, grid, known.calls(steps), known.layers, known.head_dim)
    request = Request(prompt="a red circle", **size, steps=steps, guidance=1.0, seed=0)
    pipe = load_pipeline(folder)
    with vidsparse.sparsify(pipe, preset) as session:
        generate(pipe, request)
    assert len(session.stats.step_density) == len(pipe.scheduler.timesteps) == known.calls(steps)
    assert len(found.step_density) == known.calls(steps) == 7
    assert session.stats.mean_density == pytest.approx(found.mean_density, abs=0.03)
    assert "calls the transformer 7 times in 4 steps" in known.about_calls(steps)[0]
    assert CHECKPOINTS["tiny"].calls(steps) == steps
    assert not CHECKPOINTS["tiny"].about_calls(steps)
