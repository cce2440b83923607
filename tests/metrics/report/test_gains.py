"""What is said where nothing was gained, and how many tokens would be needed."""

import pytest

from vidsparse.metrics.latency import Stages, tokens_to_gain
from vidsparse.metrics.report import words


@pytest.fixture
def results(make_results, tmp_path):
    """Of one preset on one clip, 1.00x as fast as dense; planning eats what attention gains."""
    found = make_results(tmp_path)
    found.clips = [clip for clip in found.clips if clip.preset == found.summary[0].preset][:1]
    found.summary = found.summary[:1]
    found.summary[0].speedup.median = 1.0
    found.summary[0].timing = []
    found.clips[0].dense_time = Stages(total=10, attention=3)
    found.clips[0].time = Stages(total=10, attention=1, planning=2)
    return found


def test_the_headline_says_that_nothing_was_gained_and_a_line_how_many_tokens_it_takes(results):
    name, tokens = results.summary[0].preset, results.video.tokens
    assert words.headline(results).startswith(
        f"Nothing gained at {tokens:,} tokens: {name} is 1.00x as fast as dense at "
    )
    needed = tokens_to_gain(results.clips[0].dense_time, results.clips[0].time, tokens, 1.1)
    assert needed is not None
    assert needed == pytest.approx(tokens * (1.1 * 2 + 0.1 * 7) / (3 - 1.1 * 1))
    (line,) = words.too_short(results)
    assert line.startswith(f"{name} gained nothing at {tokens:,} tokens: by these times it gains")
    assert f"1.1x from about {words._rounded(needed):,} tokens on" in line
    assert line in words.warnings(results)


def test_no_length_helps_where_attention_itself_is_no_faster(results):
    results.clips[0].time = Stages(total=10, attention=3)
    (line,) = words.too_short(results)
    assert line.endswith("hardly faster than dense ones, which no length changes")


def test_of_calls_that_were_all_dense_nothing_is_said_by_their_times(results):
    results.clips[0].time = Stages(total=10, attention=3)
    results.summary[0].mean_density = results.summary[0].dense_steps_share = 1.0
    (line,) = words.too_short(results)
    assert line.endswith("every call was dense")


def test_a_gain_that_other_work_hid_is_said_as_such(results):
    results.clips[0].time = Stages(total=10, attention=1)
    (line,) = words.too_short(results)
    assert line.endswith("by its attention alone it would gain 1.1x: the rest took longer")


def test_of_what_gained_nothing_is_said(results):
    results.summary[0].speedup.median = 1.04
    assert words.too_short(results) == []
    assert words.headline(results).startswith(f"{results.summary[0].preset}: 1.04x as fast as")


def test_the_prediction_holds_where_it_is_made_for():
    dense, sparse = Stages(total=10, attention=3), Stages(total=10.2, attention=1, planning=2.2)
    times = tokens_to_gain(dense, sparse, 1, 1.5)
    assert times is not None
    longer = (x.attention * times**2 + (x.total - x.attention) * times for x in (dense, sparse))
    slow, fast = longer
    assert slow / fast == pytest.approx(1.5)
