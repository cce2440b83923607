"""Whether Triton runs."""

import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.kernels import dispatch
from vidsparse.kernels.dispatch import use_triton


def test_a_name_decides_and_auto_takes_triton_on_cuda_alone(device):
    x = torch.zeros(1, device=device)
    assert use_triton("triton", x)
    assert not use_triton("reference", x)
    assert not use_triton("cpu", x, besides=("cpu",))
    assert use_triton("auto", x) == x.is_cuda
    assert not use_triton("auto", torch.zeros(1))
    assert not use_triton("auto", x, able=False)
    assert not use_triton("auto", x.clone().requires_grad_(), differentiable=True)


def test_an_unknown_name_is_refused_with_those_there_are():
    x = torch.zeros(1)
    with pytest.raises(BadInputError, match="unknown impl 'gpu': choose auto, triton or reference"):
        use_triton("gpu", x)
    with pytest.raises(BadInputError, match="'gpu': choose auto, triton, cpu or reference"):
        use_triton("gpu", x, besides=("cpu",))


def test_triton_by_name_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(dispatch, "_interpreted", lambda: False)
    with pytest.raises(BadInputError, match="need a CUDA device, the tensors are on cpu"):
        use_triton("triton", torch.zeros(1))
    monkeypatch.setattr(dispatch, "INSTALLED", False)
    with pytest.raises(BadInputError, match="triton is not installed"):
        use_triton("triton", torch.zeros(1))
