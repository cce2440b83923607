"""Temporal flickering against VBench's own arithmetic."""

import itertools

import cv2
import numpy as np
import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.flicker import temporal_flickering


def as_vbench_computes_it(clip):
    changes = [
        np.mean(cv2.absdiff(then.astype(np.float32), now.astype(np.float32)))
        for then, now in itertools.pairwise(clip)
    ]
    return (255.0 - np.mean(changes).item()) / 255.0


@pytest.mark.parametrize("damage", ["noise", "flicker", "jitter", "blur"])
def test_it_equals_vbench(scene, damage):
    clip = getattr(scene, damage)()
    ours = temporal_flickering(clip).mean().item()
    assert ours == pytest.approx(as_vbench_computes_it(clip), abs=1e-6)


def test_black_to_white_scores_zero_so_uint8_never_wraps_around():
    clip = np.zeros((3, 4, 4, 3), np.uint8)
    clip[1] = 255
    assert temporal_flickering(clip).tolist() == [0.0, 0.0]


def test_a_frozen_clip_scores_one_and_so_above_the_dense_one(scene):
    assert temporal_flickering(scene.frozen()).tolist() == [1.0] * 8
    assert temporal_flickering(scene.dense).mean() < 1


def test_a_read_only_map_and_a_tensor_give_the_same(scene, tmp_path, recwarn):
    np.save(tmp_path / "clip.npy", scene.dense)
    mapped = np.load(tmp_path / "clip.npy", mmap_mode="r")
    expected = temporal_flickering(torch.from_numpy(scene.dense))
    assert torch.equal(temporal_flickering(mapped), expected)
    assert not recwarn.list


def test_a_single_frame_is_refused(scene):
    with pytest.raises(BadInputError, match="temporal flickering needs at least 2 frames, got 1"):
        temporal_flickering(scene.dense[:1])


def test_clips_weigh_the_same_whatever_their_length_even_after_a_sync():
    black, blink = np.zeros((5, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    blink[1] = 51
    metric = Accumulated("vbench/temporal_flickering")
    metric.update(black)
    metric.update(blink)
    assert metric.compute().item() == pytest.approx(0.9)  # (1 + 0.8) / 2
    assert metric.lowest().item() == pytest.approx(0.8)
    metric._computed = None
    metric.values, metric.lengths = torch.cat(metric.values), torch.cat(metric.lengths)  # type: ignore[assignment]
    assert metric.compute().item() == pytest.approx(0.9)
