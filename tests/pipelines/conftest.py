"""Wan pipelines with random weights, built offline, and the trained one that ships."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.pipelines.wan.pipeline_wan_video2video import WanVideoToVideoPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

import vidsparse.pipelines.models as table

TINY = Path(table.__file__).parent / "tiny"
REQUEST: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "bad",
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def tokenizer():
    """One token a byte: needs no vocabulary file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *alphabet])}
    bytes_only = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=bytes_only, model_max_length=64, **special)


def transformer(seed=0, in_channels=16):
    torch.manual_seed(seed)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    ).eval()


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    encoder = UMT5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=16,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )
    return {
        "tokenizer": tokenizer(),
        "text_encoder": UMT5EncoderModel(encoder).eval(),
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def one_expert():
    return quiet(WanPipeline(**parts(), transformer=transformer()))


def two_experts():
    experts: dict[str, Any] = {"transformer": transformer(), "transformer_2": transformer(1)}
    return quiet(WanPipeline(**parts(), **experts, boundary_ratio=0.875))


def per_token_timesteps():
    return quiet(WanPipeline(**parts(), transformer=transformer(), expand_timesteps=True))


def image_to_video():
    none: dict[str, Any] = {"image_encoder": None, "image_processor": None}
    return quiet(WanImageToVideoPipeline(**parts(), **none, transformer=transformer(0, 36)))


def video_to_video():
    made = parts()
    made["scheduler"] = UniPCMultistepScheduler(
        flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    return quiet(WanVideoToVideoPipeline(**made, transformer=transformer()))


def shipped():
    return quiet(WanPipeline.from_pretrained(TINY))


def generate(pipe: Any, seed=0, **changes):
    """Latents of one generation; decoding them would only take time."""
    request = REQUEST | changes
    picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    if not isinstance(pipe, WanPipeline):  # these clean prompts with ftfy, which need not be there
        draw = torch.Generator().manual_seed(0)
        for name in ("prompt", "negative_prompt"):
            request |= {name: None, f"{name}_embeds": torch.randn(1, 16, 32, generator=draw)}
    if isinstance(pipe, WanVideoToVideoPipeline):
        request = {"strength": 0.75, "video": [picture] * request.pop("num_frames")} | request
    if isinstance(pipe, WanImageToVideoPipeline):
        request |= {"image": picture}
    made: Any = pipe(**request, generator=torch.Generator().manual_seed(seed))
    return made.frames


BUILDERS = {
    build.__name__: build
    for build in (
        one_expert,
        two_experts,
        per_token_timesteps,
        image_to_video,
        video_to_video,
        shipped,
    )
}


@pytest.fixture(scope="session")
def untouched():
    """The video each kind of pipeline makes before vidsparse has ever seen one, made once."""
    made = {}

    def video(kind):
        if kind not in made:
            made[kind] = generate(BUILDERS[kind]())
        return made[kind]

    return video


@pytest.fixture
def wan():
    return SimpleNamespace(build=BUILDERS, generate=generate)


@pytest.fixture
def folder(tmp_path):
    """A copy of the shipped pipeline; its weights are links, to be replaced and never written."""
    copy = tmp_path / "model"
    shutil.copytree(TINY, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    for weights in TINY.rglob("*.safetensors"):
        (copy / weights.relative_to(TINY)).symlink_to(weights.resolve())
    return copy


@pytest.fixture(scope="session")
def every_component(tmp_path_factory):
    """The folder of a pipeline that has a component of every kind."""
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    pipe = WanImageToVideoPipeline(
        **parts(),
        image_encoder=CLIPVisionModel(vision),
        image_processor=CLIPImageProcessor(),
        transformer=transformer(0, 36),
        transformer_2=transformer(1, 36),
        boundary_ratio=0.875,
    )
    folder = tmp_path_factory.mktemp("every")
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
