"""Timing on a GPU."""

import time

import pytest
import torch

from vidsparse.metrics.latency import take_turns

pytestmark = pytest.mark.gpu


def test_what_the_host_does_before_a_kernel_does_not_count():
    x = torch.ones(1000, device="cuda")

    def late():
        time.sleep(0.003)
        return x + 1

    assert take_turns({"late": late}, rounds=3, device="cuda")["late"].median < 1
