"""What exact rows gain, added to the runs around them."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.runs import agreement, correct_runs

SHAPES = [(70, 16, 3), (64, 64, 0), (1, 128, 2), (131, 128, 0), (200, 7, 5), (9, 1, 0), (300, 4, 1)]


def middles(length, every, start):
    first = torch.arange(start, start + length, every)
    return first + (start + length - first).clamp(max=every) // 2


def made(length, every, start, device, dtype=torch.float32):
    """An output with rows before and after the runs, exact rows, and where they stand."""
    seq = start + length + 4
    out = torch.randn(2, seq, 3, 24, device=device).transpose(1, 2)  # heads inside
    rows = middles(length, every, start).to(device)
    common = 0.3 * torch.randn(2, 3, 1, 24, device=device)  # so that neighbours agree a little
    exact = out.index_select(2, rows) + common + 0.2 * torch.randn(2, 3, len(rows), 24).to(device)
    return out.to(dtype), exact.to(dtype), rows


@pytest.mark.parametrize("agreed", [True, False])
@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(("length", "every", "start"), SHAPES)
def test_each_row_gets_that_of_its_run(device, impl, length, every, start, agreed):
    out, exact, rows = made(length, every, start, device)
    gained = exact - out.index_select(2, rows)
    share = agreement(gained) if agreed else torch.ones(2, 3, 1, 1, device=device)
    assert not agreed or len(rows) < 4 or 0.1 < share.min() < 1
    by_hand = out.clone()
    for i in range(length):
        by_hand[:, :, start + i] += share[:, :, 0] * gained[:, :, i // every]
    if agreed:
        by_hand[:, :, rows] = exact
    correct_runs(out, exact, rows, every, start=start, length=length, agreed=agreed, impl=impl)
    torch.testing.assert_close(out, by_hand)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_both_round_alike(device, dtype):
    out, exact, rows = made(150, 16, 2, device, dtype)
    other, how = out.clone(), {"start": 2, "length": 150, "agreed": True}
    correct_runs(out, exact, rows, 16, impl="triton", **how)
    correct_runs(other, exact, rows, 16, impl="reference", **how)
    torch.testing.assert_close(out, other, atol=0.01, rtol=0.016)  # the interpreter cuts bits off
    assert torch.equal(out.index_select(2, rows), exact)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_row_that_is_no_number_corrects_nobody(device, impl):
    out, exact, rows = made(40, 10, 0, device)
    exact[0, 0, 1, 3] = float("nan")
    before = out.clone()
    correct_runs(out, exact, rows, 10, start=0, length=40, agreed=True, impl=impl)
    assert out[0, 0, :, 3].isnan().sum() == 1  # the row itself
    assert torch.equal(out[0, 0, 10:15, 3], before[0, 0, 10:15, 3])


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("agreed", [True, False])
def test_rows_around_the_runs_are_left_alone(device, impl, agreed):
    out, exact, rows = made(40, 8, 5, device)
    before = out.clone()
    correct_runs(out, exact, rows, 8, start=5, length=40, agreed=agreed, impl=impl)
    changed = (out != before).any(dim=-1).any(dim=0).any(dim=0)
    assert changed[5:45].all()
    assert changed.sum() == 40


def test_another_impl_is_refused(device):
    out, exact, rows = made(8, 4, 0, device)
    with pytest.raises(BadInputError, match="unknown impl"):
        correct_runs(out, exact, rows, 4, start=0, length=8, agreed=True, impl="numba")
