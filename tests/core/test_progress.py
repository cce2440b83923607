"""Progress: where in its run a step stands, in shares of the whole way."""

import pytest

from vidsparse.progress import UNKNOWN, Progress


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_a_run_from_pure_noise_is_cut_into_equal_shares(steps):
    run = Progress.first(steps)
    assert (run.before, run.bounds[-1]) == (0.0, 1.0)
    shares = [step.after - step.before for step in run.steps()]
    assert shares == pytest.approx([1 / steps] * steps)
    assert [step.at for step in run.steps()] == list(range(steps))


def test_a_run_that_starts_on_the_way_has_the_rest_of_it():
    run = Progress.first(3, start=0.4)
    assert run.bounds == pytest.approx((0.4, 0.6, 0.8, 1.0))
    assert run.run is run


def test_each_step_knows_the_next_until_the_last():
    first = Progress.first(3)
    second = first.next
    assert second is not None
    assert second == Progress(first.bounds, 1)
    assert second.before == first.after
    last = second.next
    assert last is not None
    assert last.after == 1.0
    assert last.next is None


def test_a_call_of_which_no_steps_are_known_stands_for_a_run_of_usual_length():
    alone = Progress.alone(0.3)
    assert alone.is_alone
    assert alone.before == alone.after == 0.3
    assert alone.next is None
    assert alone.run == Progress.first(UNKNOWN)
    assert not Progress.first(1).is_alone
