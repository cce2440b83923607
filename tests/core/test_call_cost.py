"""What a call is predicted to take is what calls took, in benchmarks/results."""

import json
from pathlib import Path

import pytest

from vidsparse.call_cost import OWN, call_cost, untimed
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.presets import PRESETS
from vidsparse.run_time import check_host_memory, predict
from vidsparse.step_time import Shapes

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RECORD = json.loads((RESULTS / "ladder_calls_presets_h200.json").read_text())
DENSE = RECORD["dense"]["wan-14b-720p"]
WAN = Shapes(tokens=75_600, layers=40, heads=40, head_dim=128, linear=14e9 / 40, samples=2)


def measured(name):
    """Shares of a dense call: at density 0, and what density 1 adds."""
    points = [(r["realised"], r["ms"] / DENSE) for r in RECORD["rows"] if r["candidate"] == name]
    apart = points[-1][0] - points[0][0]
    slope = (points[-1][1] - points[0][1]) / apart if apart > 0.01 else measured("random")[1]
    return points[0][1] - slope * points[0][0], slope


def share(cost, density):
    return cost.fixed / DENSE + cost.share(density)


@pytest.mark.parametrize("name", sorted({row["candidate"] for row in RECORD["rows"]}))
def test_every_preset_takes_what_its_calls_took(name):
    start, slope = measured(name)
    cost = call_cost(PRESETS[name], 128)
    error = 0.01 if name in OWN else 0.05
    assert share(cost, 0.25) == pytest.approx(start + slope * 0.25, rel=error)
    assert untimed(PRESETS[name]) == []


def test_the_parts_count_and_not_the_name():
    made = PRESETS["draft"].override({"selector": "refined", "density": 0.2})
    assert share(call_cost(made, 128), 0.2) == share(call_cost(PRESETS["twilight"], 128), 0.2)
    plain = PRESETS["twilight"].override({"selector": "top_k", "density": 0.2})
    assert share(call_cost(plain, 128), 0.2) == share(call_cost(PRESETS["draft"], 128), 0.2)
    judged = PRESETS["draft"].override({"selector": "top_p", "min_similarity": 0.5})
    assert share(call_cost(judged, 128), 0.2) > share(call_cost(PRESETS["draft"], 128), 0.2)


def test_smaller_blocks_cost_more():
    for name in ("draft", "twilight"):
        costs = [share(call_cost(PRESETS[name], block), 0.25) for block in (128, 64)]
        assert costs[0] < costs[1]


def test_parts_that_were_timed_in_no_usual_preset_are_named():
    made = PRESETS["draft"].override({"estimator": "peak", "selector": "top_k"})
    assert untimed(made) == ["estimator=peak"]
    assert untimed(PRESETS["balanced"].override({"order": "raster"})) == []
    assert untimed(PRESETS["re-ttention"]) == ["compensation=residual (fades=False)"]
    found = forecast(made, TokenGrid(21, 45, 80), 20, 40)
    (said,) = [note for note in predict(found, WAN, "h200").notes() if "not timed" in note]
    assert said.startswith("calls with estimator=peak were not timed")


def test_a_run_that_a_session_would_refuse_has_no_time():
    found = forecast(PRESETS["re-ttention"], TokenGrid(21, 45, 80), 20, 40)
    with pytest.raises(ValueError, match=r"31.2 GB in host memory .* most_gigabytes=32"):
        predict(found, WAN, "h200")
    check_host_memory(forecast(PRESETS["balanced"], TokenGrid(21, 45, 80), 20, 40), WAN)
