"""``vidsparse inspect``: its pictures, its numbers, and what it refuses before weights load."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention

from vidsparse.cli import plan_picture
from vidsparse.cli.inspected import Inspector
from vidsparse.cli.plan_picture import EMPTY, KEPT, HeadMap, colour, draw_call
from vidsparse.grid import TokenGrid
from vidsparse.metrics.attention import cosine, relative_l1
from vidsparse.presets import find_preset
from vidsparse.progress import Progress
from vidsparse.sparse_attention import Call, SparseAttention

PROMPT = "a red circle moving right"
FOUR = ["--frames", 9, "--height", 96, "--width", 96, "--steps", 4, "--set", "min_tokens=0"]


@pytest.fixture
def no_weights(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", load)


def test_a_picture_for_each_layer_and_step_and_errors_of_every_sparse_call(cli, tmp_path):
    chosen = ["--layers", "0,5", "--at-steps", "2,3", "--heads", "0,3", "--guidance", 1]
    chosen += ["--set", "density=0.25"]
    code, out, _ = cli("inspect", PROMPT, *FOUR, *chosen, "-o", tmp_path, "--json")
    assert code == 0
    record = json.loads(out)
    assert record == json.loads((tmp_path / "inspect.json").read_text())
    pictures = {(row["layer"], row["step"]): row for row in record["pictures"]}
    assert sorted(pictures) == [(0, 2), (0, 3), (5, 2), (5, 3)]
    names = sorted([*(row["file"] for row in record["pictures"]), "inspect.json"])
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert len(record["calls"]) == 8 * 3  # the first step is dense, there is no guidance
    for call in record["calls"]:
        assert len(call["recall"]) == len(call["density"]) == 4
        assert all(0 < share <= 1 for share in call["recall"])
        assert all(0 <= error < 1 for error in call["relative_l1"])
    for (layer, step), picture in pictures.items():
        assert [head["head"] for head in picture["heads"]] == [0, 3]
        (call,) = [c for c in record["calls"] if (c["layer"], c["step"]) == (layer, step)]
        assert call["sigma"] == picture["sigma"]
        for head in picture["heads"]:
            assert head["density"] == call["density"][head["head"]]
            assert head["recall"] == pytest.approx(call["recall"][head["head"]], abs=0.15)
        with Image.open(tmp_path / picture["file"]) as image:
            assert image.mode == "RGB"
            assert image.width > 3 * plan_picture.PANEL


def test_the_table_has_a_row_for_each_picture(cli, tmp_path):
    command = ["--preset", "svg2", "--layers", 1, "--at-steps", 3, "--guidance", 1]
    code, out, _ = cli("inspect", PROMPT, *FOUR, *command, "-o", tmp_path)
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["1", "3", "0.50"]
    assert "layer01-step003.png, inspect.json" in out


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "8"], "--layers takes 0 to 7 here, got 8"),
        (["--layers", "one"], "--layers takes numbers from 0 with commas between, got 'one'"),
        (["--at-steps", "4"], "--at-steps takes 0 to 3 here, got 4"),
        (["--heads", "-1"], "--heads takes numbers from 0"),
        (["--at-steps", "0"], "keeps steps 0 dense in these layers: steps 1 to 3 are sparse"),
        (["--set", "dense_layers=2", "--layers", "0,1"], "sparse from layer 2 on"),
        (["--density", "1"], "at density 1 is dense"),
        (["--preset", "nope"], "unknown preset 'nope'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_weights_load(cli, tmp_path, arguments, message):
    code, out, err = cli("inspect", PROMPT, *FOUR, *arguments, "-o", tmp_path / "new")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "new").exists()


def test_a_folder_that_was_written_to_is_not_written_over(cli, tmp_path):
    (tmp_path / "inspect.json").write_text("{}")
    code, _, err = cli("inspect", PROMPT, *FOUR, "-o", tmp_path)
    assert code == 2
    assert "inspect.json exists: give --overwrite to replace it, or another with -o" in err
    assert (tmp_path / "inspect.json").read_text() == "{}"


def test_too_few_tokens_are_refused_before_weights_load(cli, tmp_path):
    line = [*FOUR[:-1], "min_tokens=1000"]
    code, _, err = cli("inspect", PROMPT, *line, "-o", tmp_path / "new")
    assert code == 2
    assert "432 tokens are too few to be sparse" in err


def test_a_head_that_the_model_does_not_have_is_refused(cli, tmp_path):
    code, _, err = cli("inspect", PROMPT, *FOUR, "--heads", "4", "-o", tmp_path)
    assert code == 2
    assert "--heads takes 0 to 3 here, got 4" in err


@pytest.mark.parametrize("name", ["balanced", "svg2", "svg2-ear", "radial", "psa", "rectified"])
def test_what_is_measured_is_what_was_computed(name):
    """On all rows, against dense attention of the whole sequence."""
    grid = TokenGrid(3, 12, 16)
    q, k, v = (3 * x for x in torch.randn(3, 1, grid.tokens, 2, 16))
    preset = find_preset(name).override({"min_tokens": 0, "dense_layers": 0})
    attention = SparseAttention(preset)
    inspector = Inspector(layers=[0], steps=[0], heads=[0, 1])
    inspector.meter.rows = grid.tokens
    attention.observers.append(inspector)
    call = Call(grid=grid, layer=0, step=0, progress=Progress.alone(0.7))
    out = attention(q, k, v, call, dense=lambda *_: torch.zeros(0)).transpose(1, 2)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    exact = scaled_dot_product_attention(q, k, v)
    (error,) = inspector.meter.errors.values()
    torch.testing.assert_close(error.relative_l1, relative_l1(out, exact), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(error.cosine, cosine(out, exact), rtol=1e-4, atol=1e-6)
    (seen,) = inspector.seen.values()
    for head, found in zip(seen.maps, seen.heads, strict=True):
        queries = np.diff(head.q_edges)
        share = (head.share * queries[:, None]).sum() / grid.tokens
        assert share == pytest.approx(1, abs=1e-4)
        kept = (head.share * head.keep * queries[:, None]).sum() / grid.tokens
        assert found["recall"] == pytest.approx(kept, abs=1e-4)
        assert found["recall"] == pytest.approx(float(error.recall[0, found["head"]]), abs=1e-4)


def test_blocks_are_drawn_as_large_as_they_are():
    head = HeadMap(
        head=0,
        keep=np.array([[True, False], [False, False]]),
        coarse=np.zeros((2, 2), bool),
        share=np.array([[1.0, 0.0], [0.5, 0.5]]),
        q_edges=np.array([0, 25, 100]),
        kv_edges=np.array([0, 50, 100]),
        caption="",
    )
    image = np.asarray(draw_call("title", "below it", [head]))
    left, top, side = plan_picture.MARGIN + plan_picture.AXIS, 66 + 50, plan_picture.PANEL
    plan = image[top : top + side, left : left + side]
    assert (plan[:90, :180] == KEPT).all()
    assert (plan[90:] == EMPTY).all()
    assert (plan[:, 180:] == EMPTY).all()
    left += side + plan_picture.GAP
    mass = image[top : top + side, left : left + side]
    assert (mass[:90, :180] == plan_picture.COLOURS[-1]).all()
    assert (mass[:90, 180:] == plan_picture.COLOURS[0]).all()


def test_colours_rise_in_brightness_with_the_share():
    light = colour(np.logspace(-4, 0, 50), 1e-4) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()
