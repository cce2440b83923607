"""Dense attention by the fastest engine that was measured."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels.dense import dense_attention, fastest_dense
from vidsparse.kernels.engines.case import Case

HOPPER = Case(device_type="cuda", arch=(9, 0))


def test_a_gpu_that_was_not_measured_keeps_the_models_own():
    for case in (Case(device_type="cuda", arch=(8, 9)), Case(device_type="cpu")):
        choice = fastest_dense(case)
        assert choice.engine == "model"
        assert "no dense engine was measured" in choice.why


def test_the_fastest_that_can_run_is_named(monkeypatch):
    speeds = {"model": 500.0, "cpu": 600.0, "flash": 700.0}
    monkeypatch.setattr("vidsparse.kernels.dense.measured_dense", lambda case: speeds)
    choice = fastest_dense(HOPPER)  # without flash-attn-4
    assert choice.engine == "cpu"
    assert choice.why.endswith("model 500, cpu 600")
    speeds["model"] = 601.0
    assert fastest_dense(HOPPER).engine == "model"


def test_what_was_measured_on_hopper_is_in_the_table():
    from vidsparse.kernels.engines.table import measured_dense

    for head_dim in (64, 128):
        speeds = measured_dense(Case(device_type="cuda", arch=(9, 0), head_dim=head_dim))
        assert speeds["flash"] > speeds["triton"] > speeds["model"] > 100
    assert not measured_dense(Case(device_type="cuda", arch=(9, 0), dtype=torch.float32))


def test_a_block_engine_attends_to_everything():
    q, k, v = (torch.randn(1, 2, 150, 16) for _ in "qkv")
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(dense_attention("cpu", q, k, v, scale=0.3), exact)
    with pytest.raises(BadInputError, match="flash-attn-4"):
        dense_attention("flash", q, k, v, scale=0.3)


def test_an_engine_of_torch_attends_or_says_that_it_cannot():
    q, k, v = (torch.randn(1, 2, 150, 16) for _ in "qkv")
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=0.3)
    torch.testing.assert_close(dense_attention("torch-flash", q, k, v, scale=0.3), exact)
    with pytest.raises(BadInputError, match="dense engine 'torch-cudnn' cannot run this"):
        dense_attention("torch-cudnn", q, k, v, scale=0.3)
