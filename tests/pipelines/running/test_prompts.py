"""The language of the tiny pipeline, held against its tokenizer."""

import json
import re

import pytest

from vidsparse.pipelines.running.prompts import (
    GRAMMAR,
    TOKENIZER,
    explain_unknown_words,
    random_prompt,
    read_parts,
)

SEEDS = range(500)

# Written by hand from what the model was trained on, less what it draws badly.
PROMPT = re.compile(
    r"an? (?:(?:large|small) )?"
    r"(?P<colour>red|orange|yellow|green|cyan|blue|purple|pink|white) "
    r"(?P<shape>circle|square|triangle|star|cross|moon) "
    r"(?P<motion>moving left|moving right|moving up|moving down|bouncing|circling|growing|"
    r"shrinking|swaying) "
    r"over an? (?:(?P<tone>dark|light) )?"
    r"(?P<ground>red|orange|yellow|green|cyan|blue|purple|pink|gray) "
    r"(?P<pattern>plain|striped|checkered|dotted|wavy|cloudy) background"
    r"(?: (?P<camera>scrolling (?:left|right|up|down)|zooming (?:in|out)|rotating))?"
)


def parsed():
    return [match.groupdict() for s in SEEDS if (match := PROMPT.fullmatch(random_prompt(s)))]


def vocabulary():
    return set(json.loads(TOKENIZER.read_text())["model"]["vocab"])


def test_every_random_prompt_is_one_sprite_that_the_model_draws_well():
    assert len(parsed()) == len(SEEDS)


def test_random_prompts_use_only_words_of_the_vocabulary():
    words = {word for seed in SEEDS for word in random_prompt(seed).split()}
    assert words <= vocabulary()


def test_a_sprite_never_has_the_colour_of_its_background():
    assert not [p for p in parsed() if p["colour"] == p["ground"]]


def test_a_white_sprite_never_stands_on_a_light_background():
    assert not [p for p in parsed() if p["colour"] == "white" and p["tone"] == "light"]


def test_a_plain_background_has_no_camera_move():
    assert not [p for p in parsed() if p["pattern"] == "plain" and p["camera"]]


def test_prompts_cover_every_choice():
    kinds = {name: {p[name] for p in parsed()} for name in parsed()[0]}
    assert {name: len(values) for name, values in kinds.items()} == {
        "colour": 9,
        "shape": 6,
        "motion": 9,
        "tone": 3,
        "ground": 9,
        "pattern": 6,
        "camera": 8,
    }


def test_a_seed_always_gives_the_same_prompt_and_another_seed_another():
    assert random_prompt(3) == random_prompt(3)
    assert len({random_prompt(seed) for seed in SEEDS}) > 0.95 * len(SEEDS)


def test_articles_follow_the_sound():
    prompts = [random_prompt(seed) for seed in SEEDS]
    assert any("an orange" in prompt for prompt in prompts)
    assert not [p for p in prompts if re.search(r"\ba [aeiou]|\ban [^aeiou]", p)]


def test_unknown_words_are_named_once_in_order_as_the_user_wrote_them():
    assert explain_unknown_words("a Zebra and a red dog chase a Zebra") == ["Zebra", "dog", "chase"]


@pytest.mark.parametrize("prompt", ["", "a red circle", "A RED Circle, moving LEFT."])
def test_case_and_punctuation_that_the_tokenizer_knows_are_not_named(prompt):
    assert explain_unknown_words(prompt) == []


def test_unknown_words_are_those_outside_the_vocabulary_file():
    words = ["a", "blue", "moon", "rising", "over", "the", "sea", ",", "in", "front", "of", "it"]
    assert explain_unknown_words(" ".join(words)) == [w for w in words if w not in vocabulary()]
    assert "sea" in explain_unknown_words(" ".join(words))


def test_the_grammar_names_no_word_that_the_model_does_not_know():
    terminals = " ".join(re.findall(r'"([^"]*)"', GRAMMAR))
    assert len(terminals.split()) > 100
    assert explain_unknown_words(terminals) == []


def test_the_grammar_defines_every_part_it_uses_and_fits_a_terminal():
    rules = {line.split(" =")[0].strip() for line in GRAMMAR.splitlines() if " = " in line}
    used = set(re.findall(r"\b[a-z]+\b", re.sub(r'"[^"]*"', "", GRAMMAR)))
    assert used == rules
    assert max(map(len, GRAMMAR.splitlines())) <= 88


def test_the_examples_of_the_model_card_use_only_known_words():
    card = (TOKENIZER.parent.parent / "README.md").read_text()
    examples = re.findall(r'^- "(.*)"$', card, re.MULTILINE)
    assert len(examples) >= 5
    assert [explain_unknown_words(example) for example in examples] == [[]] * len(examples)


def test_the_parts_of_a_random_prompt_are_what_it_was_drawn_from():
    names = {"moving left": "left", "moving right": "right", "moving up": "up",
             "moving down": "down", "bouncing": "bounce", "circling": "circle",
             "growing": "grow", "shrinking": "shrink", "swaying": "sway",
             "scrolling left": "left", "scrolling right": "right", "scrolling up": "up",
             "scrolling down": "down", "zooming in": "in",
             "zooming out": "out", "rotating": "rotate"}  # fmt: skip
    for seed, found in zip(SEEDS, parsed(), strict=True):
        expected = {part: names.get(word, word) for part, word in found.items() if word}
        assert read_parts(random_prompt(seed)) == {"sprites": "1", **expected}


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a RED  ball", {"sprites": "1", "shape": "circle", "colour": "red"}),
        (
            "an orange donut getting smaller in front of a light grey marbled backdrop rotating",
            {"sprites": "1", "shape": "ring", "colour": "orange", "motion": "shrink",
             "tone": "light", "ground": "gray", "pattern": "cloudy", "camera": "rotate"},
        ),
        (
            "a small striped white star moving to the left on a plain teal background moving left",
            {"sprites": "1", "shape": "star", "colour": "white", "motion": "left",
             "ground": "cyan", "pattern": "plain"},
        ),
        (
            "a red ring, a blue box rising and a pink moon over a green and gray wavy background",
            {"sprites": "3", "pattern": "wavy"},
        ),
        ("a red ring and a blue box on a dark green background",
         {"sprites": "2", "tone": "dark", "ground": "green"}),
        ("a red ring on a dotted blue striped background",
         {"sprites": "1", "shape": "ring", "colour": "red", "ground": "blue"}),
    ],
)  # fmt: skip
def test_what_is_not_said_or_cannot_be_told_is_not_asked_for(prompt, parts):
    assert read_parts(prompt) == parts


@pytest.mark.parametrize(
    "prompt",
    ["", "a dog on a beach", "red circle", "a circle", "a red circle over a background",
     "a red circle over a blue background at night", "a gray circle", "a redcircle"],
)  # fmt: skip
def test_another_language_has_no_parts(prompt):
    assert read_parts(prompt) is None
