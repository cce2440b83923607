"""Lists of chunks: against a walk over the blocks, and the kernel against the reference."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.kernels.triton.chunk_lists import list_chunks


def positions(plan, chunks, batch, head, row):
    """The positions that a list covers, chunk by chunk, read straight off the tensors."""

    def of(x):
        return x[batch % x.shape[0], head % x.shape[1]]

    count = int(of(chunks.count)[row])
    listed = of(chunks.index)[row].int()[:count].tolist()
    entries = [int(of(chunks.table)[at]) for at in listed]
    pairs = [divmod(entry, 2 * chunks.size) for entry in entries]
    return [list(range(start, start + length)) for start, length in pairs]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("impl", ["reference", "triton"])
def test_lists_cover_the_kept_keys_and_nothing_else(oracle, device, impl, data):
    draw = data.draw
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kv_len, blocks = draw(st.integers(1, 150)), draw(st.sampled_from([None, 1, 3, 40]))
    size = draw(st.sampled_from([8, 16]))
    empty = draw(st.booleans())
    plan = oracle.plan(
        batch, heads, 40, kv_len, 16, 16, kv_blocks=blocks, empty=empty, device=device
    )
    chunks = list_chunks(plan, size, 8, impl=impl)
    for b in range(batch):
        for h in range(heads):
            columns = oracle.block_tokens(kv_len, 16, plan.kv_offsets, b, h)
            for row in range(plan.num_q_blocks):
                parts = positions(plan, chunks, b, h, row)
                kept = [at for j in oracle.key_blocks(plan, b, h, row) for at in columns[j]]
                assert sorted(itertools.chain(*parts)) == kept
                whole = int(chunks.whole[b % chunks.whole.shape[0], h % chunks.whole.shape[1], row])
                assert [len(part) == size for part in parts] == [
                    i < whole for i in range(len(parts))
                ]


@pytest.mark.parametrize("size", [8, 16])
def test_the_kernel_writes_what_the_reference_says(oracle, device, size):
    for blocks in (1, 30, 300):  # one of 700, some of every size, and most of them empty
        plan = oracle.plan(2, 2, 100, 700, 16, 16, q_blocks=7, kv_blocks=blocks, device=device)
        ours, truth = (
            list_chunks(plan, size, 128 // size, impl=impl) for impl in ("triton", "reference")
        )
        tiles = ((ours.count * size + 127) // 128).clamp(min=1)
        used = torch.arange(ours.index.shape[-1], device=device) < tiles[..., None] * 128 // size
        assert torch.equal(ours.count, truth.count)
        assert torch.equal(ours.whole, truth.whole)
        expected = truth.index[..., : used.shape[-1]]
        assert torch.equal(ours.index.int()[used], expected[used])
        written = tiles - (ours.whole * size // 128).minimum(tiles - 1)
        used = torch.arange(ours.lengths.shape[-1], device=device) < written[..., None]
        assert (written <= ours.lengths.shape[-1]).all()
        expected = truth.lengths[..., : used.shape[-1]]
        mine = ours.lengths.long() & ((1 << 32) - 1 if size == 16 else -1)
        assert torch.equal(mine[..., : expected.shape[-1]][used], expected[used])


def test_a_row_without_keys_has_one_tile_that_exists(oracle, device):
    plan = oracle.plan(1, 1, 40, 50, 16, 16, kv_blocks=5, device=device)
    plan.kv_count.zero_()
    chunks = list_chunks(plan, 16, 8, impl="triton")
    assert (chunks.count == 0).all()
    assert (chunks.index[..., :8].int() == 0).all()


def test_more_chunks_than_two_bytes_can_number_get_four(oracle, device):
    plan = oracle.plan(1, 1, 20, 2000, 16, 16, kv_blocks=66_000, device=device)
    ours, truth = (list_chunks(plan, 16, 8, impl=impl) for impl in ("triton", "reference"))
    assert ours.index.dtype == torch.int32
    assert torch.equal(ours.count, truth.count)
    used = torch.arange(ours.index.shape[-1], device=device) < ours.count[..., None]
    assert torch.equal(ours.index[used], truth.index[..., : used.shape[-1]][used])
