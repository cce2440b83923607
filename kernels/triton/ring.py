"""Stages of shared memory that are filled and read in turn: where step ``n`` of a program is."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def _log2(number):
    """Of a power of two, or -1: steps are signed, which makes a division several instructions."""
    return number.bit_length() - 1 if number & (number - 1) == 0 else -1


@gluon.jit
def stage_of(step, STAGES: gl.constexpr):
    """Which stage a step has."""
    return step % STAGES if _log2(STAGES) < 0 else step & (STAGES - 1)


@gluon.jit
def phase_of(step, STAGES: gl.constexpr):
    """The phase in which barriers of that stage complete for the step, 0 or 1."""
    turn = step // STAGES if _log2(STAGES) < 0 else step >> _log2(STAGES)
    return turn & 1
