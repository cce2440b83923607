"""Small work on a CPU takes one thread, and what was set comes back."""

import pytest
import torch

from vidsparse.kernels.threads import SMALL, one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_work_takes_one_thread_and_an_error_gives_the_others_back():
    def fail():
        with one_thread(torch.zeros(3)):
            assert torch.get_num_threads() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_large_work_and_other_devices_keep_all_threads(device):
    x = torch.zeros(1, device=device).expand(SMALL + 1 if device == "cpu" else 3)
    with one_thread(x):
        assert torch.get_num_threads() == 2
