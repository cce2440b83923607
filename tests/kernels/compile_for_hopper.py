"""Compiles a Hopper kernel without a GPU: bytes of stack and count of wgmma, as JSON.

Run by ``test_hopper_compiles.py`` in a process of its own, where kernels are not interpreted.
"""

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from vidsparse.kernels.engines.low_bit import key_block_of, quantize
from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton import hopper, low_bit_hopper, packed

TOKENS, HEADS = 2048, 2


class NoGPU:
    """A driver of a Hopper GPU that is not there: enough to compile."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError

    def map_python_to_cpp_type(self, ty):
        return "void*"


class Compiled:
    """Stands for a kernel: a launch compiles it, with the same arguments, and runs nothing."""

    def __init__(self, kernel):
        self._kernel, self.results = kernel, []

    def __getitem__(self, grid):
        return lambda *args, **named: self.results.append(
            self._kernel.warmup(*args, grid=grid, **named)
        )


def plan_of(q_block, kv_block, unequal):
    rows, columns = TOKENS // q_block, TOKENS // kv_block
    plan = BlockPlan.from_mask(
        torch.ones(1, 1, rows, columns, dtype=torch.bool),
        q_len=TOKENS, kv_len=TOKENS, q_block=q_block, kv_block=kv_block,
    )  # fmt: skip
    if not unequal:
        return plan
    edges = torch.arange(columns + 1, dtype=torch.int32) * kv_block
    return dataclasses.replace(plan, kv_offsets=edges[None, None])


def compiled(what, head_dim, q_block, kv_block):
    """The kernel that a launch of this module compiles."""
    module: Any = {"hopper": hopper, "packed": packed, "low_bit": low_bit_hopper}[what]
    kernel = Compiled(module.forward)
    module.forward = kernel
    q = torch.zeros(1, HEADS, TOKENS, head_dim, dtype=torch.bfloat16)
    plan = plan_of(q_block, kv_block, unequal=what == "packed")
    if what == "low_bit":
        x = quantize(
            q, q, q, scale=1.0, key_block=key_block_of(plan), interleaved=True, impl="reference"
        )
        x = dataclasses.replace(x, value=x.value.mT.contiguous().mT)  # as the fused pass lays it
        low_bit_hopper.launch(x, plan, torch.empty_like(q), return_lse=True)
    else:
        module.launch(q, q, q, plan, scale=1.0, return_lse=True)
    (result,) = kernel.results
    return result


def report(kernel):
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(cuobjdump), "-res-usage", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    ptx = kernel.asm["ptx"]
    return {
        "stack": int(re.findall(r"STACK:(\d+)", done.stdout + done.stderr)[0]),
        "shared": kernel.metadata.shared,
        "wgmma": Counter(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+(\S+)", ptx)),
    }


if __name__ == "__main__":
    triton.runtime.driver.set_active(NoGPU())  # pyright: ignore[reportArgumentType]
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(multi_processor_count=132)
    listed = packed.list_chunks
    packed.list_chunks = lambda *args, impl: listed(*args, impl="reference")
    what, *numbers = sys.argv[1:]
    print(json.dumps(report(compiled(what, *map(int, numbers)))))
