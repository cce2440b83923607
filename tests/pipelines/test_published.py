"""What is published for a model is what a session and the command line run there, unless told."""

import dataclasses
import json

import diffusers
import pytest
import torch

import vidsparse
from vidsparse.errors import BadInputError
from vidsparse.pipelines.model import SHIPPED
from vidsparse.pipelines.models import IMAGE, VIDEO
from vidsparse.pipelines.published import LINKED, OF_A_RUN, PUBLISHED, apply, published_for
from vidsparse.pipelines.running.checkpoints import CHECKPOINTS, find_checkpoint
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.policies.orders import Hilbert
from vidsparse.presets import PRESETS

RELEASES = [release for row in VIDEO + IMAGE for release in row.releases]
PAIRS = [(row, release) for row in PUBLISHED for release in row.releases]
IDS = [f"{row.preset}-{release}" for row, release in PAIRS]
OTHERS = {"warmup": 0.01, "ramp_until": 0.9, "p": 0.5, "density": 0.6, "mean_density": 0.7}


def values(preset, names):
    found = preset.parameters()
    return {name: found[name] for name in names}


@pytest.mark.parametrize(("row", "release"), PAIRS, ids=IDS)
def test_every_row_is_taken_as_it_stands(row, release):
    found, said = apply(PRESETS[row.preset], release)
    assert values(found, row.settings) == dict(row.settings)
    assert not found.told
    assert said is not None
    assert said.startswith(f"{row.preset} on {release} runs with ")
    assert said.endswith(f", as its authors publish ({row.source})")
    assert all(f"{name}=" in said for name in row.settings)
    assert apply(found, release) == (found, said)


def test_no_method_has_two_rows_for_a_model_and_every_model_is_in_the_table():
    pairs = [(row.preset, release) for row, release in PAIRS]
    assert len(set(pairs)) == len(pairs)
    has_name = {each.name for each in RELEASES if each.hub is not None} | {SHIPPED}
    published = {release for _, release in pairs}
    assert published | has_name == {each.name for each in RELEASES}


@pytest.mark.parametrize(("row", "release"), PAIRS, ids=IDS)
def test_whatever_a_user_tells_stays_and_takes_what_is_linked_with_it(row, release):
    """Every parameter that takes another value, one at a time."""
    base, tried = PRESETS[row.preset], set()
    for name, usual in base.parameters().items():
        try:
            told = base.override({name: OTHERS.get(name, _other(usual))})
        except BadInputError:
            continue
        tried.add(name)
        found, said = apply(told, release)
        assert getattr_of(found, name) == getattr_of(told, name)
        assert found.told == {name}
        linked = {name}.union(*(group for group in LINKED if name in group))
        linked |= OF_A_RUN if name == "mean_density" else set()
        for other in linked:
            assert getattr_of(found, other) == getattr_of(told, other)
        taken = row.settings.keys() - linked
        assert (said is None) == (not taken)
        assert {other: getattr_of(found, other) for other in taken} == {
            other: row.settings[other] for other in taken
        }
    assert tried >= {"warmup", "ramp_until", "dense_layers", "cooldown"}


def _other(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 7
    return 0.77 if isinstance(value, float) else None


def getattr_of(preset, name):
    return next((getattr(part, name) for part in preset.parts() if hasattr(part, name)), None)


@pytest.mark.parametrize("name", ["balanced", "semantic", "auto", "lite", "random"])
def test_presets_without_a_row_are_left_alone(name):
    assert published_for(name) == []
    for release in {None, *(each.name for each in RELEASES)} - {SHIPPED}:
        assert apply(PRESETS[name], release) == (PRESETS[name], None)


def test_the_shipped_pipeline_is_sparse_where_it_gains_nothing():
    found, said = apply(PRESETS["balanced"], SHIPPED)
    assert found == PRESETS["balanced"].override({"min_tokens": 1_000})
    assert said is None
    assert apply(found, SHIPPED) == (found, None)
    told = PRESETS["balanced"].override({"min_tokens": 7})
    assert apply(told, SHIPPED) == (told, None)
    with vidsparse.sparsify(load_pipeline()) as session:
        assert session.preset.min_tokens == 1_000


def test_a_model_of_which_nothing_is_published_leaves_presets_alone():
    for preset in PRESETS.values():
        assert apply(preset, None) == (preset, None)


@pytest.mark.parametrize(
    "mine",
    [
        PRESETS["svg2"].override({"estimator": "value_aware"}),
        PRESETS["draft"].override({"order": "hilbert"}),
        PRESETS["draft"].override({"selector": "top_k"}),
        dataclasses.replace(
            PRESETS["draft"],
            policy=dataclasses.replace(PRESETS["draft"].policy, order=Hilbert()),
        ),
    ],
)
def test_a_method_of_other_parts_is_none_that_anything_was_published_of(mine):
    assert apply(mine, "HunyuanVideo") == (mine, None)


def test_values_that_were_set_without_override_stay_too():
    mine = dataclasses.replace(
        PRESETS["radial"],
        schedule=dataclasses.replace(PRESETS["radial"].schedule, ramp_until=0.6),
    )
    found, said = apply(mine, "Wan2.2-T2V-A14B")
    assert (found.schedule.warmup, found.schedule.ramp_until) == (0.05, 0.6)
    assert said is not None
    assert "warmup" not in said
    assert found.schedule.dense_layers == 1


def test_what_was_told_is_remembered_and_does_not_make_presets_differ():
    once = PRESETS["radial"].override({"decay": 0.4})
    twice = once.override({"warmup": 0.1})
    assert (once.told, twice.told) == ({"decay"}, {"decay", "warmup"})
    same = PRESETS["radial"].override({"decay": 0.2})
    assert same == PRESETS["radial"]
    assert repr(same) == repr(PRESETS["radial"])
    assert "told" not in same.parameters()
    with pytest.raises(BadInputError, match="no parameter 'told'"):
        same.override({"told": "decay"})


def empty(name, **config):
    with torch.device("meta"):
        return getattr(diffusers, name)(**config)


WAN_I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
COG_5B = {"num_attention_heads": 48, "num_layers": 42}
COSMOS_14B = {"num_attention_heads": 40, "num_layers": 36}
REAL = {  # as their configs on the hub say, where they differ from diffusers' defaults
    "Wan2.1-T2V-14B": ("WanTransformer3DModel", {}, 1),
    SHIPPED: (
        "WanTransformer3DModel",
        {"in_channels": 12, "num_layers": 8, "num_attention_heads": 4, "text_dim": 128},
        1,
    ),
    "Wan2.1-I2V-14B": ("WanTransformer3DModel", WAN_I2V, 1),
    "Wan2.1-T2V-1.3B": (
        "WanTransformer3DModel",
        {"num_layers": 30, "num_attention_heads": 12, "ffn_dim": 8960},
        1,
    ),
    "Wan2.2-T2V-A14B": ("WanTransformer3DModel", {}, 2),
    "Wan2.2-I2V-A14B": ("WanTransformer3DModel", {"in_channels": 36}, 2),
    "Wan2.2-TI2V-5B": (
        "WanTransformer3DModel",
        {
            "num_layers": 30,
            "num_attention_heads": 24,
            "in_channels": 48,
            "out_channels": 48,
            "ffn_dim": 14336,
        },
        1,
    ),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}, 1),
    "CogVideoX-5b": (
        "CogVideoXTransformer3DModel", COG_5B | {"use_rotary_positional_embeddings": True}, 1
    ),
    "CogVideoX1.5-5B": ("CogVideoXTransformer3DModel", COG_5B | {"patch_size_t": 2}, 1),
    "Cosmos-1.0-Diffusion-14B-Text2World": ("CosmosTransformer3DModel", COSMOS_14B, 1),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}, 1),
    "LTX-2": ("LTX2VideoTransformer3DModel", {}, 1),
    "HunyuanVideo-1.5-480p_t2v": ("HunyuanVideo15Transformer3DModel", {"task_type": "t2v"}, 1),
    "mochi-1-preview": ("MochiTransformer3DModel", {}, 1),
    "FLUX.2-dev": ("Flux2Transformer2DModel", {}, 1),
    "FLUX.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}, 1),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}, 1),
}  # fmt: skip
NONE = {
    "first and last frame": (
        "WanTransformer3DModel", WAN_I2V | {"pos_embed_seq_len": 514}, 1
    ),
    "more input channels": ("WanTransformer3DModel", {"in_channels": 52}, 1),
    "HunyuanVideo-I2V": (
        "HunyuanVideoTransformer3DModel", {"image_condition_type": "token_replace"}, 1
    ),
    "CogVideoX-2B": ("CogVideoXTransformer3DModel", {}, 1),
    "Cosmos 7B": ("CosmosTransformer3DModel", {}, 1),
    "LTX-Video 13B": (
        "LTXVideoTransformer3DModel", {"num_layers": 48, "attention_head_dim": 128}, 1
    ),
    "LTX-2.3": (
        "LTX2VideoTransformer3DModel", {"gated_attn": True, "cross_attn_mod": True}, 1
    ),
    "FLUX.1-schnell": ("FluxTransformer2DModel", {}, 1),
    "Cosmos-Predict2-14B": (
        "CosmosTransformer3DModel", COSMOS_14B | {"extra_pos_embed_type": None}, 1
    ),
}  # fmt: skip


def row_of(kind):
    return next(row for row in VIDEO + IMAGE if kind in row.transformers)


@pytest.mark.parametrize("name", [each.name for each in RELEASES])
def test_a_release_is_told_by_its_config_and_its_experts(name):
    kind, config, experts = REAL[name]
    transformer = empty(kind, **config)
    assert row_of(kind).release(transformer, experts) == name


@pytest.mark.parametrize("name", NONE)
def test_other_models_of_a_class_are_no_release(name):
    kind, config, experts = NONE[name]
    assert row_of(kind).release(empty(kind, **config), experts) is None


def test_a_transformer_alone_is_a_release_where_it_can_be_but_one():
    row = row_of("WanTransformer3DModel")
    assert row.release(empty("WanTransformer3DModel"), None) is None
    assert row.release(empty("WanTransformer3DModel", **WAN_I2V), None) == "Wan2.1-I2V-14B"


def test_the_shipped_model_and_names_say_which_release_they_are():
    assert find_checkpoint("tiny").release == SHIPPED
    named = {row.release for row in CHECKPOINTS.values()} - {None}
    assert named <= {each.name for each in RELEASES}
    for row in CHECKPOINTS.values():
        assert row.release in (None, SHIPPED) or row.release in str(row.source)


@pytest.fixture
def large_in_layers(wan):
    """Wan pipelines whose configs are those of 14B, a few channels wide: one expert, and two."""

    def build(kind):
        pipe = wan.build[kind]()
        for name in ("transformer", "transformer_2"):
            if pipe.components.get(name) is not None:
                config = dict(pipe.components[name].config)
                config |= {"num_layers": 40, "num_attention_heads": 40, "attention_head_dim": 6}
                torch.manual_seed(0)
                setattr(pipe, name, type(pipe.components[name])(**config).eval())
        return pipe

    return build


EXPERTS = {"one_expert": "Wan2.1-T2V-14B", "two_experts": "Wan2.2-T2V-A14B"}


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_session_runs_what_plan_says_of_the_same_folder(kind, large_in_layers, tmp_path, capsys):
    from vidsparse.cli import run

    pipe, release = large_in_layers(kind), EXPERTS[kind]
    pipe.save_pretrained(tmp_path)
    line = ["plan", "--model", str(tmp_path), "--preset", "radial", "--size", "64x64"]
    assert run([*line, "--frames", "9", "--set", "warmup=0.1", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    with vidsparse.sparsify(pipe, "radial", warmup=0.1) as session:
        assert session.preset.plain_parameters() == planned["parameters"]
        said = f"radial on {release} runs with decay="
        assert [note for note in session.notes if note.startswith(said)] == planned["notes"][:1]
        assert said in session.summary()
        assert session.preset.schedule.dense_layers == 1
        assert (session.preset.schedule.warmup, session.preset.schedule.ramp_until) == (0.1, 0.3)
    assert planned["parameters"]["decay"] == {"one_expert": 0.2, "two_experts": 0.8}[kind]


def test_what_runs_is_what_was_published(large_in_layers, wan):
    """One dense layer of 40, and at 3 steps one that is dense: the switch is at 0.24."""
    pipe = large_in_layers("one_expert")
    with vidsparse.sparsify(pipe, "draft", min_tokens=0, block=16) as session:
        wan.generate(pipe)
    assert session.preset.policy.density == 0.25
    assert session.stats.layer_density[0] == 1
    assert session.stats.layer_density[1] < 1
    assert session.stats.step_density[0] == 1
    assert max(session.stats.step_density[step] for step in (1, 2)) < 1
