"""What waits in host memory comes back as it was, without a wait."""

import pytest
import torch

from vidsparse.state import LayerState

pytestmark = pytest.mark.gpu


def test_a_parked_tensor_comes_back_and_leaves_the_device():
    state = LayerState()
    for step in range(20):  # each over the one before, behind what still computes it
        x = torch.randn(1 << 20, device="cuda").cumsum(0)
        state.park("labels", x, step)
        assert_back(state, x)
        del x
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    state.park("labels", torch.ones(1 << 20, device="cuda"), 20)
    assert torch.cuda.memory_allocated() == before
    assert state.nbytes() == 0
    assert state.host_nbytes() == 4 << 20
    assert_back(state, torch.ones(1 << 20, device="cuda"))


def assert_back(state, expected):
    found = state.get("labels")
    assert found is not None
    assert torch.equal(found, expected)
