"""How many tokens a block has where nobody says."""

from __future__ import annotations

LONG = 16_384  # tokens, from which blocks of 128 pay on a GPU
WIDE = 128  # numbers of a head, of which they do


def usual_block(device: str, tokens: int, head_dim: int = WIDE) -> int:
    """Tokens in a block of queries and of keys.

    A GPU runs blocks of 128 faster, and plans a quarter as many, but for heads of 64 numbers
    (benchmarks/results/ladder_shapes_h200.json). In a short sequence, and on a CPU, blocks of 64
    keep more at the same density.

    Args:
        device: Its type, "cpu" or "cuda".
        tokens: In the sequence.
        head_dim: Numbers of a head.
    """
    return 128 if device == "cuda" and tokens >= LONG and head_dim >= WIDE else 64


def describe_usual_block(device: str) -> str:
    """The same as a clause.

    Args:
        device: Its type, "cpu" or "cuda".

    Example:
        >>> describe_usual_block("cpu")
        '64 tokens'
        >>> describe_usual_block("cuda")
        '128 tokens, 64 in sequences of fewer than 16,384 or with heads of fewer than 128 numbers'
    """
    long, short = usual_block(device, LONG), usual_block(device, LONG - 1)
    if long == short:
        return f"{long} tokens"
    return (
        f"{long} tokens, {short} in sequences of fewer than {LONG:,} or with heads of fewer than "
        f"{WIDE} numbers"
    )
