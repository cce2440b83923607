"""The triton engine on key blocks of unequal size, whose chunks share tiles: against the oracle."""

import pytest
import torch

from vidsparse.kernels.attention import attention


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize(("q_blocks", "kv_blocks"), [(7, 40), (3, 1), (None, 90), (2, 11)])
def test_clusters_that_share_tiles(oracle, device, head_dim, empty, q_blocks, kv_blocks):
    q, k, v = oracle.qkv(2, 2, 53, 151, head_dim, device=device)
    plan = oracle.plan(
        2, 2, 53, 151, 32, 32, q_blocks=q_blocks, kv_blocks=kv_blocks, empty=empty, device=device
    )
    ours, lse = attention(q, k, v, plan, engine="triton", return_lse=True)
    exact, exact_lse = oracle.attention(q, k, v, plan)
    oracle.assert_as_exact(ours, exact, torch.float32, times=20)
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    finite = lse.isfinite()
    oracle.assert_as_exact(lse[finite], exact_lse[finite], torch.float32, times=20)


def test_clusters_of_one_token_each(oracle, device):
    q, k, v = oracle.qkv(1, 2, 37, 61, 64, device=device)
    plan = oracle.plan(1, 2, 37, 61, 16, 1, device=device)
    edges = torch.arange(62, dtype=torch.int32, device=device).expand(1, 1, -1)
    ragged = type(plan)(
        kv_count=plan.kv_count, kv_index=plan.kv_index, q_len=37, kv_len=61, q_block=16,
        kv_block=128, kv_offsets=edges.contiguous(),
    )  # fmt: skip
    exact, _ = oracle.attention(q, k, v, plan)
    oracle.assert_as_exact(attention(q, k, v, ragged, engine="triton"), exact, torch.float32, 20)


def test_clusters_nobody_keeps_are_never_read(oracle, device):
    q, k, v = oracle.qkv(1, 1, 40, 100, 64, device=device)
    plan = oracle.plan(1, 1, 40, 100, 16, 16, kv_blocks=12, share=0.2, device=device)
    kept = plan.to_block_mask().any(dim=2)[0, 0]
    edges = plan.kv_offsets[0, 0].tolist()
    clean = attention(q, k, v, plan, engine="triton")
    for j in (~kept).nonzero().flatten().tolist():
        k[:, :, edges[j] : edges[j + 1]] = float("nan")
        v[:, :, edges[j] : edges[j + 1]] = float("nan")
    assert bool(k.isnan().any())
    assert torch.equal(attention(q, k, v, plan, engine="triton"), clean)
