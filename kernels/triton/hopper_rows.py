"""What a consumer does with the rows of scores that it holds, in Gluon.

A thread holds two of every eight columns. Sums stay in the thread until the last tile, four to a
row, and the largest is found in two chains: what waits for the softmax waits less.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def row_max(s):
    """Largest of each row."""
    s3 = s.reshape([s.shape[0], s.shape[1] // 8, 8])
    return gl.convert_layout(
        gl.max(gl.max(s3, 1), 1), gl.SliceLayout(1, s.type.layout), assert_trivial=True
    )


@gluon.jit
def thread_sums(p):
    """Sum of each row over the columns that a thread holds, ``[rows, 4]``."""
    return gl.sum(gl.sum(p.reshape([p.shape[0], p.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def row_sums(l, ROWS: gl.constexpr):
    """Sum of each row, of the sums of its threads."""
    return gl.convert_layout(gl.sum(l, 1), ROWS, assert_trivial=True)


@gluon.jit
def over_rows(x, like):
    """A number for each row, where ``like`` ``[rows, .]`` has its rows."""
    return gl.expand_dims(
        gl.convert_layout(x, gl.SliceLayout(1, like.type.layout), assert_trivial=True), 1
    )


@gluon.jit
def paired(p, DTYPE: gl.constexpr):
    """Weights rounded to 16 bits, two neighbours in a word: what loops in a row hand on.

    As numbers of 16 bits the compiler takes them apart after one loop and packs them in the next.
    """
    low, high = gl.split(p.reshape([p.shape[0], p.shape[1] // 2, 2]))
    NAME: gl.constexpr = "f16x2" if DTYPE.is_fp16() else "bf16x2"
    return gl.inline_asm_elementwise(
        "cvt.rn." + NAME + ".f32 $0, $2, $1;", "=r,f,f", [low, high],
        dtype=gl.int32, is_pure=True, pack=1,
    )  # fmt: skip


@gluon.jit
def weights_of(words, DTYPE: gl.constexpr, WEIGHTS: gl.constexpr):
    """The weights of ``paired``, as a product reads them."""
    low, high = gl.inline_asm_elementwise(
        "mov.b32 {$0, $1}, $2;", "=h,=h,r", [words],
        dtype=(gl.int16, gl.int16), is_pure=True, pack=1,
    )  # fmt: skip
    low, high = low.to(DTYPE, bitcast=True), high.to(DTYPE, bitcast=True)
    p = gl.join(low, high).reshape([words.shape[0], words.shape[1] * 2])
    return gl.convert_layout(p, WEIGHTS, assert_trivial=True)
