"""What a session did, told to a program and in one line."""

import json

import torch

from vidsparse.stats import CallKey, Stats
from vidsparse.stats_record import describe_stats, stats_to_dict


def stats():
    found = Stats(generations=1)
    for step, sigma in ((0, 1.0), (1, 0.5)):
        for layer in range(3):
            for branch in ("cond", "uncond"):
                density = torch.ones(1) if step == 0 else torch.tensor([0.25, 0.5, 0.75])
                found.record(CallKey(step, layer, branch), sigma, density)
    found.loads[CallKey(1, 2, "cond")] = torch.tensor(1.5)
    found.engines["cpu"] += 6
    found.fallbacks["too short"] += 2
    found.notes["a note"] = None
    return found


def test_everything_is_told_and_survives_json():
    found = stats_to_dict(stats())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["mean_density"], found["dense_steps_share"]) == (0.75, 0.5)
    assert found["steps"] == [
        {"step": 0, "sigma": 1.0, "density": 1.0}, {"step": 1, "sigma": 0.5, "density": 0.5}
    ]  # fmt: skip
    assert found["layers"] == [{"layer": layer, "density": 0.75} for layer in range(3)]
    assert (found["engines"], found["fallbacks"]) == ({"cpu": 6}, {"too short": 2})
    assert found["notes"] == ["a note"]
    assert len(found["calls"]) == 12
    last = next(c for c in found["calls"] if "load" in c)
    assert (last["step"], last["layer"], last["branch"], last["load"]) == (1, 2, "cond", 1.5)
    assert last["head_density"] == [0.25, 0.5, 0.75]


def test_before_the_first_generation_nothing_is_made_up():
    found = stats_to_dict(Stats())
    assert (found["mean_density"], found["dense_steps_share"]) == (None, None)
    assert (found["steps"], found["layers"], found["calls"]) == ([], [], [])


def test_one_line_holds_no_tensor():
    line = describe_stats(stats())
    assert line == (
        "Stats(generations=1, calls=12, mean_density=0.750, engines={'cpu': 6}, "
        "fallbacks={'too short': 2})"
    )
    assert "tensor" not in line


def test_stats_say_so_themselves():
    found = stats()
    assert found.to_dict() == stats_to_dict(found) == json.loads(found.to_json())
    assert "tensor" not in repr(found)
    assert len(repr(found)) < 300
