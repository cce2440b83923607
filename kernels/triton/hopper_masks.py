"""Masks of partial blocks in a Hopper consumer, in Gluon; ``thread_bits.py`` lays out bits."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

# less than any score, and a power of two, so that its product with a scale is exact: the weights of
# a row that has seen no key yet are 1, and count for nothing beside the first key that it sees
UNSEEN = gl.constexpr(-(2.0**100))


@gluon.constexpr_function
def only(layout, kept):
    """A layout of the dimensions ``kept``: ``layout`` without the others."""
    for dim in reversed(range(layout.rank)):
        if dim not in kept:
            layout = gl.SliceLayout(dim, layout)
    return layout


@gluon.jit
def along(size: gl.constexpr, dim: gl.constexpr, rank: gl.constexpr, layout: gl.constexpr):
    """0, 1, ... along one dimension of a tensor of such a layout."""
    x = gl.arange(0, size, only(layout, (dim,)))
    for other in gl.static_range(rank):
        if other != dim:
            x = gl.expand_dims(x, other)
    return x


@gluon.jit
def pattern_of(patterns, tile, count, SCORES: gl.constexpr, BN: gl.constexpr, KV: gl.constexpr):
    """Which pattern a tile has: one number, or where it holds several blocks one for each word."""
    WORDS: gl.constexpr = only(SCORES, (0, 2, 3, 5))
    last = gl.maximum(count - 1, 0)
    if KV % BN == 0:
        entry = tile // (KV // BN)
    else:
        entry = (tile * (BN // 64) + along(BN // 64, 2, 4, WORDS)) // (KV // 64)
    return gl.load(patterns + gl.minimum(entry, last), mask=count > 0, other=0)


@gluon.jit
def words_of(bits, pattern, tile, first, SCORES: gl.constexpr, BN: gl.constexpr, KV: gl.constexpr,
             Q_BLOCK: gl.constexpr):  # fmt: skip
    """The words of a tile, ``[warp, row, 64 columns, lane]``, for 64 rows from ``first`` on."""
    WORDS: gl.constexpr = only(SCORES, (0, 2, 3, 5))
    word = (tile * (BN // 64) + along(BN // 64, 2, 4, WORDS)) % (KV // 64)
    thread = (along(4, 0, 4, WORDS) * 8 + along(8, 1, 4, WORDS)) * 4 + along(4, 3, 4, WORDS)
    return gl.load(bits + ((pattern * (KV // 64) + word) * Q_BLOCK + first) * 2 + thread)


@gluon.jit
def masked(s, words, SCORES: gl.constexpr):
    """Scores with ``UNSEEN`` where the bit of a pair is not set; they must be finite.

    It is added, which leaves nothing of a score, and not selected, since the unit that selects has
    the maxima to do; in place, or the compiler selects after all. ``SCORES`` is the layout of
    ``[warp, of two rows, row, 64 columns, of eight, lane, of two]``.
    """
    BN: gl.constexpr = s.shape[1]
    tile = s.reshape([4, 2, 8, BN // 64, 8, 4, 2])
    words = gl.expand_dims(gl.expand_dims(gl.expand_dims(words, 1), 4), 6)
    PLACES: gl.constexpr = only(SCORES, (1, 4, 6))
    place = along(8, 1, 3, PLACES) * 4 + along(2, 0, 3, PLACES) * 2 + along(2, 2, 3, PLACES)
    bit = 1 << place
    bit = gl.expand_dims(gl.expand_dims(gl.expand_dims(gl.expand_dims(bit, 0), 2), 3), 5)
    tile = gl.inline_asm_elementwise(
        """{
        .reg .pred seen;
        .reg .b32 bit;
        and.b32 bit, $2, $3;
        setp.ne.b32 seen, bit, 0;
        @!seen add.f32 $0, $0, 0fF1800000;
        }""",
        "=f,0,r,r", [tile, words, bit], dtype=gl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    return gl.convert_layout(tile.reshape([64, BN]), s.type.layout, assert_trivial=True)
