"""Frames are read one after another: a long clip takes no more memory than a short one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, mmap, re
from pathlib import Path
import numpy as np
from vidsparse.metrics.scores import Scorer

FRAMES, HEIGHT, WIDTH = 160, 96, 128

def megabytes(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(field + r":\\s+(\\d+) kB", status).group(1)) / 1024

def growth(call):  # by how much at most while it runs
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = megabytes("VmRSS")
    call()
    return megabytes("VmHWM") - before

def endless(frames):  # one frame repeated, in the memory of that frame
    frame = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return np.broadcast_to(frame, (frames, HEIGHT, WIDTH, 3))

def touch(size):  # memory that no allocator kept from before
    np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)[:] = 1

scorer, reference = Scorer(), endless(FRAMES)
frames = np.broadcast_to(255 - reference[0], reference.shape)
scorer.score(frames[:8], reference[:8])  # what is loaded and allocated once
as_floats = 4 * reference.size
seen = growth(lambda: touch(as_floats))
print(json.dumps([growth(lambda: scorer.score(frames, reference)), seen, as_floats / 2**20]))
"""
CLEAR = Path("/proc/self/clear_refs")


@pytest.mark.skipif(not CLEAR.exists(), reason="memory is measured through Linux's /proc")
def test_the_memory_of_all_scores_does_not_grow_with_the_clip():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=200
    )
    scores, touched, as_floats = json.loads(done.stdout)
    assert touched > 0.9 * as_floats
    assert scores < 0.4 * as_floats
