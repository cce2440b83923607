"""The exceptions vidsparse raises on purpose; the command line turns them into one sentence."""

LONGEST = 2000  # characters of a message, which may repeat what was given


class VidsparseError(Exception):
    """Base of all our errors: a run failed for a reason we can name."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


class BadInputError(VidsparseError, ValueError):
    """What the caller asked for cannot be done; the message names the value and a way out."""


class OutOfReachError(BadInputError):
    """A run cannot have the mean density that was asked for."""


class DenseFallbackError(VidsparseError):
    """A layer had to run dense while the session was ``strict``."""


def shorten(text: str, longest: int = LONGEST) -> str:
    """Leave out the middle of a text that is too long to read.

    Example:
        >>> shorten("what is 1234567890 for?", 12)
        'what i ... 0 for?'
    """
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[: longest - half].rstrip()} ... {text[-half:].lstrip()}"


class CannotWriteError(VidsparseError, OSError):
    """A file could not be written; the message names it, the cause and a way out."""
