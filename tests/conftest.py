"""What every test shares: no network, a fixed seed, and GPU tests only where there is one."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest
import torch

if not torch.cuda.is_available():  # kernels then run in Triton's interpreter
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports a kernel


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def device():
    """Where kernels are tested: the GPU, or the CPU through Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
