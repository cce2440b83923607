"""Frames are read one after another: a long clip takes no more memory than a short one."""

import re
from pathlib import Path

import numpy as np
import pytest

from vidsparse.metrics.scores import Scorer

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
FRAMES, HEIGHT, WIDTH = 320, 96, 128  # as floats above 32 MiB, which malloc never keeps


def megabytes(field):
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    return int(kilobytes) / 1024


def growth(call):
    """By how many megabytes the process grew at most while ``call`` ran."""
    CLEAR.write_text("5")  # the high-water mark begins here
    before = megabytes("VmRSS")
    call()
    return megabytes("VmHWM") - before


def endless(frames):
    """A clip of one frame repeated, in the memory of that frame."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return np.broadcast_to(frame, (frames, HEIGHT, WIDTH, 3))


@pytest.mark.skipif(not CLEAR.exists(), reason="memory is measured through Linux's /proc")
def test_the_memory_of_all_scores_does_not_grow_with_the_clip():
    scorer = Scorer()
    reference, clip = endless(FRAMES), 255 - endless(1)[0]
    frames = np.broadcast_to(clip, reference.shape)
    scorer.score(frames[:8], reference[:8])  # what is loaded and allocated once
    as_floats = reference.size * 4 / 2**20
    assert growth(lambda: reference.astype(np.float32)) > 0.9 * as_floats  # it would be seen
    assert growth(lambda: scorer.score(frames, reference)) < 0.4 * as_floats
