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
