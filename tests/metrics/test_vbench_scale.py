"""VBench's scale: its published constants, and what one more point of a dimension is worth."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.vbench_scale import DIMENSIONS, normalize, vbench_quality, vbench_total

LOWEST = {name: facts.low for name, facts in DIMENSIONS.items()}
HIGHEST = {name: facts.high for name, facts in DIMENSIONS.items()}


def test_the_published_extremes_score_zero_and_one():
    assert vbench_total(LOWEST) == pytest.approx(0)
    assert vbench_total(HIGHEST) == pytest.approx(1)
    assert vbench_quality(HIGHEST) == pytest.approx(1)


@pytest.mark.parametrize(
    ("dimension", "slope"),
    [
        ("subject_consistency", 0.144),
        ("background_consistency", 0.167),
        ("temporal_flickering", 0.332),
        ("motion_smoothness", 0.422),
        ("dynamic_degree", 0.062),
        ("aesthetic_quality", 0.123),
        ("imaging_quality", 0.123),
        ("human_action", 0.022),
        ("scene", 0.027),
        ("appearance_style", 0.078),
        ("temporal_style", 0.061),
        ("overall_consistency", 0.061),
    ],
)
def test_a_point_of_each_dimension_is_worth_what_it_is_at_vbench(dimension, slope):
    """From (4 * weight / 6.5 or 1 / 9) / 5 / (max - min) of its scripts/constant.py."""
    raised = HIGHEST | {dimension: HIGHEST[dimension] - 0.01}
    assert (1 - vbench_total(raised)) * 100 == pytest.approx(slope, abs=6e-4)


def test_nine_semantic_dimensions_and_seven_of_quality():
    assert [facts.quality for facts in DIMENSIONS.values()].count(False) == 9
    assert sum(facts.weight for facts in DIMENSIONS.values() if facts.quality) == 6.5


def test_a_raw_zero_is_far_below_zero_and_not_clipped():
    assert normalize("temporal_flickering", 0) == pytest.approx(-1.70, abs=0.005)


def test_a_partial_set_has_no_total_and_the_error_names_what_is_missing():
    partial = {name: HIGHEST[name] for name in DIMENSIONS if name not in {"scene", "color"}}
    with pytest.raises(BadInputError, match=r"all 16 dimensions, missing: color, scene: report"):
        vbench_total(partial)
    assert vbench_quality(partial) == pytest.approx(1)
    del partial["imaging_quality"]
    with pytest.raises(BadInputError, match="quality score is missing: imaging_quality"):
        vbench_quality(partial)


def test_a_percentage_is_refused():
    with pytest.raises(BadInputError, match=r"imaging_quality lies between 0 and 1, got 66\.76"):
        vbench_total(HIGHEST | {"imaging_quality": 66.76})


def test_an_unknown_dimension_is_refused():
    with pytest.raises(BadInputError, match="no dimension sharpness: choose from subject"):
        normalize("sharpness", 0.5)
