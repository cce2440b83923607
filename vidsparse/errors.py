"""The exceptions vidsparse raises on purpose; the command line turns them into one sentence."""


class VidsparseError(Exception):
    """Base of all our errors: a run failed for a reason we can name."""


class BadInputError(VidsparseError, ValueError):
    """What the caller asked for cannot be done; the message names the value and a way out."""


class DenseFallbackError(VidsparseError):
    """A layer had to run dense while the session was ``strict``."""


class CannotWriteError(VidsparseError, OSError):
    """A file could not be written; the message names it, the cause and a way out."""
