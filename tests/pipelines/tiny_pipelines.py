"""Pipelines with random weights, built offline in a moment: what the tests of this folder and of
the command line run.
"""

from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SPECIAL = {
    "t5": ["<pad>", "</s>", "<unk>"],
    "clip": ["<|startoftext|>", "<|endoftext|>"],
    "llama": ["<unk>", "<s>", "</s>", "<pad>"],
}


def make(name, **config) -> Any:
    torch.manual_seed(0)
    return getattr(diffusers, name)(**config)


def tokenizer(kind):
    """One token a byte: needs no vocabulary file."""
    special = SPECIAL[kind]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {token: i for i, token in enumerate(vocabulary)}
    bytes_only = Tokenizer(models.BPE(vocab=ids, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    template = {"t5": "$A </s>", "clip": " $A ".join(special), "llama": "<s> $A"}[kind]
    used = [(token, ids[token]) for token in special if token in template]
    bytes_only.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    names = {
        "pad_token": "<pad>" if "<pad>" in special else special[-1],
        "eos_token": special[-1] if kind == "clip" else "</s>",
        "unk_token": "<unk>" if "<unk>" in special else special[-1],
    }
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, model_max_length=77, **names
    )


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=320, d_model=32, d_kv=8, d_ff=37, num_layers=1, num_heads=4, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return transformers.T5EncoderModel(config).eval()


def clip(size):
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        bos_token_id=0, eos_token_id=1, hidden_size=size, intermediate_size=37,
        num_attention_heads=4, num_hidden_layers=1, pad_token_id=1, vocab_size=320,
        projection_dim=size,
    )  # fmt: skip
    return transformers.CLIPTextModel(config).eval()


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=3, hidden_size=16, intermediate_size=37,
        num_attention_heads=4, num_hidden_layers=2, vocab_size=320, max_position_embeddings=512,
    )  # fmt: skip
    return transformers.LlamaModel(config).eval()


def cogvideox(text_tokens=16):
    blocks = {
        "down_block_types": ("CogVideoXDownBlock3D",) * 4,
        "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    }
    return make(
        "CogVideoXPipeline",
        tokenizer=tokenizer("t5"),
        text_encoder=t5(),
        vae=make(
            "AutoencoderKLCogVideoX", **blocks, block_out_channels=(8,) * 4, latent_channels=4,
            layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
        ),
        transformer=make(
            "CogVideoXTransformer3DModel", num_attention_heads=4, attention_head_dim=8,
            in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32, num_layers=2,
            sample_width=8, sample_height=8, sample_frames=9, patch_size=2,
            temporal_compression_ratio=4, max_text_seq_length=text_tokens,
        ),
        scheduler=make("DDIMScheduler"),
    )  # fmt: skip


def ltx():
    scaling = (True, True, False, False)
    return make(
        "LTXPipeline",
        tokenizer=tokenizer("t5"),
        text_encoder=t5(),
        vae=make(
            "AutoencoderKLLTXVideo", latent_channels=8, block_out_channels=(8,) * 4,
            decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=scaling,
            decoder_spatio_temporal_scaling=scaling, decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1,
        ),
        transformer=make(
            "LTXVideoTransformer3DModel", in_channels=8, out_channels=8, num_attention_heads=4,
            attention_head_dim=8, cross_attention_dim=32, num_layers=2, caption_channels=32,
        ),
        scheduler=make("FlowMatchEulerDiscreteScheduler"),
    )  # fmt: skip


def hunyuan_video():
    blocks = {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
    }
    return make(
        "HunyuanVideoPipeline",
        tokenizer=tokenizer("llama"),
        text_encoder=llama(),
        tokenizer_2=tokenizer("clip"),
        text_encoder_2=clip(8),
        vae=make(
            "AutoencoderKLHunyuanVideo", **blocks, latent_channels=4, block_out_channels=(8,) * 4,
            layers_per_block=1, norm_num_groups=4,
        ),
        transformer=make(
            "HunyuanVideoTransformer3DModel", in_channels=4, out_channels=4, num_attention_heads=2,
            attention_head_dim=10, num_layers=1, num_single_layers=1, num_refiner_layers=1,
            patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=16,
            pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
        ),
        scheduler=make("FlowMatchEulerDiscreteScheduler", shift=7.0),
    )  # fmt: skip


def flux():
    return make(
        "FluxPipeline",
        tokenizer=tokenizer("clip"),
        text_encoder=clip(32),
        tokenizer_2=tokenizer("t5"),
        text_encoder_2=t5(),
        vae=make(
            "AutoencoderKL", block_out_channels=(4,), layers_per_block=1, latent_channels=1,
            norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1,
        ),
        transformer=make(
            "FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=1,
            num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8],
        ),
        scheduler=make("FlowMatchEulerDiscreteScheduler"),
    )  # fmt: skip


def mochi(text_tokens=16):
    return make(
        "MochiPipeline",
        tokenizer=tokenizer("t5"),
        text_encoder=t5(),
        vae=make(
            "AutoencoderKLMochi", latent_channels=12, encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4, layers_per_block=(1,) * 5,
        ),
        transformer=make(
            "MochiTransformer3DModel", patch_size=2, num_attention_heads=2, attention_head_dim=8,
            num_layers=2, pooled_projection_dim=16, in_channels=12, text_embed_dim=32,
            time_embed_dim=4, max_sequence_length=text_tokens,
        ),
        scheduler=make("FlowMatchEulerDiscreteScheduler", invert_sigmas=True),
    )  # fmt: skip


def pixart():
    return make(
        "PixArtSigmaPipeline",
        tokenizer=tokenizer("t5"),
        text_encoder=t5(),
        vae=make(
            "AutoencoderKL", block_out_channels=(4,) * 4, layers_per_block=1, latent_channels=4,
            norm_num_groups=1, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        transformer=make(
            "PixArtTransformer2DModel", sample_size=16, num_layers=2, patch_size=2,
            attention_head_dim=8, num_attention_heads=3, caption_channels=32, in_channels=4,
            cross_attention_dim=24, out_channels=8, use_additional_conditions=False,
        ),
        scheduler=make("DDIMScheduler"),
    )  # fmt: skip


BUILDERS = {build.__name__: build for build in (cogvideox, ltx, hunyuan_video, flux, mochi, pixart)}
