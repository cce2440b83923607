"""A tiny model of every row of the table, with random weights, and what its attention should see.

``MODELS[name]()`` is a ``Tiny``: the real class of diffusers, the arguments of one forward call
with sizes that are odd and differ, and the token grids of its self-attention layers.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import nn

LEVEL = 0.75  # noise, in every model
T = torch.tensor([1000 * LEVEL])
SIGMA = torch.tensor([LEVEL])
LATENTS = (3, 10, 14)  # frames, rows, columns; 3 x 5 x 7 tokens in patches of 1 x 2 x 2
GRID = "3x5x7"
TEXT = torch.tensor([[1] * 9 + [0] * 3])  # 9 words and padding


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """One model.

    Attributes:
        module: With weights from a fixed seed.
        inputs: Arguments of its forward call.
        grids: The layouts that its self-attention layers should see, sorted.
        layers: How many such layers there are.
        latents: Argument that holds the video.
        axes: Its dimensions of frames, rows and columns; None where tokens are packed.
        patch: Values in a token along each.
        start: Tokens before the video in the argument, where tokens are packed.
        references: Frames before the video.
        stacked: Whether images are items of a second dimension, of which the last is made.
        masked: Whether the model masks padding, which we leave out: equal but for rounding.
    """

    module: nn.Module
    inputs: dict[str, Any]
    grids: list[str] = field(default_factory=lambda: [GRID])
    layers: int = 2
    latents: str = "hidden_states"
    axes: tuple[int, ...] | None = (2, 3, 4)
    patch: tuple[int, ...] = (1, 2, 2)
    start: int = 0
    references: int = 0
    stacked: bool = False
    masked: bool = False


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def make(name, **config) -> Any:
    return getattr(diffusers, name)(**config)


def video(channels, batch=1):
    return randn(batch, channels, *LATENTS)


def image(channels, batch=1, height=10, width=14):
    return randn(batch, channels, height, width)


def ids(rows, columns, axes=3, first=0.0, start=0.0):
    """Of image tokens: which image, row, column."""
    of = torch.zeros(rows, columns, axes)
    of[..., 0] = first
    of[..., 1] = torch.arange(rows)[:, None] + start
    of[..., 2] = torch.arange(columns) + start
    return of.flatten(0, 1)


# Video

WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
    "out_channels": 16, "text_dim": 16, "freq_dim": 256, "ffn_dim": 32, "num_layers": 2,
    "rope_max_seq_len": 32,
}  # fmt: skip


def _wan_inputs():
    return {"hidden_states": video(16), "timestep": T, "encoder_hidden_states": randn(1, 7, 16)}


def wan():
    return Tiny(module=make("WanTransformer3DModel", **WAN), inputs=_wan_inputs())


def wan_i2v():
    module = make(
        "WanTransformer3DModel", **(WAN | {"in_channels": 36}), image_dim=8, added_kv_proj_dim=24
    )
    inputs = {"encoder_hidden_states_image": randn(1, 5, 8), "hidden_states": video(36)}
    text = {"encoder_hidden_states": randn(1, 512, 16)}
    return Tiny(module=module, inputs=_wan_inputs() | text | inputs)


def wan_ti2v():
    """A noise level for each token; the first frame is given."""
    levels = torch.full((1, 3, 35), 750.0)
    levels[:, 0] = 0
    return replace(wan(), inputs=_wan_inputs() | {"timestep": levels.flatten(1)})


def wan_vace():
    module = make("WanVACETransformer3DModel", **WAN, vace_layers=[0], vace_in_channels=96)
    inputs = _wan_inputs() | {"control_hidden_states": video(96)}
    return Tiny(module=module, inputs=inputs, layers=3)


def wan_vace_references():
    """Two reference images: leading frames, of which nothing is masked or to be made."""
    control = video(96)
    control[:, 16:, :2] = 0
    tiny = wan_vace()
    inputs = tiny.inputs | {"control_hidden_states": control}
    return replace(tiny, inputs=inputs, grids=["70+1x5x7"], references=2)


def wan_animate():
    module = make(
        "WanAnimateTransformer3DModel",
        **(WAN | {"in_channels": 36}),
        latent_channels=16,
        image_dim=4,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    inputs = _wan_inputs() | {
        "hidden_states": randn(1, 36, 4, 10, 14),
        "encoder_hidden_states_image": randn(1, 5, 4),
        "pose_hidden_states": video(16),
        "face_pixel_values": randn(1, 3, 9, 16, 16),
    }
    return Tiny(module=module, inputs=inputs, grids=["35+3x5x7"], references=1)


def chronoedit():
    return replace(wan(), module=make("ChronoEditTransformer3DModel", **WAN))


def skyreels_v2():
    return replace(wan(), module=make("SkyReelsV2Transformer3DModel", **WAN))


def anyflow():
    """Frames before channels; a noise level for each frame."""
    module = make("AnyFlowTransformer3DModel", **WAN)
    levels = {"timestep": torch.full((1, 3), 750.0), "r_timestep": torch.full((1, 3), 400.0)}
    inputs = _wan_inputs() | levels | {"hidden_states": randn(1, 3, 16, 10, 14)}
    return Tiny(module=module, inputs=inputs, axes=(1, 3, 4))


def helios():
    """With history in three resolutions: 4 + 2 * 2 + 16 * 1 latent frames of 16 x 16."""
    of = {k: WAN[k] for k in WAN if k not in ("rope_max_seq_len",)}
    module = make("HeliosTransformer3DModel", **of, rope_dim=(4, 4, 4))
    inputs = _wan_inputs() | {
        "hidden_states": randn(1, 16, 2, 16, 24),
        "indices_hidden_states": torch.ones(1, 2),
        "indices_latents_history_short": torch.ones(1, 1),
        "indices_latents_history_mid": torch.ones(1, 1),
        "indices_latents_history_long": torch.ones(1, 4),
        "latents_history_short": randn(1, 16, 1, 16, 24),
        "latents_history_mid": randn(1, 16, 1, 16, 24),
        "latents_history_long": randn(1, 16, 4, 16, 24),
    }
    return Tiny(module=module, inputs=inputs, grids=[f"{96 + 24 + 6}+2x8x12"])


HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10,
    "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "patch_size": 2,
    "patch_size_t": 1, "guidance_embeds": True, "text_embed_dim": 16,
    "pooled_projection_dim": 8, "rope_axes_dim": (2, 4, 4),
}  # fmt: skip


def _hunyuan_inputs(batch=1):
    return {
        "hidden_states": video(4, batch),
        "timestep": T.expand(batch),
        "encoder_hidden_states": randn(batch, 12, 16),
        "encoder_attention_mask": torch.cat([TEXT, torch.ones_like(TEXT)])[:batch],
        "pooled_projections": randn(batch, 8),
        "guidance": torch.tensor([6000.0]).expand(batch),
    }


def hunyuan_video():
    module = make("HunyuanVideoTransformer3DModel", **HUNYUAN)
    return Tiny(module=module, inputs=_hunyuan_inputs(), grids=[f"{GRID}+9"], masked=True)


def hunyuan_video_batch():
    """Two prompts, of which one is shorter."""
    made = hunyuan_video()
    return replace(made, inputs=_hunyuan_inputs(2), grids=[f"{GRID}+12", f"{GRID}+9"])


def hunyuan_video_i2v():
    module = make("HunyuanVideoTransformer3DModel", **HUNYUAN, image_condition_type="token_replace")
    return replace(hunyuan_video(), module=module)


def hunyuan_video_15():
    module = make("HunyuanVideo15Transformer3DModel",
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, text_embed_dim=16, text_embed_2_dim=8,
        image_embed_dim=12, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    inputs = _hunyuan_inputs() | {
        "hidden_states": randn(1, 4, 3, 5, 7),
        "encoder_hidden_states_2": randn(1, 6, 8),
        "encoder_attention_mask_2": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "image_embeds": torch.zeros(1, 5, 12),
    }
    del inputs["pooled_projections"], inputs["guidance"]
    grids = [f"{GRID}+13"]
    return Tiny(module=module, inputs=inputs, grids=grids, patch=(1, 1, 1), masked=True)


def hunyuan_video_15_i2v():
    made = hunyuan_video_15()
    return replace(
        made, inputs=made.inputs | {"image_embeds": randn(1, 5, 12)}, grids=[f"{GRID}+18"]
    )


def framepack():
    module = make(
        "HunyuanVideoFramepackTransformer3DModel",
        **HUNYUAN,
        has_image_proj=True,
        image_proj_dim=16,
        has_clean_x_embedder=True,
    )
    inputs = _hunyuan_inputs() | {
        "image_embeds": randn(1, 3, 16),
        "indices_latents": torch.ones(3),
        "latents_clean": randn(1, 4, 2, 10, 14),
        "indices_latents_clean": torch.ones(2),
        "latents_history_2x": randn(1, 4, 2, 10, 14),
        "indices_latents_history_2x": torch.ones(2),
        "latents_history_4x": randn(1, 4, 5, 10, 14),
        "indices_latents_history_4x": torch.ones(5),
    }
    history = 2 * 5 * 7 + 1 * 3 * 4 + 2 * 2 * 2
    return Tiny(module=module, inputs=inputs, grids=[f"{history}+{GRID}+12"])


def motif_video():
    """Its last block sees the video a second time."""
    module = make("MotifVideoTransformer3DModel",
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=2, num_decoder_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=16,
        rope_axes_dim=(4, 4, 8), enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )  # fmt: skip
    inputs = _hunyuan_inputs()
    del inputs["pooled_projections"], inputs["guidance"]
    grids = [f"{GRID}+105", f"{GRID}+9"]
    return Tiny(module=module, inputs=inputs, grids=grids, layers=3, masked=True)


COGVIDEOX = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 2, "text_embed_dim": 8, "num_layers": 2, "sample_width": 14,
    "sample_height": 10, "sample_frames": 9, "patch_size": 2, "temporal_compression_ratio": 4,
    "max_text_seq_length": 7,
}  # fmt: skip


def cogvideox():
    inputs = {
        "hidden_states": randn(2, 3, 4, 10, 14),
        "encoder_hidden_states": randn(2, 7, 8),
        "timestep": torch.tensor([750, 750]),
    }
    module = make("CogVideoXTransformer3DModel", **COGVIDEOX)
    return Tiny(module=module, inputs=inputs, grids=[f"7+{GRID}"], axes=(1, 3, 4))


def cogvideox_15():
    """Patches of two frames."""
    module = make(
        "CogVideoXTransformer3DModel",
        **COGVIDEOX,
        patch_size_t=2,
        use_rotary_positional_embeddings=True,
        patch_bias=False,
    )
    made = cogvideox()
    inputs = made.inputs | {"hidden_states": randn(2, 6, 4, 10, 14)}
    return replace(made, module=module, inputs=inputs, patch=(2, 2, 2))


def consisid():
    module = make(
        "ConsisIDTransformer3DModel", **COGVIDEOX, cross_attn_interval=1, is_train_face=False
    )
    return replace(cogvideox(), module=module)


def mochi():
    """Attention is called for each entry of the batch, without its padding."""
    module = make("MochiTransformer3DModel",
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=4, text_embed_dim=16, time_embed_dim=4,
        max_sequence_length=16,
    )  # fmt: skip
    inputs = {
        "hidden_states": video(4, 2),
        "encoder_hidden_states": randn(2, 12, 16),
        "timestep": torch.tensor([250, 250]),
        "encoder_attention_mask": torch.cat([TEXT, torch.ones_like(TEXT)]).bool(),
    }
    return Tiny(module=module, inputs=inputs, grids=[f"{GRID}+12", f"{GRID}+9"])


def ltx():
    module = make("LTXVideoTransformer3DModel",
        in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=2, caption_channels=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": randn(1, 105, 8),
        "encoder_hidden_states": randn(1, 12, 32),
        "timestep": T,
        "encoder_attention_mask": TEXT,
        "num_frames": 3,
        "height": 5,
        "width": 7,
    }
    return Tiny(module=module, inputs=inputs, axes=None)


def ltx_condition():
    """Coordinates instead of sizes, as in LTXConditionPipeline; three condition frames before."""
    made = ltx()
    grid = torch.stack(torch.meshgrid(*map(torch.arange, (3, 5, 7)), indexing="ij")).flatten(1)
    first, last = grid[:, :35], grid[:, -35:]  # what the condition frames stand for
    scale = torch.tensor([0.25, 32.0, 32.0])[:, None]  # seconds and pixels
    inputs = made.inputs | {
        "hidden_states": randn(1, 210, 8),
        "video_coords": torch.cat([first, last, first, grid], dim=1)[None] * scale,
        "timestep": torch.full((1, 210), 750.0),
    }
    for name in ("num_frames", "height", "width"):
        del inputs[name]
    return replace(made, inputs=inputs, grids=[f"105+{GRID}"], start=105)


def ltx2():
    """Video and audio; three condition tokens after the video."""
    module = make("LTX2VideoTransformer3DModel",
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4,
        audio_num_attention_heads=2, audio_attention_head_dim=4, audio_cross_attention_dim=8,
        num_layers=2, caption_channels=16, rope_double_precision=False,
    )  # fmt: skip
    inputs = {
        "hidden_states": randn(1, 105, 8),
        "audio_hidden_states": randn(1, 9, 4),
        "encoder_hidden_states": randn(1, 12, 16),
        "audio_encoder_hidden_states": randn(1, 12, 16),
        "timestep": T,
        "num_frames": 3,
        "height": 5,
        "width": 7,
        "audio_num_frames": 9,
        "encoder_attention_mask": TEXT,
        "audio_encoder_attention_mask": TEXT,
    }
    return Tiny(module=module, inputs=inputs, axes=None)


def ltx2_condition():
    made = ltx2()
    module: Any = made.module
    coordinates = module.rope.prepare_video_coords(1, 3, 5, 7, torch.device("cpu"))
    inputs = made.inputs | {
        "hidden_states": randn(1, 108, 8),
        "video_coords": torch.cat([coordinates, coordinates[:, :, :3]], dim=2),
    }
    return replace(made, inputs=inputs, grids=[f"{GRID}+3"])


def allegro(mask=None):
    module = make("AllegroTransformer3DModel",
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_width=14, sample_height=10, sample_frames=3,
        caption_channels=24,
    )  # fmt: skip
    inputs = {
        "hidden_states": video(4),
        "encoder_hidden_states": randn(1, 1, 5, 24),
        "timestep": torch.tensor([750]),
        "attention_mask": mask,
        "encoder_attention_mask": torch.ones(1, 5),
        "image_rotary_emb": None,
    }
    return Tiny(module=module, inputs=inputs)


def allegro_masked():
    """With a mask that leaves nothing out, which the model adds to the scores of each head."""
    return replace(allegro(torch.ones(1, *LATENTS)), masked=True)


def easyanimate():
    module = make("EasyAnimateTransformer3DModel",
        attention_head_dim=16, num_attention_heads=2, in_channels=4, out_channels=4,
        mmdit_layers=2, num_layers=2, patch_size=2, sample_height=60, sample_width=90,
        text_embed_dim=16, time_embed_dim=8,
    )  # fmt: skip
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([750]),
        "encoder_hidden_states": randn(1, 7, 16),
    }
    return Tiny(module=module, inputs=inputs, grids=[f"7+{GRID}"])


COSMOS = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16,
    "num_layers": 2, "mlp_ratio": 2, "text_embed_dim": 32, "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
}  # fmt: skip


def _cosmos_inputs():
    """``padding_mask`` is resized by torchvision, which need not be there."""
    module = sys.modules[type(make("CosmosTransformer3DModel", **COSMOS)).__module__]
    if not hasattr(module, "transforms"):
        nearest = SimpleNamespace(NEAREST="nearest")
        resize = SimpleNamespace(resize=lambda x, size, interpolation: F.interpolate(x, size))
        vars(module)["transforms"] = SimpleNamespace(functional=resize, InterpolationMode=nearest)
    return {
        "hidden_states": video(4),
        "encoder_hidden_states": randn(1, 7, 32),
        "fps": 30,
        "padding_mask": torch.zeros(1, 1, 80, 112),
    }


def cosmos_1():
    """The timestep is a quarter of log sigma, here of sigma 3: three parts noise to one."""
    inputs = _cosmos_inputs() | {"timestep": torch.tensor([0.25 * math.log(3)])}
    return Tiny(module=make("CosmosTransformer3DModel", **COSMOS), inputs=inputs)


def cosmos_2():
    """Of image to video: the first frame is clean, whatever the level of the others."""
    levels = torch.full((1, 1, 3, 1, 1), LEVEL)
    levels[:, :, 0] = 0.9
    module = make("CosmosTransformer3DModel", **COSMOS, extra_pos_embed_type=None)
    return Tiny(module=module, inputs=_cosmos_inputs() | {"timestep": levels})


def cosmos_25():
    module = make(
        "CosmosTransformer3DModel",
        **COSMOS,
        extra_pos_embed_type=None,
        img_context_dim_in=12,
        img_context_dim_out=32,
        img_context_num_tokens=5,
    )
    text = (randn(1, 7, 32), randn(1, 5, 12))
    inputs = _cosmos_inputs() | {"encoder_hidden_states": text, "timestep": SIGMA}
    return Tiny(module=module, inputs=inputs)


KANDINSKY = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 16,
    "patch_size": (1, 2, 2), "model_dim": 16, "ff_dim": 32, "num_text_blocks": 1,
    "num_visual_blocks": 2, "axes_dims": (2, 2, 4), "visual_cond": False,
}  # fmt: skip


def _kandinsky_inputs(frames=3):
    return {
        "hidden_states": randn(1, frames, 10, 14, 4),
        "encoder_hidden_states": randn(1, 7, 12),
        "timestep": T,
        "pooled_projections": randn(1, 8),
    }


def kandinsky5():
    positions = {
        "visual_rope_pos": [torch.arange(n) for n in (3, 5, 7)],
        "text_rope_pos": torch.arange(7),
    }
    module = make("Kandinsky5Transformer3DModel", **KANDINSKY)
    return Tiny(module=module, inputs=_kandinsky_inputs() | positions, axes=(1, 2, 3))


def kandinsky6():
    module = make("Kandinsky6Transformer3DModel", **KANDINSKY, in_audio_dim=4, out_audio_dim=4)
    inputs = _kandinsky_inputs() | {"audio_hidden_states": randn(1, 9, 4)}
    return Tiny(module=module, inputs=inputs, axes=(1, 2, 3))


def kandinsky6_i2v():
    """The first frame again, as a reference after the last."""
    module = make(
        "Kandinsky6Transformer3DModel",
        **KANDINSKY,
        in_audio_dim=4,
        out_audio_dim=4,
        visual_token_type_num_embeddings=2,
    )
    inputs = _kandinsky_inputs(4) | {
        "audio_hidden_states": randn(1, 9, 4),
        "visual_token_type_ids": torch.tensor([[0, 0, 0, 1]]),
    }
    return Tiny(module=module, inputs=inputs, axes=(1, 2, 3), grids=[f"{GRID}+35"])


JOYIMAGE = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 16, "num_attention_heads": 2,
    "text_dim": 8, "num_layers": 2, "rope_dim_list": [2, 2, 4],
}  # fmt: skip


def joyimage():
    """The image, and a reference image after it, which the pipeline passes before it."""
    module = make("JoyImageEditTransformer3DModel", **JOYIMAGE)
    inputs = {
        "hidden_states": randn(1, 2, 4, 1, 10, 14),
        "timestep": T,
        "encoder_hidden_states": randn(1, 7, 8),
    }
    return Tiny(module=module, inputs=inputs, grids=["1x5x7+42"], axes=None, stacked=True)


def joyimage_plus():
    """A reference image of 2 x 4 tokens."""
    module = make("JoyImageEditPlusTransformer3DModel", **JOYIMAGE)
    inputs = {
        "hidden_states": randn(1, 35 + 8, 4, 1, 2, 2),
        "timestep": T,
        "encoder_hidden_states": randn(1, 12, 8),
        "encoder_hidden_states_mask": TEXT,
        "shape_list": [[(1, 5, 7), (1, 2, 4)]],
    }
    return Tiny(module=module, inputs=inputs, grids=["1x5x7+17"], axes=None, masked=True)


# Images

FLUX = {
    "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "axes_dims_rope": [4, 4, 8],
}  # fmt: skip


def _flux_inputs(axes=3):
    return {
        "hidden_states": randn(1, 35, 4),
        "encoder_hidden_states": randn(1, 9, 32),
        "timestep": SIGMA,
        "img_ids": ids(5, 7, axes),
        "txt_ids": torch.zeros(9, axes),
    }


def flux():
    module = make("FluxTransformer2DModel", **FLUX, pooled_projection_dim=32)
    inputs = _flux_inputs() | {"pooled_projections": randn(1, 32)}
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None)


def flux_kontext():
    """A reference image of another size after the image."""
    made = flux()
    inputs = made.inputs | {
        "hidden_states": randn(1, 99 + 24, 4),
        "img_ids": torch.cat([ids(9, 11), ids(4, 6, first=1.0)]),
    }
    return replace(made, inputs=inputs, grids=["9+1x9x11+24"])


def flux2():
    module = make("Flux2Transformer2DModel", **(FLUX | {"axes_dims_rope": [4, 4, 4, 4]}))
    inputs = _flux_inputs(4) | {"guidance": torch.tensor([1.0])}
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None)


def flux2_edit():
    made = flux2()
    inputs = made.inputs | {
        "hidden_states": randn(1, 99 + 24, 4),
        "img_ids": torch.cat([ids(9, 11, 4), ids(4, 6, 4, first=10.0)])[None],
    }
    return replace(made, inputs=inputs, grids=["9+1x9x11+24"])


def flux3():
    """The first layer sees the image alone."""
    config = {"in_channels": 4, "cond_in_channels": 4, "num_layers": 1, "num_single_layers": 1}
    sizes = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32}
    module = make("Flux3Transformer2DModel", **config, **sizes, axes_dims_rope=(4, 4, 4, 4))
    grids = ["1x5x7", "9+1x5x7"]
    return Tiny(module=module, inputs=_flux_inputs(4), grids=grids, axes=None)


def flux3_edit():
    references = {
        "image_cond_hidden_states": randn(1, 24, 4),
        "image_cond_ids": ids(4, 6, 4, first=10.0),
    }
    made = flux3()
    return replace(made, inputs=made.inputs | references, grids=["1x5x7", "9+1x5x7+24"])


def bria_fibo2():
    module = make("BriaFibo2Transformer2DModel",
        in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=16,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=8,
        max_num_gist_tokens=16, gist_step=4, gist_min_text_len=4, gist_max_text_len=32,
        axes_dims=(8, 12, 12), axes_lens=(64, 32, 32),
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4),
        "timestep": SIGMA,
        "encoder_hidden_states": randn(1, 2, 18, 16),
    }
    grids = ["12+1x5x7", "1x5x7"]
    return Tiny(module=module, inputs=inputs, grids=grids, layers=3, axes=(2, 3), patch=(2, 2))


def bria_fibo2_edit():
    made = bria_fibo2()
    inputs = made.inputs | {"context_latents": [image(4, height=4, width=6)]}
    return replace(made, inputs=inputs, grids=["12+1x5x7+6", "1x5x7+6"])


def longcat_image():
    module = make("LongCatImageTransformer2DModel", **FLUX, pooled_projection_dim=32)
    inputs = _flux_inputs() | {"img_ids": ids(5, 7, first=1.0, start=512.0)}
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None)


def ovis_image():
    module = make("OvisImageTransformer2DModel", **FLUX, out_channels=4)
    return Tiny(module=module, inputs=_flux_inputs(), grids=["9+1x5x7"], axes=None)


def bria():
    module = make("BriaTransformer2DModel", **FLUX)
    inputs = _flux_inputs() | {"timestep": T}
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None)


def bria_fibo():
    """Padding as 0 and -inf for each pair of tokens."""
    module = make("BriaFiboTransformer2DModel", **FLUX, text_encoder_dim=16)
    valid = torch.tensor([[1] * 6 + [0] * 3 + [1] * 35]).bool()
    pairs = valid[:, None, :] & valid[:, :, None]
    bias = torch.zeros(pairs.shape).masked_fill(~pairs, float("-inf"))
    inputs = _flux_inputs() | {
        "timestep": T,
        "text_encoder_layers": [randn(1, 9, 16)] * 2,
        "joint_attention_kwargs": {"attention_mask": bias[:, None]},
    }
    return Tiny(module=module, inputs=inputs, grids=["6+1x5x7"], axes=None, masked=True)


QWEN = {
    "patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16,
    "axes_dims_rope": (8, 4, 4),
}  # fmt: skip


def qwen_image():
    module = make("QwenImageTransformer2DModel", **QWEN)
    inputs = {
        "hidden_states": randn(1, 35, 16),
        "encoder_hidden_states": randn(1, 12, 16),
        "encoder_hidden_states_mask": TEXT.bool(),
        "timestep": SIGMA,
        "img_shapes": [[(1, 5, 7)]],
    }
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None, masked=True)


def qwen_image_edit():
    """Two prompts, and a reference image after the image."""
    made = qwen_image()
    inputs = made.inputs | {
        "hidden_states": randn(2, 99 + 24, 16),
        "encoder_hidden_states": randn(2, 12, 16),
        "encoder_hidden_states_mask": torch.cat([TEXT, torch.ones_like(TEXT)]).bool(),
        "timestep": SIGMA.expand(2),
        "img_shapes": [[(1, 9, 11), (1, 4, 6)]] * 2,
    }
    return replace(made, inputs=inputs, grids=["12+1x9x11+24", "9+1x9x11+24"])


def qwen_image_layered():
    """Two layers of one size, and the image they are taken from after them."""
    made = qwen_image()
    module = make("QwenImageTransformer2DModel", **QWEN, use_layer3d_rope=True)
    inputs = made.inputs | {
        "hidden_states": randn(1, 3 * 35, 16),
        "img_shapes": [[(1, 5, 7)] * 3],
    }
    return replace(made, module=module, inputs=inputs, grids=["9+2x5x7+35"])


def krea2():
    module = make("Krea2Transformer2DModel",
        in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=16, timestep_embed_dim=16, text_hidden_dim=8,
        num_text_layers=2, text_num_attention_heads=2, text_num_key_value_heads=2,
        text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    inputs = {
        "hidden_states": randn(1, 35, 8),
        "encoder_hidden_states": randn(1, 12, 2, 8),
        "timestep": SIGMA,
        "position_ids": torch.cat([torch.zeros(12, 3), ids(5, 7)]),
        "encoder_attention_mask": TEXT.bool(),
    }
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=None, masked=True)


def sd3():
    """The first layer has a second self-attention, over the image alone."""
    module = make("SD3Transformer2DModel",
        sample_size=32, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=96, dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4),
        "encoder_hidden_states": randn(1, 9, 16),
        "pooled_projections": randn(1, 8),
        "timestep": torch.tensor([750]),
    }
    grids = ["1x5x7", "1x5x7+9"]
    return Tiny(module=module, inputs=inputs, grids=grids, layers=3, axes=(2, 3), patch=(2, 2))


def pixart():
    module = make("PixArtTransformer2DModel",
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2,
        in_channels=4, cross_attention_dim=16, out_channels=8, num_embeds_ada_norm=8,
        use_additional_conditions=False, caption_channels=16,
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4),
        "encoder_hidden_states": randn(1, 7, 16),
        "timestep": torch.tensor([750]),
        "added_cond_kwargs": {},
    }
    return Tiny(module=module, inputs=inputs, grids=["1x5x7"], axes=(2, 3), patch=(2, 2))


def hunyuan_dit():
    module = make("HunyuanDiT2DModel",
        sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        in_channels=4, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4,
        hidden_size=24, text_len=4, text_len_t5=4, activation_fn="gelu-approximate",
        use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4, height=16, width=16),
        "timestep": T,
        "encoder_hidden_states": randn(1, 4, 8),
        "text_embedding_mask": torch.ones(1, 4),
        "encoder_hidden_states_t5": randn(1, 4, 8),
        "text_embedding_mask_t5": torch.ones(1, 4),
        "image_rotary_emb": [randn(64, 8), randn(64, 8)],
    }
    return Tiny(module=module, inputs=inputs, grids=["1x8x8"], axes=(2, 3), patch=(2, 2))


def hunyuan_image():
    module = make("HunyuanImageTransformer2DModel",
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1), text_embed_dim=8,
        rope_axes_dim=(8, 8),
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4, height=5, width=7),
        "encoder_hidden_states": randn(1, 12, 8),
        "timestep": T,
        "encoder_attention_mask": TEXT,
    }
    grids = ["1x5x7+9"]
    return Tiny(module=module, inputs=inputs, grids=grids, axes=(2, 3), patch=(1, 1), masked=True)


def hunyuan_image_refiner():
    module = make("HunyuanImageTransformer2DModel",
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=(1, 1, 1), text_embed_dim=8,
        rope_axes_dim=(4, 4, 8),
    )  # fmt: skip
    inputs = hunyuan_image().inputs | {"hidden_states": randn(1, 4, 3, 5, 7)}
    grids = [f"{GRID}+9"]
    return Tiny(module=module, inputs=inputs, grids=grids, patch=(1, 1, 1), masked=True)


def auraflow():
    module = make("AuraFlowTransformer2DModel",
        sample_size=32, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pos_embed_max_size=256,
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4),
        "encoder_hidden_states": randn(1, 9, 16),
        "timestep": SIGMA,
    }
    return Tiny(module=module, inputs=inputs, grids=["17+1x5x7"], axes=(2, 3), patch=(2, 2))


def lumina_next():
    module = make("LuminaNextDiT2DModel",
        sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, ffn_dim_multiplier=None,
        norm_eps=1e-5, learn_sigma=False, qk_norm=True, cross_attention_dim=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4),
        "timestep": 1 - SIGMA,
        "encoder_hidden_states": randn(1, 7, 32),
        "encoder_mask": torch.ones(1, 7),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 384, 384),
        "cross_attention_kwargs": {"base_sequence_length": 64},
    }
    return Tiny(module=module, inputs=inputs, grids=["1x5x7"], axes=(2, 3), patch=(2, 2))


def lumina2():
    """Two prompts: the image begins where each ends."""
    module = make("Lumina2Transformer2DModel",
        sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=2,
        num_refiner_layers=1, num_attention_heads=3, num_kv_heads=1, multiple_of=2,
        scaling_factor=1.0, axes_dim_rope=(4, 2, 2), axes_lens=(128, 128, 128), cap_feat_dim=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4, 2),
        "encoder_hidden_states": randn(2, 12, 32),
        "timestep": 1 - SIGMA.expand(2),
        "encoder_attention_mask": torch.cat([TEXT, torch.ones_like(TEXT)]).bool(),
    }
    grids = ["12+1x5x7", "1x5x7", "9+1x5x7"]
    return Tiny(
        module=module, inputs=inputs, grids=grids, layers=3, axes=(2, 3), patch=(2, 2), masked=True
    )


def omnigen():
    """Two prompts, the first of which is padded before; text attends causally."""
    module = make("OmniGenTransformer2DModel",
        in_channels=4, patch_size=2, hidden_size=32, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, num_layers=2, pad_token_id=0, vocab_size=50, time_step_dim=4,
        max_position_embeddings=512, original_max_position_embeddings=512,
        rope_scaling={"long_factor": list(range(1, 9)), "short_factor": list(range(1, 9))},
    )  # fmt: skip
    words, seen = torch.tensor([[0] * 3 + [1] * 6, [1] * 9]), 9 + 1 + 35
    mask = torch.ones(2, seen, seen)
    mask[:, :10] = torch.ones(seen, seen).tril()[:10]  # text and time
    mask[0, 3:, :3], mask[0, :3] = 0, 1
    inputs = {
        "hidden_states": image(4, 2),
        "timestep": 1 - SIGMA.expand(2),
        "input_ids": words * torch.arange(1, 10),
        "input_img_latents": [],
        "input_image_sizes": {},
        "attention_mask": mask,
        "position_ids": torch.arange(seen).expand(2, -1),
    }
    grids = ["10+1x5x7", "7+1x5x7"]
    return Tiny(module=module, inputs=inputs, grids=grids, axes=(2, 3), patch=(2, 2), masked=True)


def hidream(height=12, width=12):
    module = make("HiDreamImageTransformer2DModel",
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_channels=[32, 16], text_emb_dim=64,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16), llama_layers=(0, 1),
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4, height=height, width=width),
        "encoder_hidden_states_t5": randn(1, 7, 32),
        "encoder_hidden_states_llama3": randn(2, 1, 7, 16),
        "pooled_embeds": randn(1, 64),
        "timesteps": torch.tensor([750]),
    }
    return Tiny(module=module, inputs=inputs, grids=["1x6x6+21"], axes=(2, 3), patch=(2, 2))


def hidream_wide():
    """An image that is no square is padded to the 64 tokens of the largest one."""
    return replace(hidream(10, 14), grids=[f"1x5x7+{64 - 35 + 21}"])


def cogview3_plus():
    module = make("CogView3PlusTransformer2DModel",
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=4, pos_embed_max_size=16,
        sample_size=16,
    )  # fmt: skip
    return replace(_cogview(), module=module)


def cogview4():
    module = make("CogView4Transformer2DModel",
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4,
        out_channels=4, text_embed_dim=8, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    return replace(_cogview(), module=module)


def _cogview():
    inputs = {
        "hidden_states": image(4),
        "encoder_hidden_states": randn(1, 9, 8),
        "timestep": torch.tensor([750]),
        "original_size": torch.tensor([[20.0, 20.0]]),
        "target_size": torch.tensor([[20.0, 20.0]]),
        "crop_coords": torch.tensor([[0.0, 0.0]]),
    }
    module = nn.Module()
    return Tiny(module=module, inputs=inputs, grids=["9+1x5x7"], axes=(2, 3), patch=(2, 2))


def ernie_image():
    """Two prompts."""
    module = make("ErnieImageTransformer2DModel",
        hidden_size=16, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=4,
        out_channels=4, patch_size=1, text_in_dim=8, rope_axes_dim=(4, 2, 2),
    )  # fmt: skip
    inputs = {
        "hidden_states": image(4, 2, height=5, width=7),
        "timestep": T.expand(2),
        "text_bth": randn(2, 12, 8),
        "text_lens": torch.tensor([9, 12]),
    }
    grids = ["1x5x7+12", "1x5x7+9"]
    return Tiny(module=module, inputs=inputs, grids=grids, axes=(2, 3), patch=(1, 1), masked=True)


def z_image():
    """Image and text are padded to 64 and 32 tokens; the second text to 64."""
    module = make("ZImageTransformer2DModel",
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=2,
        n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=8, axes_dims=[2, 2, 4],
        axes_lens=[256, 32, 32],
    )  # fmt: skip
    inputs = {
        "x": [randn(4, 1, 10, 14), randn(4, 1, 10, 14)],
        "t": 1 - SIGMA.expand(2),
        "cap_feats": [randn(7, 8), randn(40, 8)],
    }
    grids = ["1x5x7+29", f"1x5x7+{29 + 32}", f"1x5x7+{29 + 64}"]
    return Tiny(
        module=module,
        inputs=inputs,
        grids=grids,
        layers=3,
        latents="x",
        axes=(2, 3),
        patch=(2, 2),
        masked=True,
    )


_BUILDERS: list[Callable[[], Tiny]] = [
    wan, wan_i2v, wan_ti2v, wan_vace, wan_vace_references, wan_animate, chronoedit, skyreels_v2,
    anyflow, helios,
    hunyuan_video, hunyuan_video_batch, hunyuan_video_i2v, hunyuan_video_15, hunyuan_video_15_i2v,
    framepack, motif_video, cogvideox, cogvideox_15, consisid, mochi, ltx, ltx_condition, ltx2,
    ltx2_condition, allegro, allegro_masked, easyanimate, cosmos_1, cosmos_2, cosmos_25,
    kandinsky5, kandinsky6, kandinsky6_i2v, joyimage, joyimage_plus, flux, flux_kontext, flux2,
    flux2_edit, flux3, flux3_edit, longcat_image, ovis_image, bria, bria_fibo, bria_fibo2,
    bria_fibo2_edit, qwen_image, qwen_image_edit, qwen_image_layered, krea2, sd3, pixart,
    hunyuan_dit, hunyuan_image, hunyuan_image_refiner, auraflow, lumina_next, lumina2, omnigen,
    hidream, hidream_wide, cogview3_plus, cogview4, ernie_image, z_image,
]  # fmt: skip


def _seeded(build: Callable[[], Tiny]) -> Callable[[], Tiny]:
    def seeded() -> Tiny:
        torch.manual_seed(0)
        made = build()
        made.module.eval().requires_grad_(False)
        for parameter in made.module.parameters():  # some start at zero, and would hide everything
            if not parameter.any():
                parameter.normal_(std=0.1)
        return made

    return seeded


MODELS: dict[str, Callable[[], Tiny]] = {build.__name__: _seeded(build) for build in _BUILDERS}
