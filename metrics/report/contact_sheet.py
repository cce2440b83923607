"""A contact sheet: one labelled row of frames per clip, so that runs can be compared by eye."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vidsparse.errors import BadInputError

GAIN = 4  # how much a difference row is amplified
PAPER, INK, FAINT = (246, 246, 244), (32, 32, 36), (112, 112, 118)
MARGIN, GAP, ROW_GAP = 20, 6, 14
TITLE, LABEL, SMALL = 21, 16, 13  # font sizes in pixels
SMALLEST, LARGEST = 128, 320  # the width of a drawn frame in pixels


def contact_sheet(
    rows: Mapping[str, np.ndarray],
    columns: int = 6,
    title: str | None = None,
    *,
    difference: bool = False,
) -> Image.Image:
    """Draw evenly spaced frames of each clip, first and last included, one row per clip.

    Args:
        rows: Label of each clip, such as ``"draft  density 0.41  26.3 dB"``, to its frames, uint8
            ``(frames, height, width, 3)``; all of one shape.
        columns: How many frames to show; all of them when a clip has fewer.
        title: A line above everything.
        difference: Below each clip but the first, also draw how far it is from the first: the
            largest difference over the three colours times 4, black where equal.

    Returns:
        An RGB image. Frames wider than 320 pixels are reduced, very small ones enlarged.

    Raises:
        BadInputError: When there is no clip, a clip is not raw frames, or the shapes differ.
    """
    _check(rows, columns)
    some = next(iter(rows.values()))
    shown = np.linspace(0, len(some) - 1, min(columns, len(some))).round().astype(int).tolist()
    strips = [_strip(label, cells, shown) for label, cells in _rows(rows, shown, difference)]
    return _stack([*([_text(title, TITLE, INK)] if title else []), *strips])


def _check(rows: Mapping[str, np.ndarray], columns: int) -> None:
    if columns < 1 or not rows:
        raise BadInputError(
            f"a contact sheet needs at least one clip and one column, got {len(rows)} clips and "
            f"{columns} columns"
        )
    for label, clip in rows.items():
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or 0 in clip.shape:
            raise BadInputError(
                f"clip {label!r} must be uint8 of shape (frames, height, width, 3), got "
                f"{clip.dtype} {clip.shape}: convert it with "
                "vidsparse.pipelines.running.video.to_uint8"
            )
    if len({clip.shape for clip in rows.values()}) > 1:
        shapes = ", ".join(f"{label!r} {clip.shape}" for label, clip in rows.items())
        raise BadInputError(
            f"the clips of one sheet must have one shape, got {shapes}: draw a sheet for each"
        )


def _rows(
    rows: Mapping[str, np.ndarray], shown: list[int], difference: bool
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield label and frames of each row to draw."""
    first_label, first = next(iter(rows.items()))
    for label, clip in rows.items():
        yield label, [_cell(clip[index]) for index in shown]
        if difference and label != first_label:
            greys = [_difference(clip[index], first[index]) for index in shown]
            yield f"difference x{GAIN}:  {label}  against  {first_label}", [*map(_cell, greys)]


def _difference(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the amplified difference of two ``(height, width, 3)`` frames, the same shape."""
    gap = np.abs(frame.astype(int) - reference).max(axis=-1, keepdims=True)
    return np.minimum(GAIN * gap, 255).astype(np.uint8).repeat(3, axis=-1)


def _cell(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(frame)
    if image.width > LARGEST:
        height = max(1, round(image.height * LARGEST / image.width))
        return image.resize((LARGEST, height), Image.Resampling.LANCZOS)
    times = math.ceil(SMALLEST / image.width)
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _strip(label: str, cells: list[Image.Image], shown: list[int]) -> Image.Image:
    """Draw one row: its label above, the frame numbers below."""
    heading = _text(label, LABEL, INK)
    cell_width, cell_height = cells[0].size
    width = max(heading.width, len(cells) * (cell_width + GAP) - GAP)
    numbers_top = heading.height + cell_height + 3
    strip = Image.new("RGB", (width, numbers_top + SMALL + 5), PAPER)
    strip.paste(heading, (0, 0))
    for column, (cell, index) in enumerate(zip(cells, shown, strict=True)):
        left = column * (cell_width + GAP)
        strip.paste(cell, (left, heading.height))
        strip.paste(_text(f"frame {index}", SMALL, FAINT), (left, numbers_top))
    return strip


def _text(text: str, size: int, colour: tuple[int, int, int]) -> Image.Image:
    font = ImageFont.load_default(size=size)
    image = Image.new("RGB", (math.ceil(font.getlength(text)) + 1, round(1.5 * size)), PAPER)
    ImageDraw.Draw(image).text((0, 0), text, colour, font)
    return image


def _stack(strips: list[Image.Image]) -> Image.Image:
    """Put strips below each other, with a margin around them."""
    width = max(strip.width for strip in strips) + 2 * MARGIN
    height = sum(strip.height + ROW_GAP for strip in strips) - ROW_GAP + 2 * MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    top = MARGIN
    for strip in strips:
        sheet.paste(strip, (MARGIN, top))
        top += strip.height + ROW_GAP
    return sheet
