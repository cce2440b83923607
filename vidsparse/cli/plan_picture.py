"""A picture of one attention call: what was computed, beside where the attention mass lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL = 360  # least side of a map in pixels; a map never has less than a pixel for a block
MARGIN, GAP, AXIS, HEADING, CAPTION, SCALE, BAR = 28, 26, 26, 66, 50, 108, 14
PAPER, INK, FAINT, EMPTY = (252, 252, 250), (28, 28, 32), (104, 104, 110), (232, 232, 228)
KEPT, COARSE = (31, 78, 121), (150, 186, 214)
# viridis at nine even places: even to the eye, and in order for every kind of colour vision
COLOURS = ((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
           (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadMap:
    """One head of a call, its blocks in the order of the plan.

    Attributes:
        head: Which.
        keep: Blocks that were computed, boolean ``(M, N)``.
        coarse: Blocks that took part through means, boolean ``(M, N)``.
        share: Mean share of a query's attention that lies in each key block, ``(M, N)``.
        q_edges: Where query blocks start and the last ends, in tokens, ``(M + 1,)``.
        kv_edges: The same of key blocks, ``(N + 1,)``.
        caption: Its numbers.
    """

    head: int
    keep: np.ndarray
    coarse: np.ndarray
    share: np.ndarray
    q_edges: np.ndarray
    kv_edges: np.ndarray
    caption: str


def draw_call(title: str, subtitle: str, heads: Sequence[HeadMap]) -> Image.Image:
    """Draw one row for each head: the plan, the true mass, and what of it was skipped.

    Args:
        title: What the call is.
        subtitle: How it was made.
        heads: At least one, of one call.
    """
    side = max(PANEL, *(max(each.keep.shape) for each in heads))
    number = max(each.keep.shape[1] for each in heads)
    low = 10.0 ** (math.floor(math.log10(1 / number)) - 1)  # a decade below an even spread
    row = CAPTION + side + AXIS
    width = 2 * MARGIN + AXIS + 3 * side + 2 * GAP + SCALE
    sheet = Image.new("RGB", (width, HEADING + len(heads) * row + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, 16), title, 21, INK)
    _text(draw, (MARGIN, 44), subtitle, 14, FAINT)
    for index, each in enumerate(heads):
        _draw_head(sheet, each, HEADING + index * row, side, low)
    _draw_scale(sheet, (width - MARGIN - SCALE + 44, HEADING + CAPTION), side, low)
    return sheet


def _draw_head(sheet: Image.Image, head: HeadMap, top: int, side: int, low: float) -> None:
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, top + 8), f"head {head.head}   {head.caption}", 15, INK)
    plan = "computed; light: through means" if head.coarse.any() else "what was computed"
    names = (plan, "true attention mass", "mass that was skipped")
    for column, (name, pixels) in enumerate(zip(names, _maps(head, low), strict=True)):
        left = MARGIN + AXIS + column * (side + GAP)
        at = left, top + CAPTION
        sheet.paste(_enlarge(pixels, head, side), at)
        draw.rectangle((at[0] - 1, at[1] - 1, at[0] + side, at[1] + side), outline=FAINT)
        _text(draw, (left, top + CAPTION - 18), name, 13, FAINT)
        columns = f"key blocks 0 to {head.keep.shape[1] - 1}, in the plan's order"
        _text(draw, (left, at[1] + side + 5), columns, 12, FAINT)
    rows = f"query blocks 0 to {head.keep.shape[0] - 1}, downwards"
    _upright(sheet, (MARGIN + 2, top + CAPTION, side), rows)


def _maps(head: HeadMap, low: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three maps of a head, uint8 ``(M, N, 3)``."""
    plan = np.full((*head.keep.shape, 3), EMPTY, np.uint8)
    plan[head.coarse] = COARSE
    plan[head.keep] = KEPT
    mass = colour(head.share, low)
    skipped = np.where((head.keep | head.coarse)[..., None], np.array(EMPTY, np.uint8), mass)
    return plan, mass, skipped


def colour(share: np.ndarray, low: float) -> np.ndarray:
    """Colour shares on a log scale from ``low`` to 1: any shape to uint8 of that shape and 3.

    Example:
        >>> colour(np.array([0.0, 1.0]), 1e-3).tolist()
        [[68, 1, 84], [253, 231, 37]]
    """
    level = 1 - np.log10(np.clip(share, low, 1)) / math.log10(low)
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(level, places, [c[i] for c in COLOURS]) for i in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _enlarge(pixels: np.ndarray, head: HeadMap, side: int) -> Image.Image:
    """Give every block the room that its tokens take."""
    rows, columns = (
        np.searchsorted(edges[1:], (np.arange(side) + 0.5) * edges[-1] / side, side="right")
        for edges in (head.q_edges, head.kv_edges)
    )
    return Image.fromarray(np.ascontiguousarray(pixels[rows][:, columns]))


def _draw_scale(sheet: Image.Image, at: tuple[int, int], side: int, low: float) -> None:
    """A colour bar with a tick for each decade."""
    left, top = at
    share = np.logspace(0, math.log10(low), side)[:, None].repeat(BAR, axis=1)
    sheet.paste(Image.fromarray(colour(share, low)), at)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + BAR, top + side), outline=FAINT)
    decades = round(-math.log10(low))
    for power in range(decades + 1):
        y = top + round(power / decades * (side - 1))
        draw.line((left + BAR, y, left + BAR + 5, y), fill=FAINT)
        _text(draw, (left + BAR + 9, y - 7), f"{10.0 ** (2 - power):g}%",
              12, FAINT)  # fmt: skip
    _upright(sheet, (left - 21, top, side), "share of a query's attention in the block")


def _upright(sheet: Image.Image, at: tuple[int, int, int], text: str) -> None:
    """Write upwards, in the middle of a side that is ``(left, top, length)``."""
    font = ImageFont.load_default(size=12)
    strip = Image.new("RGB", (math.ceil(font.getlength(text)) + 2, 16), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, FAINT, font)
    left, top, length = at
    sheet.paste(strip.rotate(90, expand=True), (left, top + max(0, (length - strip.width) // 2)))


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, ink: tuple[int, int, int]
) -> None:
    draw.text(at, text, ink, ImageFont.load_default(size=size))
