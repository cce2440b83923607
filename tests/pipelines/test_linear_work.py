"""Weights that a token passes, against what the papers' shapes give."""

import diffusers
import pytest
from accelerate import init_empty_weights

from vidsparse.pipelines.linear_work import linear_work
from vidsparse.pipelines.models import find_model

CASES = {  # self-attention, cross-attention without keys and values, feed-forward
    "WanTransformer3DModel": (40, (4 + 2) * 5120**2 + 2 * 5120 * 13824),
    "HunyuanVideoTransformer3DModel": (60, 12 * 3072**2),
    "CogVideoXTransformer3DModel": (30, 12 * 1920**2),
    "LTXVideoTransformer3DModel": (28, (4 + 2 + 8) * 2048**2),
    "FluxTransformer2DModel": (57, 12 * 3072**2),
    "QwenImageTransformer2DModel": (60, 12 * 3072**2),
}


@pytest.mark.parametrize("name", CASES)
def test_weights_of_a_layer(name):
    with init_empty_weights():
        transformer = getattr(diffusers, name)()
    model = find_model(transformer)
    layers, each = CASES[name]
    assert len(model.layers(transformer)) == layers
    assert linear_work(model, transformer) == pytest.approx(layers * each, rel=0.001)
