"""Motion against dense's: what each stand-in must see, and what it must not."""

import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.accumulated import Accumulated
from vidsparse.metrics.warp import flow_difference, warp_error


def test_equal_clips_differ_by_no_flow(scene):
    assert flow_difference(scene.dense, scene.dense).tolist() == [0.0] * 8


def test_a_frozen_clip_differs_by_the_speed_of_the_reference(scene):
    assert flow_difference(scene.frozen(), scene.dense).mean().item() == pytest.approx(2, rel=0.1)


def test_flow_difference_orders_known_damage(scene):
    value = {
        damage: flow_difference(getattr(scene, damage)(), scene.dense).mean().item()
        for damage in ("blur", "flicker", "jitter", "frozen")
    }
    harmless = flow_difference(np.roll(scene.dense, 1, axis=2), scene.dense).mean().item()
    assert max(value["blur"], value["flicker"], harmless) < 0.3
    assert value["jitter"] > value["frozen"] > 1.5


def test_warp_error_of_a_known_flicker_is_its_square(make_scene):
    # 20 levels up, 20 down: consecutive frames are 40 apart, (40 / 255)^2 = 24.6 thousandths
    scene = make_scene()
    errors = warp_error(scene.flicker(20), scene.dense)
    assert errors.mean().item() == pytest.approx(1e3 * (40 / 255) ** 2, rel=0.1)


def test_warp_error_orders_known_damage(scene):
    """A blur lowers it below dense's own value; noise, flicker and lost motion raise it."""
    own = warp_error(scene.dense, scene.dense).mean().item()
    value = {
        damage: warp_error(getattr(scene, damage)(), scene.dense).mean().item()
        for damage in ("blur", "noise", "flicker", "frozen")
    }
    assert value["blur"] < own < value["noise"] < value["flicker"] < value["frozen"]


def test_pixels_that_leave_the_frame_do_not_count(make_scene):
    fast = make_scene(speed=12)
    assert warp_error(fast.pixels(fast.exact), fast.pixels(fast.exact)).max() < 1


def test_a_clip_that_is_too_short_or_too_small_is_refused(scene):
    for measure in (flow_difference, warp_error):
        with pytest.raises(BadInputError, match="needs at least 2 frames, got 1"):
            measure(scene.dense[:1], scene.dense[:1])
        with pytest.raises(BadInputError, match="32 x 32 pixels for optical flow, got 96 x 20"):
            measure(scene.dense[:, :, :20], scene.dense[:, :, :20])
        with pytest.raises(BadInputError, match="differ in shape"):
            measure(scene.dense[:3], scene.dense)


def test_the_metrics_average_pairs_then_clips(scene):
    flows, warps = Accumulated("proxy/flow_difference"), Accumulated("proxy/warp_error")
    for metric in (flows, warps):
        metric.update(scene.frozen(), scene.dense)
        metric.update(scene.dense[:3], scene.dense[:3])
    expected = flow_difference(scene.frozen(), scene.dense).mean().item() / 2
    assert flows.compute().item() == pytest.approx(expected)
    own = warp_error(scene.dense[:3], scene.dense[:3]).mean().item()
    frozen = warp_error(scene.frozen(), scene.dense).mean().item()
    assert warps.compute().item() == pytest.approx((own + frozen) / 2)
