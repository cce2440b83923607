"""NSS distance: the fit on known distributions, and what the distance must see."""

import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.natural import _fit, frame_statistics, nss_distance


def test_the_fit_recovers_gaussian_and_laplacian_samples():
    rng = np.random.default_rng(0)
    samples = np.stack([rng.normal(0, 3, 200_000), rng.laplace(0, 3, 200_000)])
    shape, mean, left, right = _fit(samples)
    assert shape == pytest.approx([2, 1], rel=0.02)
    assert mean == pytest.approx([0, 0], abs=0.05)
    assert left == pytest.approx(right, rel=0.02)
    assert left == pytest.approx([3 * 2**0.5, 3], rel=0.03)  # density exp(-(|x| / scale)^shape)


def test_the_fit_sees_which_side_is_wider():
    rng = np.random.default_rng(0)
    halves = np.abs(rng.normal(size=100_000)), -4 * np.abs(rng.normal(size=100_000))
    _, mean, left, right = _fit(np.concatenate(halves)[None])
    assert left == pytest.approx(4 * right, rel=0.02)
    assert mean.item() < 0


def test_a_negative_has_the_same_spread_so_both_sides_count_in_it():
    rng = np.random.default_rng(0)
    skewed = np.clip(20 + 40 * rng.lognormal(0, 0.6, (64, 64, 1)), 0, 255)
    frame = np.repeat(skewed, 3, axis=2).astype(np.uint8)
    positive, negative = frame_statistics(frame), frame_statistics(255 - frame)
    assert negative[:, 1] == pytest.approx(positive[:, 1], rel=1e-3)


def test_flat_frames_have_finite_statistics():
    statistics = frame_statistics(np.full((64, 64, 3), 128, np.uint8))
    assert statistics.shape == (4, 36)
    assert np.isfinite(statistics).all()


def test_equal_clips_are_at_distance_zero_and_order_does_not_matter(scene):
    assert nss_distance(scene.dense, scene.dense).item() == 0
    blurred = scene.blur()
    there, back = nss_distance(blurred, scene.dense), nss_distance(scene.dense, blurred)
    assert there.item() == pytest.approx(back.item())


def test_blur_and_noise_are_far_and_harmless_changes_are_near(scene):
    near = [nss_distance(clip, scene.dense).item() for clip in (scene.flicker(), scene.frozen())]
    far = [nss_distance(clip, scene.dense).item() for clip in (scene.blur(), scene.noise())]
    assert min(far) > 3 * max(near)


def test_more_blur_is_farther(scene):
    distances = [nss_distance(scene.blur(sigma), scene.dense).item() for sigma in (0.5, 1, 2)]
    assert distances == sorted(distances)


def test_small_frames_and_other_sizes_are_refused_but_not_other_lengths(scene):
    with pytest.raises(BadInputError, match="64 x 64 pixels, got 63 x 128"):
        nss_distance(scene.dense[:, :63], scene.dense[:, :63])
    with pytest.raises(BadInputError, match="differ in size"):
        nss_distance(scene.dense[:, :80], scene.dense)
    assert nss_distance(scene.dense[:5], scene.dense).item() < 3


def test_the_metric_averages_clips(scene):
    metric = Accumulated("proxy/nss_distance")
    metric.update(scene.dense, scene.dense)
    metric.update(scene.blur(), scene.dense)
    assert metric.compute().item() == pytest.approx(
        nss_distance(scene.blur(), scene.dense).item() / 2
    )
