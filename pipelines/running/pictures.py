"""Images and videos that a pipeline is given: looked at before its weights load, read later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.inputs import CONTROL, MASK, PARAMETERS, VIDEO


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An image or a video that a pipeline is given.

    Attributes:
        role: What it is to the pipeline, as the command line's options name it.
        path: Where it lies.
        sha256: Of its bytes.
        frames: Of a video; 1 of an image.
        height: In pixels.
        width: In pixels.
        is_image: Whether it is a picture that stands still.
        fps: Frames per second; None of an image, and of a video that does not say.
    """

    role: str
    path: Path
    sha256: str
    frames: int
    height: int
    width: int
    is_image: bool
    fps: float | None = None


def look_at(role: str, path: str | Path) -> InputFile:
    """Make sure that a file is the image or the video that it should be, and see how large it is.

    Args:
        role: What it is to be; a mask and a control may be either.
        path: A file; ``.npy`` holds raw frames, a video.

    Raises:
        BadInputError: When there is none, it cannot be read, or it is the other.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BadInputError(f"--{role} {path}: there is no such file")
    size = _image_size(path)
    if size is None and role not in (VIDEO, MASK, CONTROL):
        raise BadInputError(f"--{role} {path} cannot be read as an image")
    if size is not None and role == VIDEO:
        raise BadInputError(f"--{role} {path} is an image, and must be a video")
    frames, height, width, fps = _video_size(role, path) if size is None else (1, *size, None)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return InputFile(
        role=role, path=path, sha256=digest, frames=frames, height=height, width=width,
        is_image=size is not None, fps=fps,
    )  # fmt: skip


def look_at_all(
    inputs: Mapping[str, str | Path | Sequence[str | Path]],
) -> list[InputFile]:
    """Look at the files of each role: one, or several.

    Raises:
        BadInputError: For an unknown role, or a file that is not what it should be.
    """
    found = []
    for role, given in inputs.items():
        if role not in PARAMETERS:
            raise BadInputError(f"unknown input {role!r}: choose {', '.join(PARAMETERS)}")
        paths = [given] if isinstance(given, str | Path) else given
        found += [look_at(role, path) for path in paths]
    return found


def picture(file: InputFile) -> Image.Image:
    """The image of a file, upright, RGB.

    Raises:
        BadInputError: When it cannot be read any more.
    """
    try:
        with Image.open(file.path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError) as error:
        raise BadInputError(f"--{file.role} {file.path} cannot be read: {error}") from error


def pictures(file: InputFile, frames: int, size: tuple[int, int] | None) -> list[Image.Image]:
    """The first frames of a file, an image so many times.

    Args:
        file: A video or an image.
        frames: How many, at most.
        size: Height and width to resize them to; None leaves them as they are.

    Raises:
        BadInputError: When it cannot be read any more.
    """
    if file.is_image:
        found = [picture(file)] * frames
    else:
        found = [Image.fromarray(frame) for frame in _frames(file.role, file.path, frames)]
    if size is None:
        return found
    height, width = size
    return [
        each
        if each.size == (width, height)
        else each.resize((width, height), Image.Resampling.LANCZOS)
        for each in found
    ]


def _image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image that stands still; None of anything else."""
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                return None
            upright = ImageOps.exif_transpose(image)  # reads all of it
            return upright.height, upright.width
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return None


def _video_size(role: str, path: Path) -> tuple[int, int, int, float | None]:
    """Frames, height, width and frames per second of a video, counted: few files say it right."""
    if path.suffix.lower() == ".npy":
        frames, height, width, _ = _read_frames(path).shape
        return frames, height, width, None
    count = height = width = 0
    for frame in _frames(role, path, None):
        count, (height, width, _) = count + 1, frame.shape
    if not count:
        raise BadInputError(f"--{role} {path} cannot be read as a video: it has no frame")
    with _open(path) as container:
        rate = container.streams.video[0].average_rate
    return count, height, width, float(rate) if rate else None


def _frames(role: str, path: Path, most: int | None) -> Iterator[np.ndarray]:
    """The first frames of a video, uint8 ``(height, width, 3)`` each."""
    if path.suffix.lower() == ".npy":
        yield from _read_frames(path)[:most]
        return
    try:
        with _open(path) as container:
            decoded: Any = container.decode(video=0)
            for number, frame in enumerate(decoded):
                if number == most:
                    return
                yield frame.to_ndarray(format="rgb24")
    except (OSError, ValueError, IndexError) as error:  # PyAV's own are of these
        raise BadInputError(f"--{role} {path} cannot be read as a video: {error}") from error


def _read_frames(path: Path) -> np.ndarray:
    from vidsparse.pipelines.running.video import read_video

    return read_video(path)


def _open(path: Path) -> Any:
    """PyAV's container; it is imported only where there is a video."""
    import av

    return av.open(str(path))
