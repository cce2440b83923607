"""PSNR against hand-worked numbers and a naive loop."""

import math

import numpy as np
import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.psnr import psnr, squared_error


def noisy_pair(frames=3, height=12, width=9, seed=0):
    rng = np.random.default_rng(seed)
    shape = (frames, height, width, 3)
    reference = rng.integers(0, 256, shape, dtype=np.uint8)
    noise = rng.normal(0, 20, shape) * np.arange(1, frames + 1).reshape(-1, 1, 1, 1)
    return np.clip(reference + noise, 0, 255).astype(np.uint8), reference


def naive_psnr(frames, reference):
    """One Python number at a time."""
    values = []
    for ours, theirs in zip(frames, reference, strict=True):
        pairs = zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True)
        squares = [(a - b) ** 2 for a, b in pairs]
        values.append(20 * math.log10(255 / math.sqrt(sum(squares) / len(squares))))
    return values


def constant(value, frames=1):
    return np.full((frames, 4, 6, 3), value, np.uint8)


def test_an_error_of_ten_everywhere_is_28_13_db():
    # 20 log10(255 / 10)
    assert psnr(constant(90), constant(100)).tolist() == pytest.approx([28.1308036], abs=1e-7)


def test_black_against_white_is_0_db_so_uint8_never_wraps_around():
    assert psnr(constant(0), constant(255)).tolist() == [0.0]


def test_each_frame_equals_the_naive_loop():
    frames, reference = noisy_pair()
    assert psnr(frames, reference).tolist() == pytest.approx(naive_psnr(frames, reference))


def test_tensors_and_arrays_give_the_same():
    frames, reference = noisy_pair()
    mixed = psnr(torch.from_numpy(frames), reference)
    assert torch.equal(mixed, psnr(frames, reference))


def test_a_read_only_memory_map_is_read_without_a_warning(tmp_path, recwarn):
    frames, reference = noisy_pair()
    np.save(tmp_path / "clip.npy", frames)
    mapped = np.load(tmp_path / "clip.npy", mmap_mode="r")
    assert torch.equal(psnr(mapped, reference), psnr(frames, reference))
    assert not recwarn.list


def test_the_error_of_a_large_frame_does_not_overflow():
    black = np.zeros((1, 720, 1280, 3), np.uint8)
    assert squared_error(black, black + np.uint8(255)).tolist() == [255.0**2]


def test_an_identical_frame_is_infinite_and_counted_and_the_mean_is_over_the_others():
    frames, reference = noisy_pair()
    frames[1] = reference[1]
    metric = Accumulated("psnr")
    metric.update(frames, reference)
    first, second, third = psnr(frames, reference).tolist()
    assert second == math.inf
    assert metric.identical() == 1
    assert metric.compute().item() == pytest.approx((first + third) / 2)


def test_a_clip_of_identical_frames_has_an_infinite_mean():
    metric = Accumulated("psnr")
    metric.update(constant(7, frames=2), constant(7, frames=2))
    assert metric.compute().item() == math.inf
    assert metric.derived("psnr_pooled").item() == math.inf
    assert metric.identical() == 2


def test_clips_weigh_the_same_whatever_their_length():
    metric = Accumulated("psnr")
    metric.update(constant(90, frames=5), constant(100, frames=5))
    metric.update(constant(0), constant(255))
    assert metric.compute().item() == pytest.approx(28.1308036 / 2)


def test_pooled_averages_the_error_of_all_frames_before_the_logarithm():
    metric = Accumulated("psnr")
    metric.update(constant(98, frames=3), constant(100, frames=3))
    metric.update(constant(90), constant(100))
    assert metric.derived("psnr_pooled").item() == pytest.approx(
        10 * math.log10(255**2 / 28)
    )  # (3 * 4 + 100) / 4


def test_the_worst_frame_is_found_in_any_clip():
    metric = Accumulated("psnr")
    metric.update(*noisy_pair(seed=1))
    metric.update(*noisy_pair(seed=2))
    assert metric.derived("psnr_worst_frame").item() == pytest.approx(
        min(naive_psnr(*noisy_pair(seed=1)) + naive_psnr(*noisy_pair(seed=2)))
    )


def test_the_error_of_every_frame_is_kept_until_reset():
    metric = Accumulated("psnr")
    metric.update(*noisy_pair(frames=2))
    metric.update(*noisy_pair(frames=3))
    assert [len(mse) for mse in metric.values] == [2, 3]
    metric.reset()
    assert metric.values == []


def test_states_gathered_from_other_processes_still_know_their_clips():
    metric = Accumulated("psnr")
    metric.update(constant(90, frames=5), constant(100, frames=5))
    metric.update(constant(0), constant(255))
    before = metric.compute()
    metric._computed = None
    metric.values, metric.lengths = torch.cat(metric.values), torch.cat(metric.lengths)  # type: ignore[assignment]
    assert torch.equal(metric.compute(), before)


def test_differing_shapes_are_refused_naming_both():
    with pytest.raises(BadInputError, match=r"\(2, 4, 6, 3\).*\(3, 4, 6, 3\).*one length"):
        psnr(constant(0, frames=2), constant(0, frames=3))


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (np.zeros((2, 4, 6, 3), np.float32), "float32.*to_uint8"),
        (torch.zeros(2, 4, 6, 3), "float32.*to_uint8"),
        (np.zeros((1, 2, 4, 6, 3), np.uint8), r"\(1, 2, 4, 6, 3\).*batch"),
        (np.zeros((2, 3, 4, 6), np.uint8), r"\(2, 3, 4, 6\).*colours last"),
        (np.zeros((0, 4, 6, 3), np.uint8), r"no empty side, got \(0, 4, 6, 3\)"),
        ([constant(0)[0]], "list.*stack"),
    ],
)
def test_anything_but_raw_frames_is_refused_with_a_way_out(clip, said):
    with pytest.raises(BadInputError, match=said):
        psnr(constant(0, frames=2), clip)
    with pytest.raises(BadInputError, match=said):
        psnr(clip, constant(0, frames=2))
