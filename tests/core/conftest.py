"""What an estimator is given, from a grid and a block; eight bits without a GPU."""

import dataclasses

import pytest
import torch

from vidsparse.kernels.engines.table import ENGINES, resolve_engine
from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs


@pytest.fixture
def make_inputs():
    def make(grid, block, **rest):
        return Inputs(blocks=Blocks(grid, block, torch.device("cpu")), **rest)

    return make


@pytest.fixture
def int8_on_cpu(monkeypatch):
    """The engine of eight bits, on a CPU: by its reference."""
    allowed = dataclasses.replace(ENGINES["int8"], unsupported=lambda case: [])
    monkeypatch.setitem(ENGINES, "int8", allowed)
    resolve_engine.cache_clear()
    yield
    resolve_engine.cache_clear()


@pytest.fixture
def dense_measured_on_cpu(monkeypatch):
    """As if the ``reference`` engine had been measured to be the fastest dense one here."""
    monkeypatch.setattr("vidsparse.kernels.dense.measured_dense", lambda case: {"reference": 2.0})
