"""What a session remembers and what it counts."""

import pytest
import torch

from vidsparse.state import Memory
from vidsparse.stats import CallKey, Stats


class Took:
    def __init__(self, seconds):
        self.seconds = seconds


def memory(capacity=2):
    return Memory(capacity, nbytes=len)


def test_memory_makes_a_value_once():
    made = []
    store = memory()

    def make():
        made.append(1)
        return "value"

    assert store.get("a", make) == store.get("a", make) == "value"
    assert len(made) == 1


def test_memory_forgets_what_was_used_longest_ago():
    store = memory()
    for key in "abac":  # a was used after b
        store.get(key, lambda key=key: key)
    assert store.get("a", lambda: "anew") == "a"
    assert store.get("b", lambda: "anew") == "anew"
    assert len(store) == 2


def test_memory_counts_its_bytes():
    store = memory()
    for key in ("a", "bb", "ccc"):
        store.get(key, lambda key=key: key)
    assert store.nbytes() == 5
    store.clear()
    assert (store.nbytes(), len(store)) == (0, 0)


@pytest.fixture
def stats():
    """Two steps, two layers: a dense step, then densities of 0.5 and (0.2 and 0.4 by head)."""
    stats = Stats()
    stats.start_generation()
    for layer in (0, 1):
        stats.record(CallKey(0, layer, "cond"), 0.9, torch.ones(1))
    stats.record(CallKey(1, 0, "cond"), 0.4, torch.tensor([0.5]))
    stats.record(CallKey(1, 1, "cond"), 0.4, torch.tensor([0.2, 0.4]))
    return stats


def test_means_are_over_calls_steps_and_layers(stats):
    assert stats.mean_density == pytest.approx((1 + 1 + 0.5 + 0.3) / 4)
    assert stats.step_density == pytest.approx({0: 1.0, 1: 0.4})
    assert stats.layer_density == pytest.approx({0: 0.75, 1: 0.65})
    assert stats.sigmas == {0: 0.9, 1: 0.4}


def test_a_step_counts_as_dense_only_if_every_call_was(stats):
    assert stats.dense_steps_share == 0.5
    stats.record(CallKey(0, 2, "cond"), 0.9, torch.tensor([0.99]))
    assert stats.dense_steps_share == 0


def test_a_sparse_step_that_computes_more_than_all_pairs_is_not_dense(stats):
    stats.record(CallKey(1, 0, "cond"), 0.4, torch.tensor([1.02]))
    stats.record(CallKey(1, 1, "cond"), 0.4, torch.tensor([1.02]))
    assert stats.dense_steps_share == 0.5


def test_a_new_generation_forgets_calls_and_time_but_not_fallbacks(stats):
    stats.time(Took(2.0), Took(2.0))
    stats.fallbacks["too short"] += 1
    stats.start_generation()
    assert (stats.calls, stats.sigmas) == ({}, {})
    assert (stats.attention_seconds, stats.plan_seconds) == (0, 0)
    assert stats.generations == 2
    assert stats.fallbacks.total() == 1


def test_nothing_generated_is_said_and_has_no_mean():
    assert "nothing was generated" in Stats().summary()
    with pytest.raises(RuntimeError, match="nothing was generated"):
        _ = Stats().mean_density


def test_the_summary_names_density_warm_up_fallbacks_time_and_notes(stats):
    assert stats.summary().splitlines() == [
        "mean density 0.700 over 2 steps x 2 layers, 50% of the steps dense",
        "nothing fell back to dense",
    ]
    stats.fallbacks.update({"too short": 3, "a mask": 1})
    stats.time(Took(4.0), Took(1.0))
    stats.notes["a note"] = None
    assert stats.summary().splitlines()[1:] == [
        "sparse attention 4.0 s, 25% of it planning",
        "fell back to dense: too short (3 calls); a mask (1 call)",
        "a note",
    ]
