"""Compiles Hopper kernels without a GPU: bytes of stack and count of wgmma of each, as JSON.

    python tests/kernels/compile_for_hopper.py packed,128,128,64 low_bit,64,128,128

Run by ``test_hopper_compiles.py`` in a process of its own, where kernels are not interpreted.
"""

import dataclasses
import json
import re
import sys
import traceback
from collections import Counter
from typing import Any

import torch
from no_gpu import bytes_of_stack, pretend

from vidsparse.kernels.engines.low_bit import key_block_of, quantize
from vidsparse.kernels.plan import BlockPlan, Pooled
from vidsparse.kernels.planning.partial import plan_of_pairs
from vidsparse.kernels.triton import hopper, low_bit_hopper, low_bit_packed, packed

TOKENS, HEADS = 2048, 2


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


def partial_plan_of(q_block, kv_block):
    rows, columns = TOKENS // q_block, TOKENS // kv_block
    return plan_of_pairs(
        lambda q, k: k <= q,
        q_len=TOKENS, kv_len=TOKENS, q_block=q_block, kv_block=kv_block,
        candidates=torch.ones(rows, columns, dtype=torch.bool),
    )  # fmt: skip


MODULES: dict[str, Any] = {
    "packed": packed, "means": packed, "low_bit": low_bit_hopper,
    "low_bit_packed": low_bit_packed, "low_bit_means": low_bit_packed,
}  # fmt: skip


def launch(what, head_dim, q_block, kv_block):
    module = MODULES.get(what, hopper)
    q = torch.zeros(1, HEADS, TOKENS, head_dim, dtype=torch.bfloat16)
    if what == "partial":
        plan = partial_plan_of(q_block, kv_block)
    else:
        plan = plan_of(q_block, kv_block, unequal=module in (packed, low_bit_packed))
    if what.endswith("means"):
        mean = q[:, :, ::kv_block]
        pooled = Pooled(key=mean, value=mean, size=plan.kv_sizes)
        plan = dataclasses.replace(plan, pooled=pooled)
    if what.startswith("low_bit"):
        x = quantize(
            q, q, q, scale=1.0, key_block=key_block_of(plan), layout=module.LAYOUT,
            pooled=plan.pooled, impl="reference",
        )  # fmt: skip
        if module is low_bit_hopper:  # as the fused pass lays it
            x = dataclasses.replace(x, value=x.value.mT.contiguous().mT)
        module.launch(x, plan, torch.empty_like(q), return_lse=True)
    elif what == "observe":
        module.observe(q, q, q, plan, scale=1.0)
    else:
        module.launch(q, q, q, plan, scale=1.0, return_lse=True)


def report(kernel):
    wgmma = re.findall(r"wgmma\.mma_async\.sync\.aligned\.m64n\d+k\d+(\S+)", kernel.asm["ptx"])
    stack, shared = bytes_of_stack(kernel), kernel.metadata.shared
    return {"stack": stack, "shared": shared, "wgmma": Counter(wgmma)}


def compiled(case, launches):
    """What a case launches, reported; an error as its text, for the case to fail alone."""
    what, *numbers = case.split(",")
    launches.clear()
    try:
        launch(what, *map(int, numbers))
    except Exception:
        return traceback.format_exc()
    (kernel,) = next(found for name, found in launches if name == "forward")
    return report(kernel)


if __name__ == "__main__":
    launches = pretend(90)
    print(json.dumps({case: compiled(case, launches) for case in sys.argv[1:]}))
