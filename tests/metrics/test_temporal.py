"""Temporal PSNR against numbers worked by hand."""

import math

import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.psnr import psnr
from vidsparse.metrics.temporal import temporal_psnr


def flat(*levels):
    return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])


def test_errors_that_stay_in_place_do_not_count():
    reference = flat(10, 60, 20)
    moved = reference + np.uint8(30)
    assert temporal_psnr(moved, reference).tolist() == [math.inf, math.inf]


def test_an_error_of_one_frame_counts_in_the_change_to_it_and_the_change_from_it():
    reference = flat(100, 100, 100, 100)
    blinking = flat(100, 110, 100, 100)
    expected = 20 * math.log10(255 / 10)
    assert temporal_psnr(blinking, reference).tolist() == pytest.approx([expected] * 2 + [math.inf])


def test_the_differences_are_signed():
    # +100 and -100: their magnitudes are equal, their changes 200 apart
    assert temporal_psnr(flat(100, 200), flat(100, 0)).item() == pytest.approx(
        20 * math.log10(255 / 200)
    )


def test_independent_errors_read_three_decibels_below_psnr(scene):
    noisy = scene.error(25)
    gap = psnr(noisy, scene.dense).mean() - temporal_psnr(noisy, scene.dense).mean()
    assert gap.item() == pytest.approx(10 * math.log10(2), abs=0.2)


def test_one_frame_or_other_shapes_are_refused():
    with pytest.raises(BadInputError, match="at least 2 frames, got 1"):
        temporal_psnr(flat(0), flat(0))
    with pytest.raises(BadInputError, match=r"\(3, 8, 8, 3\).*\(2, 8, 8, 3\)"):
        temporal_psnr(flat(0, 0, 0), flat(0, 0))


def test_the_mean_leaves_out_what_is_infinite():
    metric = Accumulated("temporal_psnr")
    metric.update(flat(100, 110, 110), flat(100, 100, 100))
    metric.update(flat(5, 5), flat(5, 5))
    assert metric.compute().item() == pytest.approx(20 * math.log10(255 / 10))
