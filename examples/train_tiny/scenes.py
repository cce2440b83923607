"""What a clip shows, drawn at random: its labels, the numbers that render it, its caption.

The words are those of ``vidsparse.pipelines.running.prompts``. The shorter side of a frame spans
[-1, 1], y points down, and time runs over [0, 1] whatever the number of frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidsparse.pipelines.running.prompts import (
    BACKGROUND_COLOURS,
    CAMERA_MOVES,
    MOTIONS,
    PATTERNS,
    PLACES,
    SHAPES,
    SIZES,
    SPRITE_COLOURS,
)

SPRITES = 3  # at most, in one clip
TEXTURES = 64  # tiles of noise that a surface may carry
_WORDS: dict[str, list[tuple[str, ...]]] = {
    "shape": list(SHAPES.values()),
    "colour": list(SPRITE_COLOURS.values()),
    "ground": list(BACKGROUND_COLOURS.values()),
    "motion": list(MOTIONS.values()),
    "pattern": list(PATTERNS.values()),
    "camera": [("",), *CAMERA_MOVES.values()],
}
NAMES: dict[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "colour": tuple(SPRITE_COLOURS),
    "motion": tuple(MOTIONS),
    "tone": ("dark", "light", "mid"),
    "ground": tuple(BACKGROUND_COLOURS),
    "pattern": tuple(PATTERNS),
    "camera": ("still", *CAMERA_MOVES),
}
_SPRITE_RGB = [
    [0.90, 0.20, 0.20],
    [0.97, 0.55, 0.13],
    [0.98, 0.84, 0.20],
    [0.22, 0.72, 0.32],
    [0.16, 0.78, 0.82],
    [0.17, 0.40, 0.93],
    [0.57, 0.30, 0.83],
    [0.97, 0.48, 0.71],
    [0.96, 0.96, 0.96],
]
_GROUND_RGB = [
    [0.74, 0.28, 0.28],
    [0.84, 0.54, 0.27],
    [0.86, 0.75, 0.36],
    [0.33, 0.62, 0.38],
    [0.31, 0.66, 0.70],
    [0.28, 0.42, 0.75],
    [0.49, 0.34, 0.68],
    [0.84, 0.52, 0.66],
    [0.52, 0.53, 0.55],
]
_TURN = 2 * math.pi
_MOTION_SHARES = [0.11, 0.11, 0.11, 0.11, 0.12, 0.10, 0.10, 0.08, 0.08, 0.08]
_CAMERA_SHARES = [0.36, 0.11, 0.11, 0.09, 0.09, 0.09, 0.08, 0.07]
_PATTERN_SHARES = (0.20, 0.18, 0.16, 0.16, 0.14, 0.16)
_VIEW_SHARE = 0.08  # clips in which the camera itself moves, sprites and all

Labels = dict[str, np.ndarray]
Numbers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scenes:
    """A batch of clips before rendering.

    Attributes:
        labels: Indices into ``NAMES``: of sprites ``(batch, SPRITES)``, of the rest ``(batch,)``.
        sprites: What ``render`` needs of them, float32 ``(batch, SPRITES)`` or ``(..., 3)``.
        ground: The same of the background: ``(batch,)`` or with an axis of its own.
        view: The same of the camera, ``(batch,)``.
    """

    labels: Labels
    sprites: Numbers
    ground: Numbers
    view: Numbers

    def __len__(self) -> int:
        return len(self.labels["sprites"])


def index(part: str, name: str) -> int:
    """Return the label of a name, such as ``index("motion", "spin")``."""
    return NAMES[part].index(name)


def draw_labels(
    rng: np.random.Generator,
    batch: int,
    *,
    sprites: int | None = None,
    patterns: Sequence[float] = _PATTERN_SHARES,
) -> Labels:
    """Draw what is to be seen.

    Args:
        rng: Where chance comes from.
        batch: How many clips.
        sprites: Their number in each clip; None draws it, one in two clips of three.
        patterns: How often each of the backgrounds is drawn.
    """
    shape = rng.integers(0, len(SHAPES), (batch, SPRITES))
    colours = np.stack([rng.permutation(len(SPRITE_COLOURS)) for _ in range(batch)])
    ground = colours[:, SPRITES].copy()  # index 8 is white among sprites and gray among grounds
    pattern = rng.choice(len(PATTERNS), batch, p=patterns)
    two = (rng.random(batch) < 0.2) & (pattern > 0)
    other = (ground + rng.integers(1, len(BACKGROUND_COLOURS), batch)) % len(BACKGROUND_COLOURS)
    motion = rng.choice(len(MOTIONS), (batch, SPRITES), p=_MOTION_SHARES)
    spin, ring = motion == index("motion", "spin"), shape == index("shape", "ring")
    motion = np.where(spin & ring, index("motion", "bounce"), motion)  # it would show nothing
    spins_unseen = (motion == index("motion", "spin")) & (shape == index("shape", "circle"))
    camera = rng.choice(len(NAMES["camera"]), batch, p=_CAMERA_SHARES)
    count = rng.choice([1, 2, 3], batch, p=[0.68, 0.27, 0.05]) if sprites is None else sprites
    still = rng.random(batch) >= _VIEW_SHARE
    view = np.where(still, 0, rng.integers(1, len(NAMES["camera"]) - 1, batch))  # never turning
    return {
        "sprites": np.broadcast_to(np.asarray(count), (batch,)).copy(),
        "shape": shape,
        "colour": colours[:, :SPRITES].copy(),
        "motion": motion,
        "striped": ((rng.random((batch, SPRITES)) < 0.12) & ~ring) | spins_unseen,
        "size": rng.choice(3, (batch, SPRITES), p=[0.25, 0.5, 0.25]),  # small, medium, large
        "ground": ground,
        "ground2": np.where(two, other, -1),
        "tone": rng.choice(3, batch, p=[0.33, 0.33, 0.34]),
        "pattern": pattern,
        "camera": np.where((pattern == 0) | (view > 0), 0, camera),
        "view": view,
    }


def draw_scenes(
    rng: np.random.Generator, labels: Labels, *, wide: float = 1.0, tall: float = 1.0
) -> Scenes:
    """Draw the numbers of scenes with these labels.

    Args:
        rng: Where chance comes from.
        labels: From ``draw_labels``.
        wide: Half the frame's width, where half its shorter side is 1.
        tall: Half its height.
    """
    sprites = _place_sprites(rng, labels, wide, tall) | _move_sprites(rng, labels, wide, tall)
    sprites |= _sprite_colours(rng, labels)
    ground = _ground_colours(rng, labels) | _ground_moves(rng, labels)
    return Scenes(labels, _single(sprites), _single(ground), _single(_view(rng, labels)))


def _single(numbers: Numbers) -> Numbers:
    return {name: np.ascontiguousarray(v, np.float32) for name, v in numbers.items()}


def _place_sprites(rng: np.random.Generator, labels: Labels, wide: float, tall: float) -> Numbers:
    """Radii and anchors: apart from each other, but in one clip of five near enough to cross."""
    n, motion = labels["sprites"], labels["motion"]
    batch = len(n)
    low = np.array([0, 0.30, 0.25, 0.20])[n][:, None]
    high = np.array([0, 0.52, 0.40, 0.31])[n][:, None]
    third = (labels["size"] + rng.random((batch, SPRITES))) / 3
    crossing = (n > 1) & (rng.random(batch) < 0.2)
    apart = np.where(crossing, 0.25, np.array([0, 0.12, 0.48, 0.60])[n])[:, None]
    jitter = np.array([0, 0.35, 0.10, 0.05])[n][:, None]
    share = np.arange(SPRITES) / np.maximum(n, 1)[:, None]
    angle = _TURN * (rng.random((batch, 1)) + share)
    x = apart * np.cos(angle) + jitter * rng.uniform(-1, 1, (batch, SPRITES))
    y = apart * np.sin(angle) + jitter * rng.uniform(-1, 1, (batch, SPRITES))
    return {
        "radius": low + (high - low) * third,
        "x": x * wide * np.where(motion <= 1, 0.35, 1),
        "y": y * tall * np.where((motion == 2) | (motion == 3), 0.35, 1),
    }


def _move_sprites(rng: np.random.Generator, labels: Labels, wide: float, tall: float) -> Numbers:
    """Each motion as amplitudes, zero for those that are not the sprite's."""
    motion = labels["motion"]
    size = motion.shape

    def only(name: str, values: np.ndarray) -> np.ndarray:
        return np.where(motion == index("motion", name), values, 0)

    def either(values: np.ndarray) -> np.ndarray:
        return rng.choice([-1.0, 1.0], size) * values

    alone = labels["sprites"][:, None] == 1
    amount = np.where(alone, rng.uniform(0.8, 1.3, size), rng.uniform(0.55, 0.95, size))
    turn = only("spin", either(rng.uniform(0.45, 0.9, size)) * _TURN)
    start = np.where(turn != 0, rng.uniform(0, _TURN, size), rng.uniform(-0.25, 0.25, size))
    drift = only("bounce", rng.uniform(-0.25, 0.25, size))
    return {
        "dx": (only("right", amount) - only("left", amount)) * wide + drift,
        "dy": (only("down", amount) - only("up", amount)) * tall,
        "bounce": only("bounce", rng.uniform(0.40, 0.60, size)),
        "bounces": rng.choice([1.5, 2.0], size),
        "bounce_phase": rng.uniform(0, math.pi, size),
        "orbit": only("circle", rng.uniform(0.26, 0.42, size)),
        "orbit_speed": either(rng.uniform(0.6, 0.95, size)) * _TURN,
        "orbit_phase": rng.uniform(0, _TURN, size),
        "turn": turn,
        "turn_start": start,
        "scale": 1 + only("grow", np.full(size, -0.45)) + only("shrink", np.full(size, 0.3)),
        "growth": only("grow", np.full(size, 0.80)) + only("shrink", np.full(size, -0.78)),
        "sway": only("sway", rng.uniform(0.30, 0.48, size)),
        "sway_speed": rng.uniform(0.75, 1.05, size) * _TURN,
        "sway_phase": rng.uniform(0, _TURN, size),
    }


def _sprite_colours(rng: np.random.Generator, labels: Labels) -> Numbers:
    """Colours, and how strong the sprite's own texture is: none on six in ten."""
    size = labels["shape"].shape
    rgb = np.array(_SPRITE_RGB)[labels["colour"]]
    return {
        "rgb": rgb + rng.uniform(-0.03, 0.03, (*size, 3)),
        "striped": labels["striped"],
        "grain": np.where(rng.random(size) < 0.6, 0, rng.uniform(0.03, 0.08, size)),
        "tile": rng.integers(0, TEXTURES, size),
    }


def _ground_colours(rng: np.random.Generator, labels: Labels) -> Numbers:
    """The two colours of a pattern, and how strong its texture is: none on plain ones."""
    batch, tone = len(labels["tone"]), labels["tone"][:, None]

    def toned(ground: np.ndarray) -> np.ndarray:
        rgb = np.array(_GROUND_RGB)[ground]
        return np.where(tone == 0, rgb * 0.5, np.where(tone == 1, rgb * 0.50 + 0.47, rgb))

    first = toned(labels["ground"])
    lighter = np.where(tone == 1, first * 0.40 + 0.59, first * 0.60 + 0.36)
    same = np.where(tone == 0, first * 0.45 + 0.02, lighter)
    smooth = (labels["pattern"] == 0) | (rng.random(batch) < 0.3)
    return {
        "rgb1": first,
        "rgb2": np.where(labels["ground2"][:, None] >= 0, toned(labels["ground2"]), same),
        "grain": np.where(smooth, 0, rng.uniform(0.02, 0.06, batch)),
        "tile": rng.integers(0, TEXTURES, batch),
    }


def _ground_moves(rng: np.random.Generator, labels: Labels) -> Numbers:
    """The background's pattern and how it moves."""
    batch = len(labels["ground"])
    steps = _moves(labels["camera"])
    pan = rng.uniform(0.63, 1.26, batch)
    angles = np.array([0, math.pi / 4, math.pi / 2, 3 * math.pi / 4])
    turning = labels["camera"] == index("camera", "rotate")
    spin = rng.choice([-1.0, 1.0], batch) * rng.uniform(0.5, 1.0, batch)
    return {
        "pan_x": -steps["x"] * pan,  # a pattern that scrolls left is looked at further right
        "pan_y": -steps["y"] * pan,
        "zoom": steps["zoom"] * rng.uniform(0.45, 0.75, batch),
        "turn": np.where(turning, spin, 0),
        "angle": rng.choice(angles, batch) + rng.uniform(-0.12, 0.12, batch),
        "frequency": rng.uniform(1.2, 2.6, batch),
        "wave_angle": rng.uniform(0, _TURN, (batch, 5)),
        "wave_frequency": rng.uniform(0.8, 2.6, (batch, 5)),
        "wave_phase": rng.uniform(0, _TURN, (batch, 5)),
        "offset": rng.uniform(-2, 2, (batch, 2)),
    }


def _view(rng: np.random.Generator, labels: Labels) -> Numbers:
    """The camera's own pan or zoom, which sprites and background share."""
    batch = len(labels["view"])
    steps, amount = _moves(labels["view"]), rng.uniform(0.35, 0.6, batch)
    return {
        "view_x": steps["x"] * amount,  # a camera that moves left looks further left
        "view_y": steps["y"] * amount,
        "view_zoom": steps["zoom"] * rng.uniform(0.25, 0.45, batch),
    }


def _moves(camera: np.ndarray) -> dict[str, np.ndarray]:
    """Return -1, 0 or 1 along x, y and the logarithm of how much is seen."""

    def sign(minus: str, plus: str) -> np.ndarray:
        return 1.0 * (camera == index("camera", plus)) - (camera == index("camera", minus))

    return {"x": sign("left", "right"), "y": sign("up", "down"), "zoom": sign("in", "out")}


def write_captions(rng: np.random.Generator, labels: Labels) -> list[str]:
    """Say what the labels say, in the words of the grammar, leaving out a little."""
    rows = [
        {name: values[i] for name, values in labels.items()} for i in range(len(labels["tone"]))
    ]
    return [_caption(rng, row) for row in rows]


def _caption(rng: np.random.Generator, row: Mapping[str, np.ndarray]) -> str:
    sprites = [_say_sprite(rng, row, k) for k in range(int(row["sprites"]))]
    text = " and ".join([", ".join(sprites[:-1]), sprites[-1]]) if len(sprites) > 1 else sprites[0]
    if rng.random() < 0.92:
        text += f" {rng.choice([PLACES[0], PLACES[0], *PLACES])} {_say_ground(rng, row)}"
    if row["view"]:
        text += f" while the camera is {_camera_words(int(row['view']))}"
    return text


def _say_sprite(rng: np.random.Generator, row: Mapping[str, np.ndarray], k: int) -> str:
    words = []
    size = {0: "small", 2: "large"}.get(int(row["size"][k]))
    if size and rng.random() < 0.75:
        words.append(_say(rng, SIZES[size]))
    if row["striped"][k]:
        words.append("striped")
    words += [_say(rng, _WORDS[part][int(row[part][k])]) for part in ("colour", "shape")]
    if rng.random() < 0.95:
        words.append(_say(rng, _WORDS["motion"][int(row["motion"][k])]))
    return with_article(words)


def _say_ground(rng: np.random.Generator, row: Mapping[str, np.ndarray]) -> str:
    words = ["" if row["tone"] == 2 or rng.random() < 0.04 else NAMES["tone"][int(row["tone"])]]
    words.append(_say(rng, _WORDS["ground"][int(row["ground"])]))
    if row["ground2"] >= 0:
        words += ["and", _say(rng, _WORDS["ground"][int(row["ground2"])])]
    if row["pattern"] > 0 or rng.random() < 0.7:
        pattern = _say(rng, _WORDS["pattern"][int(row["pattern"])])
        words = [*words, pattern] if rng.random() < 0.75 else [pattern, *words]
    words.append("background" if rng.random() < 0.85 else "backdrop")
    if rng.random() < 0.96:
        words.append(_say(rng, _WORDS["camera"][int(row["camera"])]))
    return with_article(words)


def _camera_words(view: int) -> str:
    words = _WORDS["camera"][view]
    return words[-1]  # "moving left", "zooming in"


def _say(rng: np.random.Generator, synonyms: Sequence[str]) -> str:
    """Return the first word seven times in ten."""
    if len(synonyms) == 1 or rng.random() < 0.7:
        return synonyms[0]
    return synonyms[int(rng.integers(1, len(synonyms)))]


def with_article(words: Sequence[str]) -> str:
    """Join the words that are not empty, after "a" or "an"."""
    phrase = " ".join(word for word in words if word)
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def plain_prompt(labels: Labels, i: int) -> str:
    """Return the prompt of clip ``i`` with one sprite, all of it said in the first words."""
    first = {part: words[int(np.ravel(labels[part][i])[0])][0] for part, words in _WORDS.items()}
    striped = "striped" if labels["striped"][i, 0] else ""
    sprite = with_article([striped, first["colour"], first["shape"], first["motion"]])
    tone = ("dark", "light", "")[int(labels["tone"][i])]
    ground = [tone, first["ground"], first["pattern"], "background", first["camera"]]
    return f"{sprite} over {with_article(ground)}"
