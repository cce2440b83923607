"""Why xformers may not import, and the two layouts of its log-sum-exp."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.xformers import _problem, packed_lse, xformers_unsupported


def cannot_find(name):
    def importer(module):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return importer


@pytest.fixture
def asked_anew():
    _problem.cache_clear()
    yield
    _problem.cache_clear()


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("flash_attn.flash_attn_interface", "pip uninstall flash-attn-4"),
        ("numpy", "pip install numpy"),
    ],
)
def test_xformers_says_which_package_stops_its_import(monkeypatch, missing, advice):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", cannot_find(missing))
    (reason,) = xformers_unsupported(Case(device_type="cuda", arch=(9, 0)))
    assert advice in reason


@pytest.mark.usefixtures("asked_anew")
@pytest.mark.parametrize("loads", [True, False])
def test_xformers_whose_kernels_do_not_load_says_so(monkeypatch, loads):
    mask = object()
    dense_only = SimpleNamespace(is_available=lambda: True, SUPPORTED_ATTN_BIAS_TYPES=[None])
    both = SimpleNamespace(is_available=lambda: loads, SUPPORTED_ATTN_BIAS_TYPES=[None, mask])
    fmha = SimpleNamespace(ALL_FW_OPS=[dense_only, both], BlockDiagonalMask=mask)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("importlib.import_module", lambda name: SimpleNamespace(fmha=fmha))
    reasons = xformers_unsupported(Case(device_type="cuda", arch=(9, 0)))
    assert [("do not load" in reason) for reason in reasons] == ([] if loads else [True])


@pytest.mark.parametrize("extra", [0, 3])
def test_both_layouts_of_xformers_log_sum_exp_give_one(extra):
    lengths = [5, 2, 7]
    lse = torch.randn(4, sum(lengths))
    packed = F.pad(lse, (0, extra), value=float("nan"))[None]
    padded = torch.full((3, 4, max(lengths) + extra), float("nan"))
    for span, part in zip(padded, lse.split(lengths, dim=1), strict=True):
        span[:, : part.shape[1]] = part
    assert torch.equal(packed_lse(packed, lengths), lse)
    assert torch.equal(packed_lse(padded, lengths), lse)


def test_one_span_has_one_layout():
    lse = torch.randn(1, 4, 32)
    assert torch.equal(packed_lse(lse, [20]), lse[0, :, :20])
