"""What an estimator is given, from a grid and a block."""

import pytest
import torch

from vidsparse.policies.blocks import Blocks
from vidsparse.policies.estimator import Inputs


@pytest.fixture
def make_inputs():
    def make(grid, block, **rest):
        return Inputs(blocks=Blocks(grid, block, torch.device("cpu")), **rest)

    return make
