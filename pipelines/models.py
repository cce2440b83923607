"""The model table: where attention sits in each transformer, and how its tokens are laid out.

Everything that differs between models is a row here; a new model is one more row. The facts were
read from diffusers 0.42: of a pipeline's noise, what it hands to its transformer, not what its
scheduler counts in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from vidsparse.errors import BadInputError
from vidsparse.pipelines import grid_readers
from vidsparse.pipelines.model import SHIPPED, Hub, Model, PipelineFacts, Release

SIGMA = (0.0, 1.0)  # timestep / 1000
REVERSED_SIGMA = (1.0, 0.0)  # 1 - timestep / 1000

WAN_14B = {"num_layers": 40, "num_attention_heads": 40, "pos_embed_seq_len": None}
WAN_T2V = {"in_channels": 16, "image_dim": None}
WAN_SCHEDULER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
WAN_720P = ("UniPCMultistepScheduler", WAN_SCHEDULER | {"flow_shift": 5.0})
WAN_TI2V_VAE = {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2,
    "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16,
}  # fmt: skip
WAN_HUB = Hub(
    short="wan2.1-1.3b",
    repository="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    pipeline="WanPipeline",
    frames=81,
    height=480,
    width=832,
    steps=50,
    guidance=5.0,
    fps=16,
    scheduler=("UniPCMultistepScheduler", WAN_SCHEDULER | {"flow_shift": 3.0}),
    vae=("AutoencoderKLWan", {}),
)
WAN_RELEASES = (
    Release(
        name=SHIPPED,
        config={"in_channels": 12, "num_layers": 8, "num_attention_heads": 4, "text_dim": 128},
    ),
    Release(
        name="Wan2.1-T2V-1.3B",
        config=WAN_T2V | {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
        hub=WAN_HUB,
    ),
    Release(
        name="Wan2.1-T2V-14B",
        config=WAN_14B | WAN_T2V,
        hub=replace(
            WAN_HUB, short="wan2.1-14b", repository="Wan-AI/Wan2.1-T2V-14B-Diffusers",
            height=720, width=1280, scheduler=WAN_720P,
        ),
    ),
    Release(name="Wan2.1-I2V-14B", config=WAN_14B | {"in_channels": 36, "image_dim": 1280}),
    Release(
        name="Wan2.2-T2V-A14B",
        config=WAN_14B | WAN_T2V,
        experts=2,
        hub=replace(
            WAN_HUB, short="wan2.2-a14b", repository="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
            height=720, width=1280, steps=40, guidance=4.0, guidance_2=3.0,
            settings={"boundary_ratio": 0.875},
            scheduler=("UniPCMultistepScheduler", WAN_SCHEDULER | {"flow_shift": 12.0}),
        ),
    ),
    Release(
        name="Wan2.2-I2V-A14B", config=WAN_14B | {"in_channels": 36, "image_dim": None}, experts=2
    ),
    Release(
        name="Wan2.2-TI2V-5B",
        config={
            "num_layers": 30, "num_attention_heads": 24, "in_channels": 48, "out_channels": 48,
            "ffn_dim": 14336,
        },
        hub=replace(
            WAN_HUB, short="wan2.2-ti2v-5b", repository="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
            frames=121, height=704, width=1280, fps=24, spatial=16, scheduler=WAN_720P,
            vae=("AutoencoderKLWan", WAN_TI2V_VAE), settings={"expand_timesteps": True},
        ),
    ),
)  # fmt: skip
COGVIDEOX_5B = {"num_layers": 42, "num_attention_heads": 48, "in_channels": 16}
COGVIDEOX_NOISE = {
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0,
    "timestep_spacing": "trailing",
}  # fmt: skip
LTX_NOISE = {
    "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "shift_terminal": 0.1,
    "base_image_seq_len": 1024,
}  # fmt: skip
LTX_2_VAE = {
    "decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}  # fmt: skip
FLOW = "FlowMatchEulerDiscreteScheduler"
QWEN_NOISE = {
    "use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192,
    "shift_terminal": 0.02, "time_shift_type": "exponential",
}  # fmt: skip
FLUX_VAE = {
    "latent_channels": 16, "layers_per_block": 2, "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip

VIDEO = (
    Model(
        name="Wan 2.1, 2.2; Lucy-Edit",
        transformers=("WanTransformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        cross_attention=r"blocks\.\d+\.attn2",
        video_shape=grid_readers.channels_first,
        releases=WAN_RELEASES,
        pipeline=PipelineFacts(fps=16),
        tested="pipeline",
    ),
    Model(
        name="ChronoEdit",
        transformers=("ChronoEditTransformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
    ),
    Model(  # causal diffusion forcing (num_frame_per_block > 1) masks by query: dense, and counted
        name="SkyReels-V2",
        transformers=("SkyReelsV2Transformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
    ),
    Model(
        name="Wan VACE",
        transformers=("WanVACETransformer3DModel",),
        self_attention=r"(vace_)?blocks\.\d+\.attn1",
        video_shape=grid_readers.without_references,
        text=grid_readers.reference_frames,
    ),
    Model(
        name="Wan Animate",
        transformers=("WanAnimateTransformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.without_reference,
        text=grid_readers.reference_frame,
    ),
    Model(
        name="HunyuanVideo, SkyReels-V1",
        transformers=("HunyuanVideoTransformer3DModel",),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.channels_first,
        text="suffix",
        masked=True,
        releases=(
            Release(
                name="HunyuanVideo",
                config={
                    "num_layers": 20,
                    "num_single_layers": 40,
                    "in_channels": 16,
                    "image_condition_type": None,
                },
                hub=Hub(
                    short="hunyuanvideo",
                    repository="hunyuanvideo-community/HunyuanVideo",
                    pipeline="HunyuanVideoPipeline",
                    frames=129,
                    height=720,
                    width=1280,
                    steps=50,
                    guidance=6.0,
                    fps=15,
                    spatial=None,
                    scheduler=(FLOW, {"shift": 7.0}),
                    vae=("AutoencoderKLHunyuanVideo", {}),
                ),
            ),
        ),
        pipeline=PipelineFacts(fps=15),
        tested="pipeline",
    ),
    Model(
        name="HunyuanVideo-1.5",
        transformers=("HunyuanVideo15Transformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.channels_first,
        text="suffix",
        padding=r"transformer_blocks\.\d+\.attn",
        releases=(
            Release(
                name="HunyuanVideo-1.5-480p_t2v",
                config={"num_layers": 54, "num_attention_heads": 16, "task_type": "t2v"},
                hub=Hub(
                    short="hunyuanvideo-1.5",
                    repository="hunyuanvideo-community/HunyuanVideo-1.5-480p_t2v",
                    pipeline="HunyuanVideo15Pipeline",
                    frames=121,
                    height=480,
                    width=848,
                    steps=50,
                    guidance=6.0,
                    fps=24,
                    spatial=None,
                    scheduler=(FLOW, {"shift": 5.0}),
                    vae=("AutoencoderKLHunyuanVideo15", {}),
                ),
            ),
        ),
        pipeline=PipelineFacts(calls_besides=1),  # guidance, which is a part of its pipeline
    ),
    Model(
        name="HunyuanVideo Framepack",
        transformers=("HunyuanVideoFramepackTransformer3DModel",),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.channels_first,
        text=grid_readers.framepack_history,
    ),
    Model(  # the last blocks see the video twice: the second time is kept whole, as text is
        name="Motif-Video",
        transformers=("MotifVideoTransformer3DModel",),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.channels_first,
        text="suffix",
    ),
    Model(
        name="CogVideoX 1.0, 1.5",
        transformers=("CogVideoXTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.frames_first,
        text="prefix",
        guidance="uncond first",
        releases=(
            Release(
                name="CogVideoX-5b",
                config=COGVIDEOX_5B
                | {"patch_size_t": None, "use_rotary_positional_embeddings": True},
                hub=Hub(
                    short="cogvideox-5b",
                    repository="zai-org/CogVideoX-5b",
                    pipeline="CogVideoXPipeline",
                    frames=49,
                    height=480,
                    width=720,
                    steps=50,
                    guidance=6.0,
                    fps=8,
                    spatial=None,
                    scheduler=("CogVideoXDDIMScheduler", COGVIDEOX_NOISE),
                    vae=("AutoencoderKLCogVideoX", {}),
                ),
            ),
            Release(name="CogVideoX1.5-5B", config=COGVIDEOX_5B | {"patch_size_t": 2}),
        ),
        pipeline=PipelineFacts(fps=8),
        tested="pipeline",
    ),
    Model(
        name="ConsisID",
        transformers=("ConsisIDTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.frames_first,
        text="prefix",
        guidance="uncond first",
    ),
    Model(
        name="Mochi",
        transformers=("MochiTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
        text="suffix",
        guidance="uncond first",
        noise=(1000.0, 0.0),
        one_by_one=True,
        releases=(
            Release(
                name="mochi-1-preview",
                config={"num_layers": 48, "num_attention_heads": 24, "in_channels": 12},
                hub=Hub(
                    short="mochi-1",
                    repository="genmo/mochi-1-preview",
                    pipeline="MochiPipeline",
                    frames=163,
                    height=480,
                    width=848,
                    steps=64,
                    guidance=4.5,
                    fps=30,
                    spatial=None,
                    scheduler=(FLOW, {"invert_sigmas": True}),
                    vae=("AutoencoderKLMochi", {}),
                ),
            ),
        ),
        pipeline=PipelineFacts(fps=30, least_steps=2),  # in two halves
        tested="pipeline",
    ),
    Model(  # extra condition frames come before the video
        name="LTX-Video",
        transformers=("LTXVideoTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.packed_video,
        text="prefix",
        guidance="uncond first",
        releases=(
            Release(
                name="LTX-Video",
                config={"num_layers": 28, "num_attention_heads": 32, "in_channels": 128},
                hub=Hub(
                    short="ltx-video",
                    repository="Lightricks/LTX-Video",
                    pipeline="LTXPipeline",
                    frames=161,
                    height=512,
                    width=704,
                    steps=50,
                    guidance=3.0,
                    fps=24,
                    spatial=None,
                    scheduler=(FLOW, LTX_NOISE),
                    vae=("AutoencoderKLLTXVideo", {}),
                ),
            ),
        ),
        pipeline=PipelineFacts(prompt_apart=True),
        tested="pipeline",
    ),
    Model(  # the video stream; extra condition frames come after the video
        name="LTX-2",
        transformers=("LTX2VideoTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.packed_video,
        text="suffix",
        guidance="uncond first",
        moves=1.5,
        releases=(
            Release(
                name="LTX-2",
                config={"num_layers": 48, "gated_attn": False, "cross_attn_mod": False},
                hub=Hub(
                    short="ltx-2",
                    repository="Lightricks/LTX-2",
                    pipeline="LTX2Pipeline",
                    frames=121,
                    height=512,
                    width=768,
                    steps=30,
                    guidance=3.0,
                    fps=24,
                    spatial=None,
                    scheduler=(FLOW, LTX_NOISE),
                    vae=("AutoencoderKLLTX2Video", LTX_2_VAE),
                ),
            ),
        ),
        pipeline=PipelineFacts(prompt_apart=True, calls_besides=2, stand_ins=True),
    ),
    Model(
        name="Allegro",
        transformers=("AllegroTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
        guidance="uncond first",
        pipeline=PipelineFacts(fps=15),
    ),
    Model(
        name="EasyAnimate",
        transformers=("EasyAnimateTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
        text="prefix",
        guidance="uncond first",
        pipeline=PipelineFacts(fps=8),
    ),
    Model(
        name="Cosmos 1, 2, 2.5",
        transformers=("CosmosTransformer3DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
        noise=grid_readers.cosmos_noise,
        releases=(
            Release(
                name="Cosmos-1.0-Diffusion-14B-Text2World",
                config={
                    "num_layers": 36,
                    "num_attention_heads": 40,
                    "in_channels": 16,
                    "extra_pos_embed_type": "learnable",
                },
            ),
        ),
    ),
    Model(
        name="Kandinsky 5",
        transformers=("Kandinsky5Transformer3DModel",),
        self_attention=r"visual_transformer_blocks\.\d+\.self_attention",
        video_shape=grid_readers.channels_last,
    ),
    Model(
        name="Kandinsky 6",
        transformers=("Kandinsky6Transformer3DModel",),
        self_attention=r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
        video_shape=grid_readers.without_tail,
        text="suffix",
    ),
    Model(  # history comes before the chunk that is made
        name="Helios",
        transformers=("HeliosTransformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.channels_first,
        text="prefix",
        pipeline=PipelineFacts(prompt_apart=True),
    ),
    Model(
        name="AnyFlow",
        transformers=("AnyFlowTransformer3DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.frames_first,
        guidance="uncond first",
    ),
    Model(  # reference images come after the image, and padding to the longest of a batch
        name="JoyImage Edit Plus",
        transformers=("JoyImageEditPlusTransformer3DModel",),
        self_attention=r"double_blocks\.\d+\.attn",
        video_shape=grid_readers.shape_list,
        text="suffix",
        guidance="uncond first",
    ),
    Model(  # reference images are further items of the batch's fifth dimension
        name="JoyImage Edit",
        transformers=("JoyImageEditTransformer3DModel",),
        self_attention=r"double_blocks\.\d+\.attn",
        video_shape=grid_readers.channels_first,
        text="suffix",
    ),
)

IMAGE = (
    Model(
        name="FLUX.1, Kontext",
        transformers=("FluxTransformer2DModel",),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image_ids,
        text=grid_readers.text_length,
        noise=SIGMA,
        moves=0.7,
        releases=(
            Release(
                name="FLUX.1-dev",
                config={
                    "num_layers": 19,
                    "num_single_layers": 38,
                    "in_channels": 64,
                    "guidance_embeds": True,
                },
                hub=Hub(
                    short="flux.1-dev",
                    repository="black-forest-labs/FLUX.1-dev",
                    pipeline="FluxPipeline",
                    frames=1,
                    height=1024,
                    width=1024,
                    steps=28,
                    guidance=3.5,
                    fps=1,
                    spatial=None,
                    scheduler=(FLOW, {"use_dynamic_shifting": True, "shift": 3.0}),
                    vae=("AutoencoderKL", FLUX_VAE),
                ),
            ),
        ),
        tested="pipeline",
    ),
    Model(
        name="FLUX.2; LongCat, Ovis",
        transformers=(
            "Flux2Transformer2DModel",
            "LongCatImageTransformer2DModel",
            "OvisImageTransformer2DModel",
        ),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image_ids,
        text=grid_readers.text_length,
        noise=SIGMA,
        releases=(
            Release(
                name="FLUX.2-dev",
                config={
                    "num_layers": 8,
                    "num_single_layers": 48,
                    "num_attention_heads": 48,
                    "guidance_embeds": True,
                },
                hub=Hub(
                    short="flux.2-dev",
                    repository="black-forest-labs/FLUX.2-dev",
                    pipeline="Flux2Pipeline",
                    frames=1,
                    height=1024,
                    width=1024,
                    steps=50,
                    guidance=4.0,
                    fps=1,
                    spatial=None,
                    scheduler=(FLOW, {"use_dynamic_shifting": True, "shift": 3.0}),
                    vae=("AutoencoderKLFlux2", {}),
                ),
            ),
        ),
    ),
    Model(  # its first blocks see the image alone
        name="FLUX.3",
        transformers=("Flux3Transformer2DModel",),
        self_attention=r"(mode_blocks\.image|single_transformer_blocks)\.\d+\.attn",
        video_shape=grid_readers.image_ids,
        text=grid_readers.text_of_joint_blocks,
        noise=SIGMA,
    ),
    Model(
        name="Bria Fibo 2",
        transformers=("BriaFibo2Transformer2DModel",),
        self_attention=r"(noise_refiner|layers)\.\d+\.attention",
        video_shape=grid_readers.image,
        text=grid_readers.gist_of_text,
        noise=SIGMA,
    ),
    Model(
        name="Bria, Bria Fibo",
        transformers=("BriaTransformer2DModel", "BriaFiboTransformer2DModel"),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image_ids,
        text=grid_readers.text_length,
        guidance="uncond first",
    ),
    Model(
        name="Qwen-Image",
        transformers=("QwenImageTransformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image_shapes,
        text=grid_readers.text_length,
        noise=SIGMA,
        padding=r"transformer_blocks\.\d+\.attn",
        padding_argument="encoder_hidden_states_mask",
        releases=(
            Release(
                name="Qwen-Image",
                config={"num_layers": 60, "num_attention_heads": 24, "in_channels": 64},
                hub=Hub(
                    short="qwen-image",
                    repository="Qwen/Qwen-Image",
                    pipeline="QwenImagePipeline",
                    frames=1,
                    height=1024,
                    width=1024,
                    steps=50,
                    guidance=1.0,  # without a negative prompt there is none
                    fps=1,
                    spatial=None,
                    scheduler=(FLOW, QWEN_NOISE),
                    vae=("AutoencoderKLQwenImage", {}),
                ),
            ),
        ),
    ),
    Model(
        name="Krea 2",
        transformers=("Krea2Transformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.position_ids,
        text="prefix",
        noise=SIGMA,
    ),
    Model(  # attn2 of Stable Diffusion 3.5 medium sees the image alone
        name="Stable Diffusion 3, 3.5",
        transformers=("SD3Transformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn2?",
        video_shape=grid_readers.image,
        text="suffix",
        guidance="uncond first",
        pipeline=PipelineFacts(uncounted_text=77),  # of CLIP
    ),
    Model(
        name="PixArt",
        transformers=("PixArtTransformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.image,
        guidance="uncond first",
        tested="pipeline",
    ),
    Model(
        name="Hunyuan-DiT",
        transformers=("HunyuanDiT2DModel",),
        self_attention=r"blocks\.\d+\.attn1",
        video_shape=grid_readers.image,
        guidance="uncond first",
    ),
    Model(
        name="HunyuanImage 2.1",
        transformers=("HunyuanImageTransformer2DModel",),
        self_attention=r"(single_)?transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image_or_video,
        text="suffix",
    ),
    Model(
        name="AuraFlow",
        transformers=("AuraFlowTransformer2DModel",),
        self_attention=r"(joint|single)_transformer_blocks\.\d+\.attn",
        video_shape=grid_readers.image,
        text="prefix",
        guidance="uncond first",
        noise=SIGMA,
    ),
    Model(
        name="Lumina-Next",
        transformers=("LuminaNextDiT2DModel",),
        self_attention=r"layers\.\d+\.attn1",
        video_shape=grid_readers.image,
        guidance="cond first",
        noise=REVERSED_SIGMA,
    ),
    Model(
        name="Lumina 2",
        transformers=("Lumina2Transformer2DModel",),
        self_attention=r"(noise_refiner|layers)\.\d+\.attn",
        video_shape=grid_readers.image,
        text="before the video",
        noise=REVERSED_SIGMA,
    ),
    Model(  # text attends causally, images in it to themselves
        name="OmniGen",
        transformers=("OmniGenTransformer2DModel",),
        self_attention=r"layers\.\d+\.self_attn",
        video_shape=grid_readers.image,
        text="prefix",
        guidance="cond first",
        noise=REVERSED_SIGMA,
        has_own_rows=True,
    ),
    Model(  # an image that is no square is padded, unmasked: after it, with the text
        name="HiDream",
        transformers=("HiDreamImageTransformer2DModel",),
        self_attention=r"(double|single)_stream_blocks\.\d+\.block\.attn1",
        video_shape=grid_readers.image,
        text="suffix",
        guidance="uncond first",
        timestep="timesteps",
    ),
    Model(
        name="CogView 3+",
        transformers=("CogView3PlusTransformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.image,
        text="prefix",
        guidance="uncond first",
    ),
    Model(
        name="CogView 4",
        transformers=("CogView4Transformer2DModel",),
        self_attention=r"transformer_blocks\.\d+\.attn1",
        video_shape=grid_readers.image,
        text="prefix",
    ),
    Model(
        name="ERNIE-Image",
        transformers=("ErnieImageTransformer2DModel",),
        self_attention=r"layers\.\d+\.self_attention",
        video_shape=grid_readers.image,
        text="suffix",
        guidance="uncond first",
    ),
    Model(  # image and text are padded to multiples of 32, unmasked: after the image, with the text
        name="Z-Image",
        transformers=("ZImageTransformer2DModel",),
        self_attention=r"(noise_refiner|layers)\.\d+\.attention",
        video_shape=grid_readers.image_list,
        text="suffix",
        guidance="cond first",
        timestep="t",
        noise=REVERSED_SIGMA,
    ),
)

MODELS: Mapping[str, Model] = {name: row for row in VIDEO + IMAGE for name in row.transformers}

UNSUPPORTED: Mapping[str, str] = {
    "AnyFlowFARTransformer3DModel": "it runs block masks of its own over a key-value cache",
    "ChromaTransformer2DModel": (
        "its pipelines add 1 to the scores of pairs of tokens that are no padding, instead of "
        "masking the others"
    ),
    "Cosmos3OmniTransformer": "its generated tokens attend to a longer sequence of keys",
    "DiTTransformer2DModel": "its images have at most 1,024 tokens, too few to gain",
    "DreamLiteTransformer2DModel": "it is a block of a U-Net",
    "GlmImageTransformer2DModel": "its image can attend to keys in a cache",
    "Ideogram4Transformer2DModel": "nothing yet reads the layout of its packed sequence",
    "Kandinsky6SRTransformer3DModel": "it already has sparse attention of its own (NABLA)",
    "LatteTransformer3DModel": (
        "it attends within a frame and across frames by turns, in sequences too short to gain"
    ),
    "MiniMaxH3Transformer3DModel": "nothing yet reads the layout of its packed sequence",
    "NucleusMoEImageTransformer2DModel": "its image attends to a longer sequence of keys",
    "PRXTransformer2DModel": "its image attends to a longer sequence of keys",
    "QwenImage21Transformer2DModel": "its segments attend causally, to keys in a cache",
    "SanaTransformer2DModel": "its self-attention is linear",
    "SanaVideoTransformer3DModel": "its self-attention is linear",
    "SanaWMLTX2RefinerTransformer3DModel": "its video attends to keys in a cache",
    "SanaWMTransformer3DModel": "its self-attention is linear in most layers",
    "Transformer2DModel": "it is a part of other models, such as U-Nets",
    "WanAnimate2Transformer3DModel": "it runs block masks of its own",
}


def find_model(transformer: nn.Module) -> Model:
    """The row of a transformer's class or of its nearest base class.

    Raises:
        BadInputError: When there is none, with the reason where there can be none.
    """
    for cls in type(transformer).__mro__:
        if cls.__name__ in MODELS:
            return MODELS[cls.__name__]
        if cls.__name__ in UNSUPPORTED:
            raise BadInputError(
                f"vidsparse cannot make {cls.__name__} sparse: {UNSUPPORTED[cls.__name__]}; run it "
                "without vidsparse"
            )
    raise BadInputError(
        f"vidsparse does not know the transformer {type(transformer).__name__}; it knows the "
        f"{len(MODELS)} of docs/models.md: a new one is one row in "
        "vidsparse/pipelines/models.py"
    )
