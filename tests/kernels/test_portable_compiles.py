"""Kernels compile for GPUs that are not here, and fit the shared memory that those have.

Consumer cards (3090, 4090, 5090) have 99 KiB for a program where Hopper has 227: a kernel that asks
for more fails at its launch.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_KIB = {80: 163, 89: 99, 120: 99}  # of a program, by compute capability
SCRIPT = Path(__file__).with_name("compile_portable.py")
ROOT = Path(__file__).resolve().parents[2]


def compiled(arch, head_dim, *names):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(SCRIPT), str(arch), str(head_dim), ",".join(names)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (89, ("balanced", "semantic", "adaspa", "backward", "low-bit")),
        (80, ("low-bit",)),
        (120, ("balanced", "low-bit")),
    ],
    ids=lambda x: x if isinstance(x, int) else "-".join(x),
)
def test_every_launch_has_a_kernel_that_fits(arch, names):
    found = compiled(arch, 128, *names)
    assert len({name for name, _ in found}) >= 3
    for name, candidates in found:
        shared = min(shared for shared, _ in candidates)
        assert shared <= SHARED_KIB[arch] * 1024, f"{name} asks for {shared} bytes on sm_{arch}"
        stack = min(stack for _, stack in candidates)
        assert stack <= 256, f"{name} spills {stack} bytes on sm_{arch}"
