"""MS-SSIM beyond its oracle (test_oracles.py): its ends, its order, and what it refuses."""

import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.ms_ssim import ms_ssim
from vidsparse.metrics.ssim import ssim


def test_identical_frames_give_exactly_one(make_scene):
    clip = make_scene(frames=1, height=170, width=161).dense
    assert ms_ssim(clip, clip).tolist() == pytest.approx([1.0], abs=1e-12)


def test_more_noise_scores_lower_and_always_above_ssim(make_scene):
    scene = make_scene(frames=1, height=176, width=176)
    scores = [ms_ssim(scene.noise(levels), scene.dense).item() for levels in (2, 10, 40)]
    assert scores == sorted(scores, reverse=True)
    noisy = scene.noise(10)
    assert ms_ssim(noisy, scene.dense) > ssim(noisy, scene.dense)


def test_an_inverted_picture_scores_zero_and_not_nan():
    ramp = np.linspace(0, 255, 176, dtype=np.uint8)
    clip = np.broadcast_to(ramp[None, :, None, None], (1, 176, 176, 3))
    assert ms_ssim(255 - clip, clip).tolist() == [0.0]


def test_a_frame_too_small_for_five_scales_is_refused():
    small = np.zeros((1, 160, 400, 3), np.uint8)
    with pytest.raises(BadInputError, match=r"161 x 161 pixels, got 160 x 400.*SSIM"):
        ms_ssim(small, small)


def test_clips_weigh_the_same_whatever_their_length(make_scene):
    scene = make_scene(frames=2, height=161, width=161)
    bad = scene.noise(40)
    metric = Accumulated("ms_ssim")
    metric.update(bad, scene.dense)
    metric.update(scene.dense[:1], scene.dense[:1])
    expected = ms_ssim(bad, scene.dense)
    assert metric.compute().item() == pytest.approx((expected.mean().item() + 1) / 2)
    assert metric.lowest().item() == expected.min().item()
