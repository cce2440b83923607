"""Presets and how their parameters are changed by name."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.parameters import suggest
from vidsparse.policies.value_aware import ValueAware
from vidsparse.presets import PRESETS, find_preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_found_by_its_name_and_says_what_it_is(name):
    preset = find_preset(name)
    assert preset.name == name
    assert preset.summary
    assert preset.source


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_can_be_given_back_as_text(name):
    preset = PRESETS[name]
    for key, value in preset.parameters().items():
        assert preset.override({key: str(value)}).parameters() == preset.parameters(), key


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("decay", "0.4", 0.4),
        ("first_frame", "off", False),
        ("first_frame", "True", True),
        ("density", "0.5", 0.5),
        ("density", "none", None),
        ("block", "128", 128),
        ("warmup", "0.1", 0.1),
        ("dense_layers", "3", 3),
        ("min_tokens", "0", 0),
    ],
)
def test_text_is_read_as_the_type_of_its_parameter(name, text, value):
    start = PRESETS["radial"].override({"density": 0.6})
    read = start.override({name: text}).parameters()[name]
    assert read == value
    assert type(read) is type(value)


def test_an_override_changes_that_parameter_and_no_other_and_leaves_the_preset_alone():
    radial = PRESETS["radial"]
    before = radial.parameters()
    assert radial.override({"overlap": 0.5}).parameters() == before | {"overlap": 0.5}
    assert radial.parameters() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dekay": 1}, "preset 'radial' has no parameter 'dekay': did you mean decay"),
        ({"seed": 1}, "preset 'radial' has no parameter 'seed': .*there is .*density"),
        ({"decay": "wide"}, "decay takes a number, got 'wide'"),
        ({"block": "64.5"}, "block takes a whole number, got '64.5'"),
        ({"first_frame": "maybe"}, "first_frame takes true or false, got 'maybe'"),
        (
            {"compensation": "some"},
            "unknown compensation 'some': .*there is none, rescale, centroid, levels, residual",
        ),
        ({"density": "1.5"}, r"density must be in \(0, 1\], got 1.5"),
        ({"density": 0}, r"density must be in \(0, 1\], got 0"),
        ({"decay": 0.3, "density": 0.3}, "decay does nothing .*: the density sets the width"),
        ({"min_tokens": -1}, "min_tokens must be at least 0"),
        ({"warmup": -1}, "warmup is a share of the run"),
        ({"dense_above": 0.9}, "dense_above is no parameter any more: give warmup, the share"),
        ({"full_below": "0.5"}, "full_below is no parameter any more: give ramp_until, the share"),
        ({"selector": "top_k", "density": "none"}, "only ranks blocks"),
    ],
)
def test_a_wrong_parameter_is_named_with_a_way_out(changes, message):
    with pytest.raises(BadInputError, match=message):
        PRESETS["radial"].override(changes)


@pytest.mark.parametrize(("name", "near"), [("radail", "radial"), ("balance", "balanced")])
def test_an_unknown_preset_is_answered_with_near_matches_and_the_list(name, near):
    with pytest.raises(
        BadInputError, match=f"unknown preset '{name}': did you mean {near}"
    ) as error:
        find_preset(name)
    assert all(known in str(error.value) for known in PRESETS)


def test_nothing_near_means_no_guess():
    assert suggest("zzz", ["radial", "draft"]) == "there is radial, draft"


def test_a_parameter_changes_the_alternatives_that_have_it_too():
    policy = PRESETS["sparse-vdit"].override({"estimator": "band", "density": 0.3}).policy
    assert len(policy.candidates) == 5
    chosen = PRESETS["svg"].override({"estimator": "value_aware", "selector": "budget", "parts": 2})
    assert {each.estimator for each in chosen.policy.candidates} == {ValueAware(parts=2)}
    policy = PRESETS["svg"].override({"estimator": "pooled", "selector": "top_k"}).policy
    assert len({candidate.estimator for candidate in policy.candidates}) == 1


@pytest.mark.parametrize(("name", "changes"), [("draft", {"order": "hilbert"}), ("svg2", {"p": 1})])
def test_parts_can_be_exchanged_by_name(name, changes):
    changed = PRESETS[name].override(changes)
    assert changed.name == name
    assert changed.policy != PRESETS[name].policy
