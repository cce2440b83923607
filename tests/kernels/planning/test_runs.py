"""A row for each run, added to the run."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.planning.runs import add_to_runs


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize(
    ("seq", "every"), [(70, 16), (64, 64), (1, 128), (131, 128), (200, 7), (9, 1)]
)
def test_each_row_gets_that_of_its_run(device, impl, seq, every):
    out = torch.randn(2, seq, 3, 24, device=device).transpose(1, 2)  # heads inside
    rows = torch.randn(2, 3, -(-seq // every), 24, device=device)
    by_hand = torch.stack([out[:, :, i] + rows[:, :, i // every] for i in range(seq)], dim=2)
    add_to_runs(out, rows, every, impl=impl)
    torch.testing.assert_close(out, by_hand)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_rows_around_a_part_are_left_alone(device, impl):
    whole = torch.zeros(1, 2, 50, 8, device=device)
    add_to_runs(whole.narrow(2, 5, 40), torch.ones(1, 2, 5, 8, device=device), 8, impl=impl)
    assert whole[:, :, 5:45].eq(1).all()
    assert whole.sum() == 2 * 40 * 8


def test_another_impl_is_refused(device):
    with pytest.raises(BadInputError, match="unknown impl"):
        add_to_runs(torch.ones(1, 1, 4, 8), torch.ones(1, 1, 1, 8), 4, impl="numba")
