"""Dense attention by another engine, for the noise floor."""

import pytest
import torch
import torch.nn.functional as F

from vidsparse.comparison.baselines import another_engine, dense_calls, runs


@pytest.mark.parametrize(("device", "name"), [("cpu", "math"), ("cuda", "efficient")])
def test_what_the_engine_cannot_run_runs_by_the_formula(device, name):
    """On a CPU nothing is memory-efficient, as on a GPU a bias of an odd length is not."""
    q, k, v = (torch.randn(1, 2, 7, 8) for _ in range(3))
    bias = torch.randn(1, 2, 7, 7)
    expected = F.scaled_dot_product_attention(q, k, v, bias)
    found, engine = another_engine(torch.device(device))
    with engine:
        out = F.scaled_dot_product_attention(q, k, v, bias)
    assert found == f"{name} attention"
    torch.testing.assert_close(out, expected)


def test_every_dense_engine_that_runs_here_computes_attention():
    q, k, v = (torch.randn(1, 2, 70, 16) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v)
    calls = {name: call for name, call in dense_calls(q, k, v).items() if runs(call)}
    assert {"torch", "torch flash"} <= calls.keys()
    for call in calls.values():
        torch.testing.assert_close(call(), expected)
