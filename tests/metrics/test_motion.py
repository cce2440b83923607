"""DIS flow and the stand-ins built on it, on motion that is known."""

import numpy as np
import pytest
import torch

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.flow import flow_between, grey, visible, warp
from vidsparse.metrics.motion import (
    _fastest,
    dynamic_degree,
    motion_smoothness,
)


def test_the_flow_of_a_sliding_picture_is_its_speed(make_scene):
    clip = make_scene(speed=3).dense
    flow = flow_between(grey(clip[0]), grey(clip[1]))
    assert np.median(flow.reshape(-1, 2), axis=0) == pytest.approx([-3, 0], abs=0.1)


def test_warping_along_a_flow_brings_the_next_frame_back(make_scene):
    clip = make_scene(speed=3).dense
    flow = flow_between(grey(clip[0]), grey(clip[1]))
    gap = np.abs(warp(clip[1], flow).astype(int) - clip[0])[8:-8, 8:-8].mean()
    assert gap < 4 < np.abs(clip[1].astype(int) - clip[0]).mean()


def test_a_flow_is_trusted_where_it_stays_inside_and_leads_back():
    there = np.zeros((32, 32, 2), np.float32)
    there[..., 0] = 4
    assert visible(there, -there)[:, :28].all()
    assert not visible(there, -there)[:, 28:].any()
    assert not visible(there, there).any()


def test_smoothness_is_one_when_frozen_and_nearly_one_on_steady_motion(scene):
    frozen, steady = motion_smoothness(scene.frozen()), motion_smoothness(scene.dense)
    assert frozen.tolist() == [1.0] * 4
    assert 0.98 < steady.mean() < 1


def test_smoothness_orders_known_damage(scene):
    """As METRICS says: flicker, noise and jitter lower it, blur raises it above dense's own."""
    value = {
        damage: motion_smoothness(getattr(scene, damage)()).mean().item()
        for damage in ("blur", "noise", "flicker", "jitter")
    }
    dense = motion_smoothness(scene.dense).mean().item()
    assert value["blur"] > dense > value["noise"] > value["flicker"] > value["jitter"]


def test_an_even_number_of_frames_leaves_the_last_one_out(scene):
    assert torch.equal(motion_smoothness(scene.dense[:8]), motion_smoothness(scene.dense[:7]))


def test_dynamic_degree_is_the_speed_over_the_threshold_of_vbench(make_scene):
    # 8 fps: every frame; the short side of 128 makes a threshold of 3 pixels
    fast = make_scene(height=128, width=160, speed=6).dense
    assert dynamic_degree(fast, fps=8).item() == pytest.approx(2, rel=0.15)


def test_dynamic_degree_of_still_frames_is_zero(scene):
    assert dynamic_degree(scene.frozen()).item() == 0


def test_only_the_fastest_twentieth_of_a_picture_counts():
    flow = np.zeros((40, 50, 2), np.float32)
    flow[:2, :, 0], flow[:2, :, 1] = 3, -4  # 100 of 2000 pixels, 5 long
    assert _fastest(flow) == 5
    flow[0] = 0
    assert _fastest(flow) == 2.5


def test_a_higher_frame_rate_samples_fewer_frames_and_so_sees_longer_ways(scene):
    once, twice = (dynamic_degree(scene.dense, fps).item() for fps in (8, 16))
    assert twice == pytest.approx(2 * once, rel=0.1)
    assert dynamic_degree(scene.dense, 16) == dynamic_degree(scene.dense[::2], 8)


def test_a_quarter_of_the_samples_decides(make_scene):
    clip = make_scene(frames=16, height=128, width=128, speed=6).dense

    def stopping_after(moving):
        return np.concatenate([clip[:moving], np.repeat(clip[moving - 1][None], 16 - moving, 0)])

    assert dynamic_degree(stopping_after(5), fps=8) > 1  # four moves, of sixteen samples
    assert dynamic_degree(stopping_after(4), fps=8) < 1  # three


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda clip: motion_smoothness(clip[:2]), "motion smoothness needs at least 3 frames"),
        (lambda clip: motion_smoothness(clip[:, :31]), "32 x 32 pixels for optical flow, got 31"),
        (lambda clip: dynamic_degree(clip[:2], 16), "16 fps needs at least 3 frames, got 2"),
        (lambda clip: dynamic_degree(clip, 0), "fps must be above 0, got 0"),
        (lambda clip: dynamic_degree(clip, float("nan")), "fps must be above 0, got nan"),
    ],
)
def test_what_cannot_be_measured_is_refused(scene, call, said):
    with pytest.raises(BadInputError, match=said):
        call(scene.dense)


def test_the_metrics_average_clips(scene):
    smooth, dynamic = (
        Accumulated("proxy/motion_smoothness"),
        Accumulated("proxy/dynamic_degree", fps=8),
    )
    for clip in (scene.frozen(), scene.dense):
        smooth.update(clip)
        dynamic.update(clip)
    expected = (1 + motion_smoothness(scene.dense).mean().item()) / 2
    assert smooth.compute().item() == pytest.approx(expected)
    assert dynamic.compute().item() == pytest.approx(dynamic_degree(scene.dense, 8).item() / 2)
