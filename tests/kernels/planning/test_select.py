"""Selection to compact lists: what each rule keeps, by hand and by sorting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.select import (
    select_budget,
    select_row_budget,
    select_threshold,
    select_top_k,
    select_top_p,
)

IMPLS = ["triton", "reference"]


def lists(selected):
    count, index = selected
    assert count.dtype == index.dtype == torch.int32
    rows = zip(count.flatten().tolist(), index.flatten(0, -2).tolist(), strict=True)
    return [row[:number] for number, row in rows]


def row(*values, device="cpu"):
    return torch.tensor([[[values]]], device=device)


@pytest.mark.parametrize("impl", IMPLS)
def test_top_k_keeps_the_best_in_ascending_order_ties_by_lower_index(device, impl):
    scores = row(0.0, 3.0, 1.0, 3.0, 1.0, -2.0, device=device)
    assert lists(select_top_k(scores, 3, impl=impl)) == [[1, 2, 3]]
    _, index = select_top_k(scores, 3, impl=impl)
    assert index.shape == (1, 1, 1, 3)


@pytest.mark.parametrize("impl", IMPLS)
def test_always_kept_blocks_count_and_come_first(device, impl):
    scores = row(9.0, 3.0, 1.0, 5.0, device=device)
    always = torch.tensor([[False, False, True, False]], device=device)
    assert lists(select_top_k(scores, 2, always=always, impl=impl)) == [[0, 2]]
    assert lists(select_top_k(scores, 1, always=always, impl=impl)) == [[2]]
    many = torch.tensor([[True, True, True, False]], device=device)
    assert lists(select_top_k(scores, 2, always=many, impl=impl)) == [[0, 1, 2]]
    narrow = select_top_k(scores, 2, always=many, max_always=3, impl=impl)
    assert narrow[1].shape[-1] == 3


@pytest.mark.parametrize("impl", IMPLS)
def test_top_p_keeps_the_block_that_crosses_the_share(device, impl):
    mass = row(0.1, 0.5, 0.15, 0.25, device=device)
    assert lists(select_top_p(mass, 0.6, impl=impl)) == [[1, 3]]
    assert lists(select_top_p(mass, 0.5, impl=impl)) == [[1]]
    assert lists(select_top_p(mass, 1.0, impl=impl)) == [[0, 1, 2, 3]]
    assert lists(select_top_p(mass, 0.1, min_count=3, impl=impl)) == [[1, 2, 3]]
    assert lists(select_top_p(10 * mass, 0.6, impl=impl)) == [[1, 3]]


@pytest.mark.parametrize("impl", IMPLS)
def test_threshold_keeps_what_reaches_it_and_never_nothing(device, impl):
    scores = row(0.0, 3.0, 1.0, 3.0, device=device)
    assert lists(select_threshold(scores, 1.0, impl=impl)) == [[1, 2, 3]]
    assert lists(select_threshold(scores, 99.0, impl=impl)) == [[1]]


@pytest.mark.parametrize("impl", IMPLS)
def test_a_budget_is_shared_by_need_and_rows_keep_their_floor(device, impl):
    scores = torch.tensor([[[[9.0, 8.0], [7.0, 1.0]], [[0.5, 0.2], [0.3, 0.1]]]], device=device)
    sizes = torch.tensor([4.0, 4.0], device=device)
    got = lists(select_budget(scores, sizes, sizes, 0.5, impl=impl))
    assert got == [[0, 1], [0, 1], [0], [0]]  # the second head gets nothing but its floor
    got = lists(select_budget(scores, sizes, sizes, 1.0, impl=impl))
    assert got == [[0, 1]] * 4


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("density", [0.1, 0.3, 0.77])
def test_a_budget_is_spent_but_not_exceeded(device, impl, density):
    scores = torch.randn(2, 2, 3, 7, device=device)
    q_sizes = torch.tensor([16.0] * 2 + [5.0], device=device)
    kv_sizes = torch.tensor([16.0] * 6 + [3.0], device=device)
    count, index = select_budget(scores, q_sizes, kv_sizes, density, min_count=0, impl=impl)
    used = torch.arange(7, device=device) < count[..., None]
    cost = kv_sizes[index.long()] * used * q_sizes[:, None]
    spent = cost.sum(dim=(1, 2, 3)) / (2 * q_sizes.sum() * kv_sizes.sum())
    assert (spent <= density + 1e-6).all()
    assert (spent >= density - 16 * 16 / float(2 * q_sizes.sum() * kv_sizes.sum())).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_triton_equals_the_reference_with_ties_nans_infinities_and_always(device, data):
    draw = data.draw
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    values = st.sampled_from([-3.5, -0.0, 0.0, 1.0, 1.5, float("nan"), float("inf"), -float("inf")])
    scores = torch.tensor(
        [[draw(values) for _ in range(columns)] for _ in range(2 * rows)], device=device
    ).view(1, 2, rows, columns)
    always = None
    if draw(st.booleans()):
        always = (torch.rand(rows, columns) < 0.2).to(device)
    k = draw(st.integers(1, columns + 2))
    both = [lists(select_top_k(scores, k, always=always, impl=impl)) for impl in IMPLS]
    assert both[0] == both[1]
    assert all(both[0])


@pytest.mark.parametrize("impl", IMPLS)
def test_a_row_of_nans_still_keeps_a_block(device, impl):
    scores = row(*[float("nan")] * 5, device=device)
    assert lists(select_top_k(scores, 1, impl=impl)) == [[0]]
    assert lists(select_threshold(scores, 0.0, impl=impl)) == [[0]]
    assert len(lists(select_top_p(scores, 0.5, impl=impl))[0]) >= 1


def test_shares_out_of_range_are_refused():
    with pytest.raises(BadInputError, match=r"p must be in \(0, 1\], got 0"):
        select_top_p(row(1.0), 0.0)
    with pytest.raises(BadInputError, match=r"density must be in \(0, 1\], got 2"):
        select_budget(row(1.0), torch.ones(1), torch.ones(1), 2.0)


def test_each_row_keeps_the_best_blocks_that_its_keys_pay_for():
    scores = torch.tensor([[[[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [5.0, 4.0, 6.0]]]])
    sizes, tokens = torch.tensor([4.0, 1.0, 2.0]), torch.tensor([[[6.0, 0.0, 5.0]]])
    always = torch.tensor([[False, False, False], [True, True, False], [False, True, False]])
    assert lists(select_row_budget(scores, sizes, tokens)) == [[0, 2], [2], [2]]
    assert lists(select_row_budget(scores, sizes, tokens, always=always)) == [
        [0, 2],
        [0, 1],
        [1, 2],
    ]


@pytest.mark.parametrize("impl", IMPLS)
def test_every_entry_of_the_batch_may_have_a_density_of_its_own(device, impl):
    scores = torch.rand(3, 1, 3, 5, device=device)
    sizes = torch.full((3,), 16.0, device=device), torch.full((5,), 16.0, device=device)
    density = torch.tensor([0.2, 0.5, 1.0], device=device)
    together = select_budget(scores, *sizes, density, impl=impl)
    for i, each in enumerate(density.tolist()):
        alone = select_budget(scores[i : i + 1], *sizes, each, impl=impl)
        assert lists(alone) == lists(tuple(x[i : i + 1] for x in together))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(density=st.floats(0.05, 1.0))
def test_blocks_of_unequal_size_in_every_head_are_paid_by_their_pairs(density):
    scores = torch.rand(1, 3, 5, 8)
    q_sizes, kv_sizes = (torch.randint(0, 30, (1, 3, n)).float() for n in (5, 8))
    count, index = select_budget(scores, q_sizes, kv_sizes, density)
    cost = q_sizes[..., None] * kv_sizes[..., None, :]
    used = torch.arange(8) < count[..., None]
    keep = torch.zeros(1, 3, 5, 8).scatter_add_(-1, index.long(), used.float()) > 0
    best = torch.zeros_like(keep).scatter_(-1, scores.argmax(dim=-1, keepdim=True), True)
    assert bool((keep | ~best).all())  # the best of a row is kept, whatever it costs
    paid = keep & ~best
    assert float((cost * paid).sum()) <= density * float(cost.sum()) * (1 + 1e-5)
    if paid.any():
        assert bool((keep | (scores < scores[paid].min())).all())


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_triton_spends_a_budget_as_sorting_does(device, data):
    """Blocks of one size, of a few, or of sizes that every head has for itself."""
    draw = data.draw
    batch, heads, rows = (draw(st.integers(1, n)) for n in (2, 2, 5))
    columns = draw(st.sampled_from([1, 5, 8, 33, 70]))
    scores = torch.randn(batch, heads, rows, columns, device=device)
    scores = scores.exp() if draw(st.booleans()) else scores.round(decimals=1)  # with ties
    own = draw(st.booleans())
    few = draw(st.integers(1, 40))  # up to here all are of one size
    sizes = []
    for number in (rows, columns):
        size = torch.randint(0, 50, (batch, heads, number) if own else (number,), device=device)
        size[..., :few] = size[..., :few] if own else 16
        sizes.append(size.float())
    sizes[1][..., 0] += 1
    always = (torch.rand(rows, columns) < 0.1).to(device) if draw(st.booleans()) else None
    density = draw(st.sampled_from([0.02, 0.3, 0.9, 1.0]))
    queries, keys = sizes
    programs = draw(st.sampled_from([1, 3, 4096]))  # which share the rows, or have one each
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidsparse.kernels.triton.select.PROGRAMS", programs)
        both = [
            select_budget(scores, queries, keys, density, always=always, impl=impl)
            for impl in IMPLS
        ]
    assert lists(both[0]) == lists(both[1])
