"""The classic metrics against the packages whose numbers people know."""

import numpy as np
import pytest
import torch
from pytorch_msssim import ms_ssim as their_ms_ssim
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vidsparse.metrics.ms_ssim import ms_ssim
from vidsparse.metrics.psnr import psnr
from vidsparse.metrics.ssim import ssim


def random_pair(height, width, spread, seed=0):
    rng = np.random.default_rng(seed)
    steps = rng.integers(-30, 31, (2, height, width, 3))
    reference = np.clip(127 + steps.cumsum(1) // 4, 0, 255).astype(np.uint8)
    noise = rng.normal(0, spread, reference.shape)
    return np.clip(reference + noise, 0, 255).astype(np.uint8), reference


@pytest.mark.parametrize("spread", [1, 12, 60])
def test_psnr_equals_scikit_image(spread):
    frames, reference = random_pair(40, 56, spread)
    expected = [
        peak_signal_noise_ratio(theirs, ours, data_range=255)
        for ours, theirs in zip(frames, reference, strict=True)
    ]
    assert psnr(frames, reference).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("spread", [1, 12, 60])
@pytest.mark.parametrize(("height", "width"), [(11, 40), (64, 64), (73, 120)])
def test_ssim_equals_scikit_image(height, width, spread):
    frames, reference = random_pair(height, width, spread)
    expected = []
    for ours, theirs in zip(frames, reference, strict=True):
        expected.append(
            structural_similarity(
                ours,
                theirs,
                data_range=255,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
    assert ssim(frames, reference).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("spread", [5, 60])
@pytest.mark.parametrize(("height", "width"), [(161, 161), (177, 203), (192, 256)])
def test_ms_ssim_equals_pytorch_msssim(height, width, spread):
    frames, reference = random_pair(height, width, spread)
    ours, theirs = (torch.from_numpy(clip).movedim(-1, 1).double() for clip in (frames, reference))
    expected = their_ms_ssim(ours, theirs, data_range=255, size_average=False)
    assert ms_ssim(frames, reference).tolist() == pytest.approx(expected.tolist(), abs=1e-6)
