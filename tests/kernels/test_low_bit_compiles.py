"""The eight-bit Hopper kernel compiles where there is no GPU, and without spills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_low_bit.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("slot", [64, 128])
def test_it_compiles_for_hopper_without_spills(head_dim, slot):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(SCRIPT), str(head_dim), str(slot)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout)
    assert seen["stack"] <= 16
    assert seen["shared"] <= 227 * 1024
    consumers, sites = 2, 3  # the first scores, the first product, the loop
    assert seen["int8"] == consumers * sites * head_dim // 32
    assert seen["fp8"] == consumers * 2 * 128 // 32
