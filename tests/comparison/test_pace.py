"""The time that is left."""

import pytest

from vidsparse.comparison.pace import Pace


def test_time_left_is_that_of_each_kind_of_work():
    pace = Pace(["dense", "draft", "dense", "draft", "scores"])
    assert pace.left() == 0
    assert pace.left("dense", 0.5, 10.0) == 4 * 20 + 10
    pace.finish("dense", 20.0)
    assert pace.left("draft", 0.5, 5.0) == pytest.approx(20 + 5 + 10 + 15)
    pace.finish("draft", 10.0)
    assert pace.left() == 20 + 10 + 15
    assert pace.left("dense", 0.0, 30.0) == 10 + 15  # slower than thought: never below the rest
    known = Pace(["draft"], {"draft": [4.0, 6.0]})
    assert known.left("draft", 0.0, 0.0) == 5
