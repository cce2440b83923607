"""An oracle of its own for attention under a plan, and random plans with awkward shapes."""

import math
from types import SimpleNamespace

import pytest
import torch

from vidsparse.kernels.plan import BlockPlan, Pooled


def key_blocks(plan, batch, head, row):
    """The list of one query block, read straight off the plan's tensors."""
    count, index = (
        x[batch % x.shape[0], head % x.shape[1]] for x in (plan.kv_count, plan.kv_index)
    )
    return index[row, : int(count[row])].tolist()


def softmax_attention(q, k, v, plan, scale=None):
    """Attention under a plan in float64, one query block at a time, from its lists alone."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = q.double(), k.double(), v.double()
    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for m in range(plan.num_q_blocks):
                listed = key_blocks(plan, b, h, m)
                spans = [range(j * plan.kv_block, (j + 1) * plan.kv_block) for j in listed]
                tokens = [t for span in spans for t in span if t < plan.kv_len]
                keys, values = k[b, h, tokens], v[b, h, tokens]
                bias = torch.zeros(len(tokens), dtype=torch.float64)
                if plan.pooled is not None:
                    skipped = [j for j in range(plan.num_kv_blocks) if j not in listed]
                    keys = torch.cat([keys, plan.pooled.key[b, h, skipped].double()])
                    values = torch.cat([values, plan.pooled.value[b, h, skipped].double()])
                    logs = [math.log(size) for size in plan.pooled.size[skipped].tolist()]
                    bias = torch.cat([bias, torch.tensor(logs, dtype=torch.float64)])
                rows = slice(m * plan.q_block, min((m + 1) * plan.q_block, plan.q_len))
                weight = (q[b, h, rows] @ keys.T * scale + bias).exp()
                out[b, h, rows] = weight @ values / weight.sum(dim=-1, keepdim=True)
    return out


def random_plan(batch, heads, q_len, kv_len, q_block, kv_block, share=0.4):
    """Every row keeps about ``share`` of the blocks, at least one; rows differ in number."""
    shape = (batch, heads, -(-q_len // q_block), -(-kv_len // kv_block))
    keep = torch.rand(shape) < share
    one = torch.randint(shape[-1], (*shape[:-1], 1))
    keep |= torch.zeros_like(keep).scatter_(-1, one, True)
    sizes = {"q_len": q_len, "kv_len": kv_len, "q_block": q_block, "kv_block": kv_block}
    return BlockPlan.from_mask(keep, **sizes).validate()


def block_means(x, block):
    """Mean of each block, looped."""
    return torch.stack([part.float().mean(dim=2) for part in x.split(block, dim=2)], dim=2)


def pooled(k, v, block):
    sizes = [float(part.shape[2]) for part in k.split(block, dim=2)]
    return Pooled(key=block_means(k, block), value=block_means(v, block), size=torch.tensor(sizes))


@pytest.fixture
def oracle():
    return SimpleNamespace(
        attention=softmax_attention,
        block_means=block_means,
        key_blocks=key_blocks,
        plan=random_plan,
        pooled=pooled,
    )
