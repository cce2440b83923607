"""Frames in and out of files: ``.mp4``, ``.webm`` and ``.png`` to look at, ``.npy`` to measure.

Inside vidsparse a clip is "raw frames": a uint8 array ``(frames, height, width, 3)``, RGB. The
video formats are lossy, so metrics read raw frames or ``.npy``, never a decoded preview.
"""

from __future__ import annotations

import io
import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.files import replace_file, save_array
from vidsparse.pipelines.running.limits import check_number

# The colours are tagged as what the conversion from RGB makes of them, so that players agree.
_BT601 = {"colorspace": "smpte170m", "color_primaries": "smpte170m", "color_trc": "smpte170m"}
# x264's macroblock tree reads memory that nobody wrote: with it, one clip gives many files.
_CODECS = {
    ".mp4": ("libx264", {"crf": "17", "mbtree": "0", "color_range": "tv", **_BT601}),
    ".webm": ("libvpx-vp9", {"crf": "20", "b": "0", "color_range": "tv", **_BT601}),
}
SUFFIXES = (*_CODECS, ".npy")
IMAGE_SUFFIXES = (".png", ".npy")
LONGEST_TITLE = 200  # characters


def to_uint8(frames: np.ndarray | Tensor | Sequence[Image.Image]) -> np.ndarray:
    """Turn one clip of a diffusers pipeline into raw frames, by rounding.

    Args:
        frames: ``pipe(...).frames[0]`` of any ``output_type``: float ``(frames, height, width,
            3)`` arrays or ``(frames, 3, height, width)`` tensors in [0, 1], or PIL images. What
            is uint8 already keeps its values.

    Returns:
        uint8 ``(frames, height, width, 3)``, the same for each output type.

    Raises:
        BadInputError: When the shape or the range of values is not as above.
        VidsparseError: When the frames hold NaN.

    Example:
        >>> to_uint8(np.full((1, 1, 1, 3), 0.999)).tolist()
        [[[[255, 255, 255]]]]
    """
    if isinstance(frames, Tensor):
        clip = frames.movedim(1, -1) if frames.ndim == 4 else frames
    elif isinstance(frames, np.ndarray):
        clip = frames
    else:
        clip = _stack_images(frames)
    if clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
        raise BadInputError(
            "a clip must be an array (frames, height, width, 3), a tensor (frames, 3, height, "
            f"width) or PIL images, got shape {tuple(clip.shape)}: pass one clip, not a batch"
        )
    return np.stack([_frame_to_uint8(clip[index], index) for index in range(len(clip))])


def _stack_images(images: Sequence[Image.Image]) -> np.ndarray:
    kinds = {type(image).__name__ for image in images if not isinstance(image, Image.Image)}
    sizes = {image.size for image in images if not kinds}
    if kinds or len(sizes) != 1:
        raise BadInputError(
            "a list of frames must hold PIL images of one size, got "
            f"{sorted(kinds) or sorted(sizes) or 'no images'}: pass pipe(...).frames[0]"
        )
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def _frame_to_uint8(frame: np.ndarray | Tensor, index: int) -> np.ndarray:
    """Round one ``(height, width, 3)`` frame."""
    if isinstance(frame, Tensor):
        frame = (frame.float() if frame.is_floating_point() else frame).cpu().numpy()
    if frame.dtype == np.uint8:
        return frame
    low, high = float(frame.min()), float(frame.max())
    if np.isnan(low) or np.isnan(high):
        raise VidsparseError(
            f"frame {index} of the video holds NaN: the pipeline overflowed, load it with "
            "torch_dtype=torch.bfloat16 or torch.float32"
        )
    if low < -0.01 or high > 1.01:
        raise BadInputError(
            f"frame values must lie in [0, 1], frame {index} spans [{low:.3g}, {high:.3g}]: pass "
            "the pipeline's output, not latents, and divide 0 to 255 floats by 255"
        )
    return np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)


def check_writable(path: str | Path, *, image: bool = False) -> None:
    """Make sure, before a long generation, that its video can be written; create its folder.

    Args:
        path: Where to.
        image: Whether it will be an image.

    Raises:
        BadInputError: When the suffix is unknown, the path is a folder, or no file can be created
            there.
    """
    path = Path(path)
    if path.is_dir():
        name = "image.png" if image else "video.mp4"
        raise BadInputError(f"{path} is a folder: name a file in it, such as {path / name}")
    _check_suffix(path, image=image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"folder {path.parent} does not exist and cannot be created ({error.strerror}): "
            "choose another folder"
        ) from error
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise BadInputError(
            f"folder {path.parent} cannot be written to ({error.strerror}): choose another folder"
        ) from error


def write_video(
    path: str | Path, frames: np.ndarray, fps: float, *, about: Mapping[str, Any] | None = None
) -> None:
    """Write raw frames so that the file is either complete or not there.

    ``.mp4`` is H.264 and ``.webm`` VP9, both yuv420p, which needs even sides: the last column or
    row of an odd one is doubled. ``.npy`` keeps every pixel (and no fps). The same frames always
    give the same bytes.

    Args:
        path: Where to; the suffix decides the format. A file already there is replaced.
        frames: uint8 ``(frames, height, width, 3)``.
        fps: Frames per second.
        about: How it was made, such as ``prompt`` and ``seed``: kept as JSON in the metadata of
            the file, under ``comment``, with the prompt as its ``title``; not in ``.npy``.

    Raises:
        BadInputError: When the suffix, the frames or the fps make no sense.
        VidsparseError: When writing fails (disk full, folder gone). The frames are then kept in
            the system's temporary folder, and the message says where.
    """
    path = Path(path)
    _check_suffix(path)
    _check_frames(frames)
    check_number("fps", fps)
    try:
        replace_file(path, lambda part: _write(part, frames, fps, about or {}))
    except Exception as error:
        again = "write_video(path, read_video(kept), fps)"
        raise _keep_elsewhere(path, frames, error, again) from error


def write_image(
    path: str | Path, frames: np.ndarray, *, about: Mapping[str, Any] | None = None
) -> None:
    """Write a clip of one frame as ``.png`` or ``.npy``, either complete or not at all.

    Args:
        path: Where to; the suffix decides the format. A file already there is replaced.
        frames: uint8 ``(1, height, width, 3)``.
        about: How it was made, as for :func:`write_video`.

    Raises:
        BadInputError: When the suffix or the frames make no sense.
        VidsparseError: When writing fails, as for :func:`write_video`.
    """
    path = Path(path)
    _check_suffix(path, image=True)
    _check_frames(frames)
    if len(frames) != 1:
        raise BadInputError(f"an image is one frame, got {len(frames)}: write a video of them")
    try:
        replace_file(path, lambda part: _write(part, frames, 1, about or {}))
    except Exception as error:
        again = "write_image(path, read_video(kept))"
        raise _keep_elsewhere(path, frames, error, again) from error


def read_video(path: str | Path) -> np.ndarray:
    """Read a video or ``.npy`` file as raw frames, uint8 ``(frames, height, width, 3)``.

    Raises:
        BadInputError: When there is no such file, or it holds no video.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInputError(f"there is no file {path}: check the path")
    try:
        frames = np.load(path) if path.suffix.lower() == ".npy" else iio.imread(path, plugin="pyav")
    except Exception as error:
        raise BadInputError(f"{path} cannot be read as a video ({error}): is it whole?") from error
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise BadInputError(
            f"{path} holds {frames.dtype} {frames.shape}, not raw frames: uint8 (frames, height, "
            "width, 3) is needed"
        )
    return frames


def _check_suffix(path: Path, *, image: bool = False) -> None:
    possible = IMAGE_SUFFIXES if image else SUFFIXES
    if path.suffix.lower() not in possible:
        what = "it is an image, and " if image else ""
        raise BadInputError(
            f"cannot write {path.name!r}: {what}its suffix must be one of {', '.join(possible)}"
        )


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not frames.size:
        raise BadInputError(
            "a video is written from uint8 frames (frames, height, width, 3), got "
            f"{frames.dtype} {frames.shape}: convert them with to_uint8"
        )


def _write(path: Path, frames: np.ndarray, fps: float, about: Mapping[str, Any]) -> None:
    if path.suffix == ".npy":
        save_array(path, frames)
    elif path.suffix == ".png":
        texts = PngInfo()
        for name, text in _metadata(about).items():
            texts.add_itxt(name.capitalize(), text)
        Image.fromarray(frames[0]).save(path, pnginfo=texts)
    else:
        path.write_bytes(_encode(path.suffix, frames, fps, _metadata(about)))


def _metadata(about: Mapping[str, Any]) -> dict[str, str]:
    """What a file says of itself, as text that is safe in every container."""
    if not about:
        return {}
    words = "".join(c if c.isprintable() else " " for c in str(about.get("prompt", "")))
    return {"title": " ".join(words.split())[:LONGEST_TITLE], "comment": json.dumps(about)}


def _encode(suffix: str, frames: np.ndarray, fps: float, metadata: Mapping[str, str]) -> bytes:
    """Encode a video; one thread and no random identifiers, so that nothing depends on chance."""
    import av

    # PyAV itself: imageio's plugin, which wraps it, has no way to set the quality.
    codec, options = _CODECS[suffix]
    buffer, exact = io.BytesIO(), {"fflags": "+bitexact"}
    rate = Fraction(fps).limit_denominator(65535)
    _, height, width, _ = frames.shape
    even = ((0, height % 2), (0, width % 2), (0, 0))
    with av.open(buffer, "w", format=suffix[1:], container_options=exact) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1
        stream.height, stream.width, stream.pix_fmt = (
            height + height % 2,
            width + width % 2,
            "yuv420p",
        )
        for frame in frames:
            pixels = np.ascontiguousarray(np.pad(frame, even, mode="edge"))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _keep_elsewhere(path: Path, frames: np.ndarray, error: Exception, again: str) -> VidsparseError:
    """Save the frames where they are safe; return the error that says so, and how to go on."""
    kept = Path(tempfile.gettempdir()) / f"vidsparse-{secrets.token_hex(4)}.npy"
    cause = error.__cause__ if isinstance(error, VidsparseError) else error
    said = getattr(cause, "strerror", None) or cause
    try:
        save_array(kept, frames)
    except OSError as second:
        kept.unlink(missing_ok=True)
        return VidsparseError(
            f"cannot write {path} ({said}), nor keep its frames in {kept.parent} "
            f"({second.strerror or second}): free some disk space and generate again"
        )
    return VidsparseError(
        f"cannot write {path} ({said}); its frames are kept in {kept}: free some space or "
        f"choose another folder, then {again}"
    )
