"""The language of the shipped tiny pipeline: which prompts it was trained on.

Its tokenizer knows a hundred words; any other is read as ``<unk>`` and has no effect.
"""

from __future__ import annotations

import random
import re
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
Synonyms = Mapping[str, Iterable[str]]

# What the model draws badly; see tiny/README.md.
_POOR_SHAPES = ("ring", "heart")
_POOR_MOTIONS = ("spin",)

TOKENIZER = Path(__file__).parent.parent / "tiny" / "tokenizer" / "tokenizer.json"


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


def read_parts(prompt: str) -> dict[str, str] | None:
    """Return what a prompt says of what the judge knows; None when it is not in the language.

    Parts are named as ``vidsparse.metrics.judge`` names them. What is not said is not asked for,
    nor what cannot be told: shape, colour and motion of several sprites, tone and colour of a
    background of two colours, the camera's move over a background without a pattern.

    Example:
        >>> read_parts("a big red ball rising over a dark blue backdrop")
        {'sprites': '1', 'shape': 'circle', 'colour': 'red', 'motion': 'up', 'tone': 'dark', \
'ground': 'blue'}
        >>> read_parts("a dog on a beach") is None
        True
    """
    found = _PROMPT.fullmatch(" ".join(prompt.lower().split()))
    if found is None:
        return None
    sprites = [said for name in ("first", "second", "third") if (said := found[name])]
    parts = {"sprites": str(len(sprites))}
    if len(sprites) == 1:
        parts |= _meant(found, {"shape": SHAPES, "colour": SPRITE_COLOURS, "motion": MOTIONS})
    if not found["ground2"]:
        parts |= _meant(found, {"tone": TONES, "ground": BACKGROUND_COLOURS})
    patterns = {name for said in (found["pattern"], found["pattern2"]) if said
                for name in PATTERNS if said in PATTERNS[name]}  # fmt: skip
    if len(patterns) == 1:
        parts["pattern"] = patterns.pop()
        if parts["pattern"] != "plain":
            parts |= _meant(found, {"camera": CAMERA_MOVES})
    return parts


def _meant(found: re.Match[str], words: Mapping[str, Synonyms]) -> dict[str, str]:
    """What was said, by the name of its idea."""
    return {
        part: next(name for name, synonyms in ideas.items() if found[part] in synonyms)
        for part, ideas in words.items()
        if found[part]
    }


def _any(ideas: Synonyms) -> str:
    return "|".join(word for words in ideas.values() for word in words)


def _sprite(named: bool) -> str:
    """A regular expression for one sprite; only the first one's parts are read."""
    tables = {"colour": SPRITE_COLOURS, "shape": SHAPES, "motion": MOTIONS}
    colour, shape, motion = (
        f"(?P<{part}>{_any(ideas)})" if named else f"(?:{_any(ideas)})"
        for part, ideas in tables.items()
    )
    return f"an? (?:(?:{_any(SIZES)}) )?(?:striped )?{colour} {shape}(?: {motion})?"


_GROUND = (
    f"an? (?:(?P<pattern>{_any(PATTERNS)}) )?(?:(?P<tone>{_any(TONES)}) )?"
    f"(?P<ground>{_any(BACKGROUND_COLOURS)})(?: and (?P<ground2>{_any(BACKGROUND_COLOURS)}))?"
    f"(?: (?P<pattern2>{_any(PATTERNS)}))? (?:background|backdrop)"
    f"(?: (?P<camera>{_any(CAMERA_MOVES)}))?"
)
_PROMPT = re.compile(
    f"(?P<first>{_sprite(True)})(?P<second>, {_sprite(False)})?(?P<third> and {_sprite(False)})?"
    f"(?: (?:{'|'.join(PLACES)}) {_GROUND})?"
)


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
