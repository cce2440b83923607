"""Compiles the eight-bit Hopper kernel without a GPU: bytes of stack and count of wgmma, as JSON.

Run by ``test_low_bit_compiles.py`` in a process of its own, where kernels are not interpreted.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget

from vidsparse.kernels.triton.low_bit_hopper import KEYS, STAGES, descriptor, forward

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


def compiled(head_dim, slot):
    q = torch.zeros(1, HEADS, TOKENS, head_dim, dtype=torch.int8)
    v = torch.zeros(1, HEADS, head_dim, TOKENS, dtype=torch.int8).view(torch.float8_e4m3fn)
    out = torch.zeros(1, HEADS, TOKENS, head_dim, dtype=torch.bfloat16)
    floats, integers = torch.zeros(64), torch.zeros(64, dtype=torch.int32)
    return forward.warmup(
        descriptor(q, (64, head_dim)), descriptor(q, (slot, head_dim)),
        descriptor(v, (head_dim, slot)), descriptor(out, (64, head_dim)),
        *(floats,) * 5, *(integers,) * 3, *(16,) * 5, 32, 16, HEADS, TOKENS, 16, head_dim,
        BN=KEYS, SLOT=slot, KV=slot, ROW_TILES=1, D=head_dim, STAGES=STAGES, CONSUMERS=2,
        HAS_LSE=True, CONSUMER_REGISTERS=240, HELD=False, num_warps=4, maxnreg=168, grid=(132,),
    )  # fmt: skip


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
        "int8": len(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n128k32\.s32\.s8\.s8", ptx)),
        "fp8": len(
            re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k32\.f32\.e4m3\.e4m3", ptx)
        ),
    }


if __name__ == "__main__":
    triton.runtime.driver.set_active(NoGPU())  # pyright: ignore[reportArgumentType]
    print(json.dumps(report(compiled(int(sys.argv[1]), int(sys.argv[2])))))
