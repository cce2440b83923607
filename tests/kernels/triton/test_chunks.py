"""Lists of chunks: against a walk over the blocks, and the kernel against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.kernels.plan import BlockPlan
from vidsparse.kernels.triton.chunk_lists import list_chunks


def positions(plan, chunks, batch, head, row):
    """The positions that a list covers, chunk by chunk, read straight off the tensors."""

    def of(x):
        return x[batch % x.shape[0], head % x.shape[1]]

    count, size = int(of(chunks.count)[row]), chunks.size
    entries = of(chunks.index)[row][:count].tolist()
    if not chunks.aligned:
        pairs = [divmod(entry, 2 * size) for entry in entries]
        return [list(range(start, start + length)) for start, length in pairs]
    parts = []
    for entry in entries:
        start, cut = divmod(entry, size**2)
        assert start % size == 0
        parts.append(list(range(start + cut % size, start + size - cut // size)))
    return parts


def pieces(kept, size, aligned):
    """Runs of consecutive positions, each cut every ``size``: whole pieces first, then short."""
    runs = []
    for at in kept:
        if runs and runs[-1][-1] == at - 1:
            runs[-1].append(at)
        else:
            runs.append([at])
    parts = []
    for run in runs:
        ahead = run[0] % size if aligned else 0
        cuts = [max(0, at - ahead) for at in range(0, ahead + len(run), size)]
        parts += [run[a:b] for a, b in zip(cuts, [*cuts[1:], len(run)], strict=True)]
    return sorted(parts, key=lambda part: len(part) < size)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("aligned", [False, True])
def test_lists_cover_the_kept_keys_and_nothing_else(oracle, device, impl, aligned, data):
    draw = data.draw
    batch, heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kv_len, blocks = draw(st.integers(1, 150)), draw(st.sampled_from([None, 1, 3, 40]))
    size = draw(st.sampled_from([8, 16]))
    empty = draw(st.booleans())
    plan = oracle.plan(
        batch, heads, 40, kv_len, 16, 16, kv_blocks=blocks, empty=empty, device=device
    )
    chunks = list_chunks(plan, size, 8, aligned=aligned, impl=impl)
    for b in range(batch):
        for h in range(heads):
            columns = oracle.block_tokens(kv_len, 16, plan.kv_offsets, b, h)
            for row in range(plan.num_q_blocks):
                parts = positions(plan, chunks, b, h, row)
                kept = [at for j in oracle.key_blocks(plan, b, h, row) for at in columns[j]]
                assert parts == pieces(kept, size, aligned)
                whole = int(chunks.whole[b % chunks.whole.shape[0], h % chunks.whole.shape[1], row])
                assert whole == sum(len(part) == size for part in parts)


@pytest.mark.parametrize(("size", "aligned"), [(8, False), (16, False), (16, True)])
def test_the_kernel_writes_what_the_reference_says(oracle, device, size, aligned):
    for blocks in (1, 30, 300):  # one of 700, some of every size, and most of them empty
        plan = oracle.plan(1, 2, 100, 700, 16, 16, q_blocks=5, kv_blocks=blocks, device=device)
        ours, truth = (
            list_chunks(plan, size, 128 // size, aligned=aligned, impl=impl)
            for impl in ("triton", "reference")
        )
        tiles = ((ours.count * size + 127) // 128).clamp(min=1)
        used = torch.arange(ours.index.shape[-1], device=device) < tiles[..., None] * 128 // size
        assert torch.equal(ours.count, truth.count)
        assert torch.equal(ours.whole, truth.whole)
        expected = truth.index[..., : used.shape[-1]]
        assert torch.equal(ours.index[used], expected[used])
        written = tiles - (ours.whole * size // 128).minimum(tiles - 1)
        used = torch.arange(ours.masks.shape[3], device=device) < written[..., None]
        assert (written <= ours.masks.shape[3]).all()
        mine, expected = ours.masks, truth.masks[:, :, :, : used.shape[-1]]
        if mine.dtype != expected.dtype:
            mine = mine.long() & (1 << 32) - 1
        assert torch.equal(mine[:, :, :, : expected.shape[3]][used], expected[used])


def test_a_row_without_keys_has_one_tile_that_exists(oracle, device):
    plan = oracle.plan(1, 1, 40, 50, 16, 16, kv_blocks=5, device=device)
    plan.kv_count.zero_()
    chunks = list_chunks(plan, 16, 8, impl="triton")
    assert (chunks.count == 0).all()
    assert (chunks.index[..., :8] == 0).all()


def test_neighbours_that_are_kept_are_one_run(device):
    keep = torch.tensor([[[[1, 1, 0, 1, 1, 1], [0, 1, 0, 0, 1, 0]]]], dtype=torch.bool)
    edges = torch.tensor([[[0, 10, 22, 30, 30, 45, 50]]], dtype=torch.int32)
    plan = BlockPlan.from_mask(
        keep.to(device), q_len=20, kv_len=50, q_block=16, kv_block=16, kv_offsets=edges.to(device)
    )
    chunks = list_chunks(plan, 16, 8, impl="triton")
    lengths = [[len(part) for part in positions(plan, chunks, 0, 0, row)] for row in range(2)]
    assert lengths == [[16, 16, 6, 4], [12, 15]]  # 22 from 0, 20 from 30; 12 from 10, 15 from 30
    assert [part[0] for part in positions(plan, chunks, 0, 0, 0)] == [0, 30, 16, 46]


def test_aligned_chunks_are_cut_at_both_ends(device):
    keep = torch.tensor([[[[1, 1, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0]]]], dtype=torch.bool)
    edges = torch.tensor([[[0, 10, 40, 43, 44, 70, 70]]], dtype=torch.int32)
    plan = BlockPlan.from_mask(
        keep.to(device), q_len=20, kv_len=70, q_block=16, kv_block=16, kv_offsets=edges.to(device)
    )
    chunks = list_chunks(plan, 16, 8, aligned=True, impl="triton")
    parts = [positions(plan, chunks, 0, 0, row) for row in range(2)]
    assert [[(x[0], len(x)) for x in row] for row in parts] == [
        [(0, 16), (16, 16), (48, 16), (32, 8), (43, 5), (64, 6)],
        [(16, 16), (10, 6), (32, 8), (43, 1)],
    ]


def test_the_bits_of_a_tile_are_in_the_order_of_threads(device):
    edges = torch.tensor([[[0, 3, 21, 40]]], dtype=torch.int32, device=device)
    keep = torch.tensor([[[[False, True, False]]]], device=device)
    plan = BlockPlan.from_mask(
        keep, q_len=20, kv_len=40, q_block=16, kv_block=16, kv_offsets=edges
    )  # fmt: skip
    for impl in ("reference", "triton"):
        masks = list_chunks(plan, 16, 8, aligned=True, impl=impl).masks
        seen = {
            8 * (bit // 2) + 2 * t + bit % 2
            for t in range(4)
            for bit in range(32)
            if int(masks[0, 0, 0, 0, t]) >> bit & 1
        }
        assert seen == {*range(3, 16), *range(16, 21)}


def test_a_run_goes_on_where_the_kernel_reads_the_next_blocks(oracle, device):
    plan = oracle.plan(1, 1, 20, 2000, 16, 16, kv_blocks=600, device=device)
    plan = BlockPlan.from_mask(
        plan.to_block_mask() | True, q_len=20, kv_len=2000, q_block=16, kv_block=16,
        kv_offsets=plan.kv_offsets,
    )  # fmt: skip
    chunks = list_chunks(plan, 16, 8, impl="triton")
    assert chunks.count.tolist() == chunks.whole.tolist() == [[[125, 125]]]
