"""Frames are read one after another: a long clip takes no more memory than a short one."""

import json
import subprocess
import sys

import pytest

MEASURE = """
import json, resource
import numpy as np
from vidsparse.metrics.scores import Scorer

FRAMES, HEIGHT, WIDTH = 320, 96, 128

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def endless(frames):  # one frame repeated, in the memory of that frame
    frame = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return np.broadcast_to(frame, (frames, HEIGHT, WIDTH, 3))

scorer, reference = Scorer(), endless(FRAMES)
frames = np.broadcast_to(255 - reference[0], reference.shape)
scorer.score(frames[:8], reference[:8])  # what is loaded and allocated once
before = peak()
scorer.score(frames, reference)
scored = peak()
floats = reference.astype(np.float32)  # it would be seen
print(json.dumps([scored - before, peak() - scored, floats.nbytes / 2**20]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is that of Linux")
def test_the_memory_of_all_scores_does_not_grow_with_the_clip():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=200
    )
    scores, copy, as_floats = json.loads(done.stdout)
    assert copy > 0.5 * as_floats
    assert scores < 0.4 * as_floats
