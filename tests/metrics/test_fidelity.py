"""Fidelity joins PSNR and SSIM of one clip, as numbers that JSON can hold."""

import json
import math

import numpy as np
import pytest

from vidsparse.metrics.fidelity import fidelity


def clips(*errors):
    """Grey frames, each off by one of the errors."""
    reference = np.full((len(errors), 16, 16, 3), 100, np.uint8)
    return reference + np.array(errors, np.uint8).reshape(-1, 1, 1, 1), reference


def decibels(mse):
    return 10 * math.log10(255**2 / mse)


def test_the_numbers_of_a_clip_are_those_worked_by_hand():
    result = fidelity(*clips(0, 3, 6))
    assert result.frame_mse == (0.0, 9.0, 36.0)
    assert result.frame_psnr == pytest.approx((math.inf, decibels(9), decibels(36)))
    assert result.psnr == pytest.approx((decibels(9) + decibels(36)) / 2)
    assert result.psnr_pooled == pytest.approx(decibels(15))
    assert result.psnr_worst_frame == pytest.approx(decibels(36))
    assert result.identical_frames == 1
    expected = [(2 * 100 * b + 2.55**2) / (100**2 + b**2 + 2.55**2) for b in (100, 103, 106)]
    assert result.frame_ssim == pytest.approx(expected)
    assert result.ssim == pytest.approx(sum(expected) / 3)
    assert result.ssim_worst_frame == pytest.approx(expected[2])


def test_json_writes_null_for_what_is_infinite_and_nothing_else():
    written = json.dumps(fidelity(*clips(0, 3)).to_json(), allow_nan=False)
    read = json.loads(written)
    assert read["frame_psnr"] == [None, pytest.approx(decibels(9))]
    assert read["psnr"] == pytest.approx(decibels(9))
    assert read["identical_frames"] == 1


def test_json_of_two_equal_clips_has_no_psnr_but_an_ssim():
    read = fidelity(*clips(0, 0)).to_json()
    assert [read[k] for k in ("psnr", "psnr_pooled", "psnr_worst_frame")] == [None] * 3
    assert read["ssim"] == pytest.approx(1)
    assert read["identical_frames"] == 2
