"""The language of the shipped tiny pipeline: which prompts it was trained on.

Its tokenizer knows a hundred words; any other is read as ``<unk>`` and has no effect.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer

# Each idea, and the ways to say it; the first is the most common in training.
SHAPES = {
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring", "hoop", "donut"),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "moon": ("moon", "crescent"),
}
_SHARED_COLOURS = {
    "red": ("red",),
    "orange": ("orange",),
    "yellow": ("yellow",),
    "green": ("green",),
    "cyan": ("cyan", "teal"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink",),
}
SPRITE_COLOURS = {**_SHARED_COLOURS, "white": ("white",)}
BACKGROUND_COLOURS = {**_SHARED_COLOURS, "gray": ("gray", "grey")}
SIZES = {"large": ("large", "big"), "small": ("small", "little")}
MOTIONS = {
    "left": ("moving left", "moving to the left", "sliding left", "drifting left"),
    "right": ("moving right", "moving to the right", "sliding right", "drifting right"),
    "up": ("moving up", "rising", "floating up"),
    "down": ("moving down", "falling", "sinking"),
    "bounce": ("bouncing", "hopping", "jumping"),
    "circle": ("circling", "orbiting", "moving in a circle"),
    "spin": ("spinning", "rotating", "turning"),
    "grow": ("growing", "getting bigger"),
    "shrink": ("shrinking", "getting smaller"),
    "sway": ("swaying", "swinging", "moving side to side"),
}
PATTERNS = {
    "plain": ("plain", "smooth"),
    "striped": ("striped",),
    "checkered": ("checkered", "checkerboard"),
    "dotted": ("dotted", "spotted"),
    "wavy": ("wavy",),
    "cloudy": ("cloudy", "marbled"),
}
TONES = {"dark": ("dark",), "light": ("light",)}
CAMERA_MOVES = {
    "left": ("scrolling left", "moving left"),
    "right": ("scrolling right", "moving right"),
    "up": ("scrolling up", "moving up"),
    "down": ("scrolling down", "moving down"),
    "in": ("zooming in",),
    "out": ("zooming out",),
    "rotate": ("rotating", "turning slowly"),
}
PLACES = ("over", "on", "in front of")

# What the model draws badly; see tiny/README.md.
_POOR_SHAPES = ("ring", "heart")
_POOR_MOTIONS = ("spin",)

TOKENIZER = Path(__file__).parent / "tiny" / "tokenizer" / "tokenizer.json"


def random_prompt(seed: int) -> str:
    """Return a prompt that the tiny pipeline draws well: one moving sprite on a background.

    The same seed gives the same prompt. Sprite and background never share a colour.

    Example:
        >>> random_prompt(2)
        'a large red square bouncing over a dark yellow plain background'
    """
    rng = random.Random(seed)
    colour = rng.choice(list(SPRITE_COLOURS))
    ground = rng.choice([name for name in BACKGROUND_COLOURS if name != colour])
    tones = ["", "dark"] if colour == "white" else ["", "dark", "light"]
    pattern = rng.choice(list(PATTERNS))
    sprite = [
        rng.choice(["", "", *SIZES]),
        colour,
        rng.choice([name for name in SHAPES if name not in _POOR_SHAPES]),
        MOTIONS[rng.choice([name for name in MOTIONS if name not in _POOR_MOTIONS])][0],
    ]
    still = pattern == "plain" or rng.random() < 0.5  # a plain background shows no camera move
    camera = "" if still else CAMERA_MOVES[rng.choice(list(CAMERA_MOVES))][0]
    background = [rng.choice(tones), ground, pattern, "background", camera]
    return f"{_with_article(sprite)} over {_with_article(background)}"


def explain_unknown_words(prompt: str) -> list[str]:
    """Return the words of the prompt that the tiny pipeline does not know, each once, in order.

    Example:
        >>> explain_unknown_words("a red Circle riding a zebra")
        ['riding', 'zebra']
    """
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    encoding = tokenizer.encode(prompt)
    unknown = tokenizer.token_to_id("<unk>")
    spans = [
        span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == unknown
    ]
    return list(dict.fromkeys(prompt[start:end] for start, end in spans))


def _with_article(words: Iterable[str]) -> str:
    phrase = " ".join(word for word in words if word)
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _rule(name: str, synonyms: Mapping[str, Iterable[str]]) -> str:
    """Write one rule of the grammar, such as ``tone = "dark" | "light"``."""
    words = [f'"{word}"'.replace(" ", "\xa0") for group in synonyms.values() for word in group]
    text = textwrap.fill(f"{name:<10} = {' | '.join(words)}", 88, subsequent_indent=" " * 13)
    return text.replace("\xa0", " ")  # a no-break space keeps each phrase on one line


GRAMMAR = "\n".join(
    [
        'prompt     = sprite ["," sprite] ["and" sprite] [place background]',
        'sprite     = article [size] ["striped"] colour shape [motion]',
        'background = article [pattern] [tone] ground ["and" ground] [pattern] back [camera]',
        'article    = "a" | "an"',
        'back       = "background" | "backdrop"',
        _rule("place", {"place": PLACES}),
        _rule("size", SIZES),
        _rule("colour", SPRITE_COLOURS),
        _rule("shape", SHAPES),
        _rule("motion", MOTIONS),
        _rule("tone", TONES),
        _rule("ground", BACKGROUND_COLOURS),
        _rule("pattern", PATTERNS),
        _rule("camera", CAMERA_MOVES),
    ]
)
