"""Compiles the kernels that some presets launch, for a GPU that is not there, as JSON.

    python tests/kernels/compile_portable.py 89 101376 256 balanced,semantic,backward,low-bit

For each launch: the kernel, the bytes of shared memory and of stack of each candidate, and whether
one is within those that are given. Run by ``test_portable_compiles.py`` in a process of its own,
where kernels are not interpreted.
"""

import json
import sys

import torch
from no_gpu import bytes_of_stack, pretend

from vidsparse.grid import TokenGrid
from vidsparse.kernels.attention import attention
from vidsparse.kernels.engines.int8 import everything
from vidsparse.kernels.triton import block_sparse, low_bit
from vidsparse.presets import PRESETS
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

GRID = TokenGrid(5, 16, 16)
HEAD_DIM = 128


def qkv(head_dim):
    return [torch.randn(1, GRID.tokens, 2, head_dim, dtype=torch.bfloat16) for _ in "qkv"]


def run(what, head_dim):
    q, k, v = (x.transpose(1, 2) for x in qkv(head_dim))
    if what == "low-bit":
        low_bit.launch(q, k, v, everything(q, k), scale=1.0, return_lse=True)
    elif what == "backward":
        q.requires_grad_()
        attention(q, k, v, everything(q, k), engine="triton").sum().backward()
    else:
        preset(what, head_dim)


def low_bit_values(arch):
    return torch.float8_e4m3fn if arch >= 89 else torch.float16


def preset(name, head_dim):
    """Two steps: what a step remembers may be read by the next."""
    takes = PRESETS[name].plain_parameters()
    block = {"block": 128} if "block" in takes else {}
    changes = {"min_tokens": 0, "dense_layers": 0} | block
    sparse = SparseAttention(PRESETS[name].override(changes), engine="triton")
    for at, progress in list(enumerate(Progress.first(10).steps()))[-2:]:
        call = Call(grid=GRID, layer=0, step=at, progress=progress, layers=1)
        q, k, v = qkv(head_dim)
        sparse(q, k, v, call, dense)
    assert not sparse.stats.fallbacks, sparse.stats.fallbacks


def dense(q, k, v):
    raise AssertionError("dense attention ran")


def bytes_of(kernel):
    return kernel.metadata.shared, bytes_of_stack(kernel)


if __name__ == "__main__":
    arch, *limits = map(int, sys.argv[1:4])

    def fits(kernel):
        return all(used <= most for used, most in zip(bytes_of(kernel), limits, strict=True))

    block_sparse.runs_gluon_on_hopper = low_bit.runs_gluon_on_hopper = lambda q: False
    low_bit.value_dtype_of = lambda device: low_bit_values(arch)
    launches = pretend(arch, enough=fits)
    for what in sys.argv[4].split(","):
        run(what, HEAD_DIM)
    seen = {}
    for name, found in launches:
        key = name, *(kernel.hash for kernel in found)
        if key not in seen:
            seen[key] = name, [bytes_of(kernel) for kernel in found], any(map(fits, found))
    print(json.dumps(list(seen.values())))
