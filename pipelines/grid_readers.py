"""How the token grid is read from the arguments of a transformer's forward call.

Each reader takes the transformer's config and the arguments by name, and returns frames, rows and
columns in tokens. The second half says how many tokens that are no video stand before them, and
what noise level an argument means where two numbers do not say it.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor

from vidsparse.pipelines.layout import OnlyDense

Shape = tuple[int, int, int]
Arguments = Mapping[str, Any]


def channels_first(config: Any, arguments: Arguments) -> Shape:
    """Latents ``(batch, channels, frames, height, width)``."""
    return _patches(config, arguments["hidden_states"].shape[-3:])


def frames_first(config: Any, arguments: Arguments) -> Shape:
    """Latents ``(batch, frames, channels, height, width)``."""
    _, frames, _, height, width = arguments["hidden_states"].shape
    return _patches(config, (frames, height, width))


def channels_last(config: Any, arguments: Arguments) -> Shape:
    """Latents ``(batch, frames, height, width, channels)``, in raster order.

    With ``sparse_params`` Kandinsky 5 walks the video in squares of 8 x 8 and masks blocks.
    """
    if arguments.get("sparse_params") is not None:
        raise OnlyDense("the model already has sparse attention of its own (NABLA)")
    return _patches(config, arguments["hidden_states"].shape[1:4])


def without_tail(config: Any, arguments: Arguments) -> Shape:
    """Kandinsky 6, which hangs the first frame of image-to-video on the end as a reference."""
    frames, height, width = channels_last(config, arguments)
    has_tail = arguments.get("visual_token_type_ids") is not None
    return frames - has_tail, height, width


def without_reference(config: Any, arguments: Arguments) -> Shape:
    """Wan Animate, whose first latent frame is the picture of the character."""
    frames, height, width = channels_first(config, arguments)
    return frames - 1, height, width


def without_references(config: Any, arguments: Arguments) -> Shape:
    """Wan VACE, whose reference images are leading frames without a mask and nothing to make."""
    frames, height, width = channels_first(config, arguments)
    to_make = arguments["control_hidden_states"][:, config.in_channels :] != 0
    first = to_make.any(dim=4).any(dim=3).any(dim=1).any(dim=0).int().argmax()
    return frames - int(first), height, width


def image(config: Any, arguments: Arguments) -> Shape:
    """Latents ``(batch, channels, height, width)``: an image is one frame."""
    return _patches(config, (1, *arguments["hidden_states"].shape[-2:]))


def image_or_video(config: Any, arguments: Arguments) -> Shape:
    """HunyuanImage: an image, or, in its refiner, the frames of a video."""
    read = image if arguments["hidden_states"].ndim == 4 else channels_first
    return read(config, arguments)


def packed_video(config: Any, arguments: Arguments) -> Shape:
    """LTX: tokens ``(batch, tokens, channels)`` with their grid beside them, or coordinates."""
    if arguments.get("num_frames") is not None:
        return arguments["num_frames"], arguments["height"], arguments["width"]
    return _last_video(arguments["video_coords"][0].cpu())


def image_ids(config: Any, arguments: Arguments) -> Shape:
    """FLUX: tokens ``(batch, tokens, channels)``, each with its row and column."""
    if arguments.get("kv_cache_mode") is not None:
        raise OnlyDense("the model keeps the keys of reference images in a cache")
    ids = arguments["img_ids"]
    return _first_image(ids[0] if ids.ndim == 3 else ids)


def position_ids(config: Any, arguments: Arguments) -> Shape:
    """Krea 2: the ids of text and image in one."""
    return _first_image(arguments["position_ids"][text_length(config, arguments, 0) :])


def image_shapes(config: Any, arguments: Arguments) -> Shape:
    """Qwen-Image: the shapes of the image and of the references after it.

    Qwen-Image-Layered makes all but the last of them, layers of one size.
    """
    shapes = arguments["img_shapes"][0]
    shapes = [shapes] if isinstance(shapes[0], int) else shapes
    frames, height, width = shapes[0]
    if getattr(config, "use_layer3d_rope", False):
        frames *= len(shapes) - 1
    return frames, height, width


def shape_list(config: Any, arguments: Arguments) -> Shape:
    """JoyImage Edit Plus: the shapes of the image and of the references after it, by entry."""
    shapes = {shapes[0] for shapes in arguments["shape_list"]}
    if len(shapes) > 1:
        raise OnlyDense("the images of a batch differ in size")
    return shapes.pop()


def image_list(config: Any, arguments: Arguments) -> Shape:
    """Z-Image: a list of images, or of several for each entry of the batch."""
    latents = arguments["x"][0]
    if isinstance(latents, list):
        raise OnlyDense("the model is given reference images in between text and image")
    size, frames = arguments.get("patch_size", 2), arguments.get("f_patch_size", 1)
    return tuple(n // p for n, p in zip(latents.shape[1:], (frames, size, size), strict=True))


def patch_of(config: Any) -> Shape:
    """Latents per token of a transformer: frames, rows, columns."""
    size = getattr(config, "patch_size", None) or config.all_patch_size[0]  # Z-Image has several
    if isinstance(size, int):
        size = (size, size)
    if len(size) == 2:
        size = (getattr(config, "patch_size_t", None) or 1, *size)
    frames, height, width = size
    return frames, height, width


def _patches(config: Any, latents: Any) -> Shape:
    """Tokens of a latent video."""
    frames, height, width = (n // p for n, p in zip(latents, patch_of(config), strict=True))
    return frames, height, width


def _first_image(ids: Tensor) -> Shape:
    """Rows and columns of the first image in a list of ids (image, row, column, ...)."""
    ids = ids.cpu()
    own = ids[ids[:, 0] == ids[0, 0], 1:3]
    rows, columns = (own.amax(0) - own.amin(0) + 1).tolist()
    if rows * columns != len(own):
        raise OnlyDense(f"the ids of {len(own)} image tokens span {rows:g} x {columns:g}")
    return 1, int(rows), int(columns)


def _last_video(coordinates: Tensor) -> Shape:
    """The video at the end of a list of coordinates ``(3, tokens)``, after condition tokens."""
    time, *plane = coordinates
    height, width = (len(axis.unique()) for axis in plane)
    starts = time.flip(0)[:: height * width]  # of the frames, from the last
    earlier = (starts[1:] < starts[:-1]).long().cumprod(0)
    frames = 1 + int(earlier.sum())
    tokens = frames * height * width
    rows = plane[0][-tokens:].unflatten(0, (-1, height, width)) if tokens <= len(time) else None
    if rows is None or not (rows == rows[:1, :, :1]).all():
        raise OnlyDense("the coordinates of the tokens are not those of a video")
    return frames, height, width


def text_length(config: Any, arguments: Arguments, extra: int) -> int:
    """Text before, reference images after."""
    return arguments["encoder_hidden_states"].shape[1]


def text_of_joint_blocks(config: Any, arguments: Arguments, extra: int) -> int:
    """Text before, reference images after.

    The blocks of FLUX.3 that are no joint ones see the image alone.
    """
    return text_length(config, arguments, extra) if extra else 0


def gist_of_text(config: Any, arguments: Arguments, extra: int) -> int:
    """Gist of the text before, images to edit after.

    The first blocks of Bria Fibo 2 see no text. Prompts of different lengths move it to the end.
    """
    references = arguments.get("context_latents") or []
    images = sum(prod(_patches(config, (1, *latents.shape[-2:]))) for latents in references)
    is_batch = len(arguments["hidden_states"]) > 1
    if extra > images and is_batch and arguments.get("encoder_attention_mask") is not None:
        raise OnlyDense("prompts of different lengths stand in one batch")
    return extra - images


def reference_frame(config: Any, arguments: Arguments, extra: int) -> int:
    """Reference frame before."""
    return prod(channels_first(config, arguments)[1:])


def reference_frames(config: Any, arguments: Arguments, extra: int) -> int:
    """Reference images before."""
    return extra


def framepack_history(config: Any, arguments: Arguments, extra: int) -> int:
    """History before, image and text after."""
    patches = {
        "latents_clean": (1, 2, 2),
        "latents_history_2x": (2, 4, 4),
        "latents_history_4x": (4, 8, 8),
    }
    given = {name: arguments.get(name) for name in patches}
    return sum(
        prod(map(_ceil_divide, latents.shape[2:], patches[name]))
        for name, latents in given.items()
        if latents is not None
    )


def _ceil_divide(size: int, patch: int) -> int:
    return ceil(size / patch)


def cosmos_noise(config: Any, timestep: Any) -> Tensor:
    """A noise level of flow matching, but a quarter of the logarithm of an EDM sigma in Cosmos 1.

    Cosmos 1 alone has learned positions. Where the first frames are given, there is a level for
    each frame, and only that of the last is the one of the step.
    """
    level = torch.as_tensor(timestep)
    if level.ndim == 5:
        level = level[:, :, -1]
    level = level.cpu().double()  # on the host: not every device has float64
    return (4 * level).sigmoid() if config.extra_pos_embed_type == "learnable" else level
