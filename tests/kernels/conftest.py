"""An oracle of its own for attention under a plan, and random plans with awkward shapes."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.validate import validated

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
collect_ignore = ["compile_for_hopper.py", "compile_portable.py", "no_gpu.py"]  # scripts


def _of(x, batch, head):
    """One head's part of a tensor that may be shared."""
    return x[batch % x.shape[0], head % x.shape[1]]


def key_blocks(plan, batch, head, row):
    """The list of one query block, read straight off the plan's tensors."""
    count = int(_of(plan.kv_count, batch, head)[row])
    return _of(plan.kv_index, batch, head)[row, :count].tolist()


def block_tokens(length, block, offsets, batch, head):
    """The tokens of each block. Offsets are walked through: nothing is shared with the package."""
    if offsets is None:
        edges = [*range(0, length, block), length]
    else:
        edges = _of(offsets, batch, head).tolist()
    return [list(range(start, end)) for start, end in pairwise(edges)]


def softmax_attention(q, k, v, plan, scale=None):
    """Output and log-sum-exp in float64, one query block at a time, from the lists alone."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    lse = torch.full(q.shape[:3], -math.inf, dtype=torch.float64, device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            queries = block_tokens(plan.q_len, plan.q_block, plan.q_offsets, b, h)
            columns = block_tokens(plan.kv_len, plan.kv_block, plan.kv_offsets, b, h)
            for m, at in enumerate(queries):
                listed = key_blocks(plan, b, h, m)
                tokens = [token for j in listed for token in columns[j]]
                keys, values = k[b, h, tokens], v[b, h, tokens]
                bias = torch.zeros(len(tokens), dtype=torch.float64, device=q.device)
                if plan.pooled is not None:
                    size = (
                        plan.pooled.size.expand(1, 1, -1)
                        if plan.pooled.size.dim() == 1
                        else (plan.pooled.size)
                    )
                    skipped = [j for j in range(plan.num_kv_blocks) if j not in listed]
                    keys = torch.cat([keys, plan.pooled.key[b, h, skipped].double()])
                    values = torch.cat([values, plan.pooled.value[b, h, skipped].double()])
                    logs = _of(size, b, h)[skipped].double().log()
                    bias = torch.cat([bias, logs])
                if not at or not len(keys):
                    continue
                scores = q[b, h, at] @ keys.T * scale + bias
                lse[b, h, at] = scores.logsumexp(dim=-1)
                out[b, h, at] = scores.softmax(dim=-1) @ values
    return out, lse


def random_offsets(batch, heads, length, blocks):
    """Blocks of any size, empty ones among them."""
    cuts = torch.randint(0, length + 1, (batch, heads, blocks - 1)).sort(dim=-1).values
    zero = torch.zeros(batch, heads, 1, dtype=torch.long)
    return torch.cat([zero, cuts, zero + length], dim=-1).int()


def random_order(batch, heads, length):
    return torch.rand(batch, heads, length).argsort(dim=-1).int()


def random_plan(
    batch, heads, q_len, kv_len, q_block, kv_block, share=0.4, q_blocks=None, kv_blocks=None,
    empty=False, device="cpu",
):  # fmt: skip
    """Every row keeps about ``share`` of the blocks, at least one; rows differ in number.

    ``q_blocks`` and ``kv_blocks`` ask for so many blocks of unequal size. With ``empty`` about a
    third of the rows, the first of them for one, keep nothing.
    """
    extra = {}
    if q_blocks:
        extra["q_offsets"] = random_offsets(1, heads, q_len, q_blocks)
    if kv_blocks:
        extra["kv_offsets"] = random_offsets(batch, 1, kv_len, kv_blocks)
    shape = (batch, heads, q_blocks or -(-q_len // q_block), kv_blocks or -(-kv_len // kv_block))
    keep = torch.rand(shape) < share
    one = torch.randint(shape[-1], (*shape[:-1], 1))
    keep |= torch.zeros_like(keep).scatter_(-1, one, True)
    if empty:
        keep &= torch.rand(*shape[:-1], 1) > 1 / 3
        keep[:, :, 0] = False
    sizes = {"q_len": q_len, "kv_len": kv_len, "q_block": q_block, "kv_block": kv_block}
    extra = {name: tensor.to(device) for name, tensor in extra.items()}
    plan = BlockPlan.from_mask(keep.to(device), **sizes, **extra)
    return plan if empty else validated(plan)


def block_means(x, block):
    """Mean of each block, looped."""
    return torch.stack([part.float().mean(dim=2) for part in x.split(block, dim=2)], dim=2)


def pooled(k, v, block):
    sizes = [float(part.shape[2]) for part in k.split(block, dim=2)]
    size = torch.tensor(sizes, device=k.device)
    return Pooled(key=block_means(k, block), value=block_means(v, block), size=size)


def qkv(batch, heads, q_len, kv_len, head_dim, dtype=torch.float32, device="cpu"):
    """Views of ``(batch, seq, heads, head_dim)``, as diffusers has them: never contiguous."""
    lengths = (q_len, kv_len, kv_len)
    made = (torch.randn(batch, n, heads, head_dim).to(device, dtype) for n in lengths)
    return tuple(x.transpose(1, 2) for x in made)


def assert_as_exact(ours, exact, dtype, times=4):
    """Within a few roundings of the dtype, scaled to the largest element."""
    tolerance = times * torch.finfo(dtype).eps * float(exact.abs().max().clamp(min=1))
    difference = (ours.double() - exact.double()).abs().max() if ours.numel() else 0
    assert float(difference) <= tolerance, f"off by {float(difference):.3g} of {tolerance:.3g}"


@pytest.fixture(scope="session")
def oracle():
    return SimpleNamespace(
        assert_as_exact=assert_as_exact,
        attention=softmax_attention,
        block_means=block_means,
        block_tokens=block_tokens,
        key_blocks=key_blocks,
        offsets=random_offsets,
        order=random_order,
        plan=random_plan,
        pooled=pooled,
        qkv=qkv,
    )


@pytest.fixture(scope="session")
def run_compiled():
    """Runs a script of this folder in a process of its own, where kernels are not interpreted."""

    def run(script, *arguments):
        env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        env["PYTHONPATH"] = str(ROOT)
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run
