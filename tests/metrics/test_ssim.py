"""SSIM against its definition, written window by window, and against torchmetrics."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.ssim import ssim


def pair(frames=2, height=23, width=31, noise=25.0, seed=0):
    """A smooth pattern, and the same with noise."""
    rng = np.random.default_rng(seed)
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    clean = 127 + 110 * np.sin(x / 5 + t) * np.cos(y / 4 + c)
    reference = np.clip(clean, 0, 255).astype(np.uint8)
    dirty = clean + rng.normal(0, noise, (frames, height, width, 3))
    return np.clip(dirty, 0, 255).astype(np.uint8), reference


def definition(frames, reference):
    """SSIM of each frame as it is defined: every window, central moments, one by one."""
    offset = np.arange(-5, 6)
    weights = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weights /= weights.sum()

    def window(a, b):
        mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
        var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
        cov = (weights * (a - mean_a) * (b - mean_b)).sum()
        c1, c2 = 2.55**2, 7.65**2
        top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
        return top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))

    frames, reference = frames.astype(float), reference.astype(float)
    count, height, width, channels = frames.shape
    return [
        np.mean(
            [
                window(
                    frames[t, y : y + 11, x : x + 11, c], reference[t, y : y + 11, x : x + 11, c]
                )
                for y in range(height - 10)
                for x in range(width - 10)
                for c in range(channels)
            ]
        )
        for t in range(count)
    ]


@pytest.mark.parametrize("noise", [1.0, 25.0, 90.0])
def test_each_frame_equals_the_definition(noise):
    frames, reference = pair(noise=noise)
    assert ssim(frames, reference).tolist() == pytest.approx(definition(frames, reference))


def test_it_equals_torchmetrics_away_from_the_border():
    from torchmetrics.functional.image import structural_similarity_index_measure

    frames, reference = pair(height=40, width=64)
    ours, theirs = (torch.from_numpy(clip).movedim(-1, 1).double() for clip in (frames, reference))
    _, full = structural_similarity_index_measure(
        ours, theirs, data_range=255.0, reduction="none", return_full_image=True
    )
    expected = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(frames, reference).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_flat_bright_frames_one_level_apart_follow_the_luminance_term():
    # Here float32 would be wrong by more than 1e-4; with no variance only C1 and the means remain.
    white, almost = (np.full((1, 16, 16, 3), level, np.uint8) for level in (255, 254))
    expected = (2 * 255 * 254 + 2.55**2) / (255**2 + 254**2 + 2.55**2)
    assert ssim(white, almost).item() == pytest.approx(expected, abs=1e-10)


def test_identical_frames_give_exactly_one_and_an_inverted_pattern_is_negative():
    _, reference = pair()
    assert ssim(reference, reference).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert ssim(255 - reference, reference).max().item() < 0


def test_a_frame_of_eleven_pixels_is_a_single_window():
    frames, reference = pair(frames=1, height=11, width=11)
    assert ssim(frames, reference).tolist() == pytest.approx(definition(frames, reference))


@pytest.mark.parametrize(("height", "width"), [(10, 32), (32, 10)])
def test_a_frame_too_small_for_the_window_is_refused(height, width):
    with pytest.raises(BadInputError, match=f"11 x 11 pixels, got {height} x {width}.*PSNR"):
        ssim(*pair(height=height, width=width))


def test_differing_shapes_are_refused_naming_both():
    frames, reference = pair()
    with pytest.raises(BadInputError, match=r"\(1, 23, 31, 3\).*\(2, 23, 31, 3\)"):
        ssim(frames[:1], reference)


def test_clips_weigh_the_same_whatever_their_length():
    long, short = pair(frames=3, noise=10), pair(frames=1, noise=60)
    metric = Accumulated("ssim")
    metric.update(*long)
    metric.update(*short)
    expected = (np.mean(definition(*long)) + np.mean(definition(*short))) / 2
    assert metric.compute().item() == pytest.approx(expected)
    assert metric.derived("ssim_worst_frame").item() == pytest.approx(definition(*short)[0])


def test_a_long_clip_needs_no_larger_tensors_than_a_short_one():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.numel())
            return result

    with Largest() as short:
        ssim(*pair(frames=2))
    with Largest() as long:
        ssim(*pair(frames=12))
    assert long.numel == short.numel > 0
