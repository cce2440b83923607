"""What a pipeline is given beside the prompt: the size that follows, the values of its call."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.inputs import (
    CONDITIONS,
    CONTROL,
    IMAGE,
    LAST_IMAGE,
    MASK,
    REFERENCES,
    VIDEO,
    Inputs,
    call_parameters,
    condition_class,
    inputs_of,
    is_of_frames,
)
from vidsparse.pipelines.running.pictures import InputFile, picture, pictures

if TYPE_CHECKING:
    from vidsparse.pipelines.running.checkpoints import Checkpoint
    from vidsparse.pipelines.running.generate import Request

Size = dict[str, int | None]


def size_from(
    checkpoint: Checkpoint,
    files: Sequence[InputFile],
    *,
    frames: int | None,
    height: int | None,
    width: int | None,
) -> Size:
    """Frames, height and width, those left out as the files have them.

    A picture that is larger than what the model recommends is made as large as that, in its own
    shape; sides are rounded down to what the model takes.

    Args:
        checkpoint: The model.
        files: What it is given.
        frames: As asked for, as all that follows; None is left out.
        height: In pixels.
        width: In pixels.

    Returns:
        ``frames``, ``height`` and ``width``; None where no file says anything of it.

    Raises:
        BadInputError: When a file has fewer frames than are asked for.
    """
    inputs = checkpoint.inputs
    size: Size = {"frames": frames, "height": height, "width": width}
    if inputs.frame_by_frame:
        size["frames"] = _frames_from(checkpoint, files, frames)
    shape = next(iter(_showing(files, inputs)), None)
    if shape is None or (height is not None and width is not None):
        return size
    step, most = checkpoint.geometry.size_multiple, _most_pixels(checkpoint)
    if height is not None:
        scale = height / shape.height
    elif width is not None:
        scale = width / shape.width
    else:
        scale = min(1.0, math.sqrt(most / (shape.height * shape.width)))
    if height is None:
        size["height"] = _rounded(shape.height * scale, step)
    if width is None:
        size["width"] = _rounded(shape.width * scale, step)
    return size


def _showing(files: Sequence[InputFile], inputs: Inputs) -> list[InputFile]:
    """The files that say how large what is made will be, the one that says most first."""
    order = [VIDEO, IMAGE, CONTROL]
    places = {slot.role: slot.parameter for slot in inputs.slots}
    found = [f for f in files if f.role in order and places.get(f.role) not in REFERENCES]
    return sorted(found, key=lambda file: order.index(file.role))


def _rounded(pixels: float, step: int) -> int:
    return max(step, int(pixels + 1e-6) // step * step)


def _most_pixels(checkpoint: Checkpoint) -> float:
    if checkpoint.height is None or checkpoint.width is None:
        return math.inf
    return checkpoint.height * checkpoint.width


def _frames_from(
    checkpoint: Checkpoint, files: Sequence[InputFile], asked: int | None
) -> int | None:
    """As many as asked for, or as the shortest video has and the model recommends and takes."""
    videos = [file for file in files if not file.is_image]
    if not videos:
        return asked
    shortest = min(videos, key=lambda file: file.frames)
    if asked is not None:
        if asked > shortest.frames:
            raise BadInputError(
                f"--{shortest.role} {shortest.path} has {shortest.frames} frames, fewer than the "
                f"{asked} that were asked for"
            )
        return asked
    most = min(shortest.frames, checkpoint.frames or shortest.frames)
    temporal = checkpoint.geometry.temporal or 1
    return (most - 1) // temporal * temporal + 1


def rate_from(checkpoint: Checkpoint, files: Sequence[InputFile]) -> float | None:
    """Frames per second of a video that gives a model as many frames as it makes."""
    rates = [file.fps for file in files if file.fps] if checkpoint.inputs.frame_by_frame else []
    return rates[0] if rates else None


def arguments_for(pipe: Any, request: Request) -> dict[str, Any]:
    """The files and the strength of a request in the words of a pipeline's call."""
    inputs, parameters = inputs_of(pipe), call_parameters(pipe)
    if CONDITIONS in {slot.parameter for slot in inputs.slots}:
        conditions = _conditions(condition_class(parameters), request)
        given: dict[str, Any] = {CONDITIONS: conditions} if conditions else {}
        of_conditions = (IMAGE, LAST_IMAGE, VIDEO)
    else:
        given = {} if request.strength is None else {"strength": request.strength}
        of_conditions = ()
    for slot in inputs.slots:
        files = [file for file in request.inputs if file.role == slot.role]
        if files and slot.role not in of_conditions:
            given[slot.parameter] = _value(files, slot.parameter, inputs, request)
    return given


def _value(files: list[InputFile], parameter: str, inputs: Inputs, request: Request) -> Any:
    """One image, several, or the frames of a video."""
    if is_of_frames(parameter) or (inputs.frame_by_frame and files[0].role == MASK):
        size = (request.height, request.width) if inputs.frame_by_frame else None
        return pictures(files[0], request.frames, size)
    found = [picture(file) for file in files]
    return found if len(found) > 1 or parameter.endswith("s") else found[0]


def _conditions(kind: Any, request: Request) -> list[Any]:
    """An image or a video each, at its frame, held as strongly as the request says."""
    names = {field.name for field in dataclasses.fields(kind)}
    strength = {} if request.strength is None else {"strength": request.strength}
    found = []
    for file in request.inputs:
        if file.role not in (IMAGE, LAST_IMAGE, VIDEO):
            continue
        is_video = file.role == VIDEO
        value = pictures(file, request.frames, None) if is_video else picture(file)
        place = ("video" if is_video else "image") if "image" in names else "frames"
        at: dict[str, int] = {}
        if file.role == LAST_IMAGE:  # one counts frames, the other latents from the end
            at = {"frame_index": request.frames - 1} if "frame_index" in names else {"index": -1}
        found.append(kind(**{place: value}, **at, **strength))
    return found
