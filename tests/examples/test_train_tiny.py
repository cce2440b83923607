"""The training code of the shipped model: every stage for two steps, and what it stands on."""

import json

import numpy as np
import pytest
import torch

from examples.train_tiny import fast_vae, scenes
from examples.train_tiny.__main__ import main
from examples.train_tiny.common import FILE_LIMIT, load_vae, load_weights, save_weights
from examples.train_tiny.dit import Model
from examples.train_tiny.evaluate import _ratio, _rebuilt, _wilson
from examples.train_tiny.optim import Average, Muon
from examples.train_tiny.pools import sprite_places
from examples.train_tiny.render import full_grid, render, window_grid
from vidsparse.metrics.judge import Judge
from vidsparse.pipelines.running.load import load_pipeline
from vidsparse.pipelines.running.prompts import explain_unknown_words


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint after two steps of each stage, and the pipeline made of it."""
    folder = tmp_path_factory.mktemp("trained")
    stages = ["decoder", "judge", "text", "dit", "evaluate"]
    main([str(folder), *stages, "--small", "2", "--export", str(folder / "pipeline")])
    return folder


def test_every_stage_leaves_its_files_all_small_enough_to_travel(trained):
    names = {file.name for file in trained.iterdir()}
    assert {"decoder.safetensors", "judge.safetensors", "model-0.safetensors"} <= names
    assert {"average-1.safetensors", "evaluate.json", "5x32x32.png", "decoder.png"} <= names
    assert max(file.stat().st_size for file in trained.iterdir()) < 1.05 * FILE_LIMIT
    assert (trained / "judge.safetensors").stat().st_size < 0.66e6


def test_the_exported_pipeline_draws_and_holds_the_trained_weights(trained):
    pipe = load_pipeline(trained / "pipeline")
    frames = pipe("a red circle", num_frames=5, height=32, width=32, num_inference_steps=1).frames
    assert frames.shape == (1, 5, 32, 32, 3)
    average = load_weights(trained, "average")
    for module, prefix in ((pipe.transformer, "dit."), (pipe.text_encoder, "encoder.")):
        for name, value in module.named_parameters():
            torch.testing.assert_close(value, average[prefix + name], rtol=1e-3, atol=1e-6)
    decoder = load_weights(trained, "decoder")
    weights = dict(pipe.vae.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in decoder.items())
    shipped = dict(load_vae(None, "cpu").named_parameters())
    assert any(not torch.equal(shipped[name], value) for name, value in decoder.items())


def test_training_goes_on_from_the_checkpoint_and_says_so_in_its_curves(trained, tmp_path):
    before = load_weights(trained, "model")
    assert before.keys() == Model(None).weights().keys()
    resumed = Model(trained).weights()
    assert all(torch.equal(resumed[name], value) for name, value in before.items())
    save_weights(tmp_path, "model", {k: torch.zeros_like(v) for k, v in before.items()})
    for _ in range(2):
        main([str(tmp_path), "dit", "--small", "1", "--span", "0.5", "1"])
    curves = json.loads((tmp_path / "curves.json").read_text())
    assert [entry["span"] for entry in curves["dit"]] == [[0.5, 1.0]] * 2
    assert all(entry["rows"][0]["b jumps"] > 0 for entry in curves["dit"])
    assert max(v.abs().max() for v in load_weights(tmp_path, "model").values()) < 0.01


def test_the_judge_names_one_choice_of_each_part_at_any_size(trained):
    judge = Judge(trained / "judge.safetensors")
    for shape in ((5, 32, 48, 3), (25, 96, 64, 3)):
        seen = judge.recognise(np.zeros(shape, np.uint8))
        assert {part: seen[part] in choices for part, choices in judge.net.names.items()} == (
            dict.fromkeys(judge.net.names, True)
        )
        assert judge.score(np.zeros(shape, np.uint8), seen) == 1


def test_the_fast_vae_computes_what_diffusers_does():
    vae = load_vae(None, "cpu")
    clips = 2 * torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        mean, _ = fast_vae.encode(vae, clips)
        torch.testing.assert_close(mean, vae.encode(clips).latent_dist.mean, rtol=1e-4, atol=1e-4)
        made = fast_vae.decode(vae, mean).clamp(-1, 1)
        torch.testing.assert_close(made, vae.decode(mean).sample, rtol=1e-4, atol=1e-4)


def test_muon_is_torchs_muon():
    generator = torch.Generator().manual_seed(0)
    shapes = [(32, 16), (16, 32), (32, 16)]
    ours, theirs = (
        [torch.nn.Parameter(torch.full(shape, 0.5)) for shape in shapes] for _ in range(2)
    )
    muon = Muon(ours, 0.01, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):  # torch's works in bfloat16
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
        assert (a - 0.5).abs().max() > 0.01


def test_an_average_follows_and_is_swapped_in_and_out():
    param = torch.nn.Parameter(torch.zeros(3))
    average = Average([param], 0.9)
    with torch.no_grad():
        param.fill_(1)
    for _ in range(20):
        average.update()
    average.swap()
    assert 0.8 < param[0].item() < 1
    average.swap()
    assert param[0].item() == 1


def test_captions_and_prompts_use_only_words_of_the_vocabulary():
    rng = np.random.default_rng(0)
    labels = scenes.draw_labels(rng, 300)
    captions = scenes.write_captions(rng, labels)
    captions += [scenes.plain_prompt(labels, i) for i in range(300)]
    assert explain_unknown_words(" ".join(captions)) == []
    assert any(" while the camera is " in caption for caption in captions)


def one_scene(**changes):
    rng = np.random.default_rng(1)
    labels = scenes.draw_labels(rng, 1, sprites=1)
    for part, name in changes.items():
        labels[part][:] = scenes.index(part, name)
    return scenes.draw_scenes(rng, labels | {"view": np.zeros(1, int)})


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "grow", "shrink"])
def test_a_sprite_moves_as_its_label_says(motion):
    scene = one_scene(motion=motion, shape="square", pattern="plain", camera="still")
    cover = render(scene, full_grid(1, 5, 48, 48, "cpu")).coverage[0]
    rows, columns = (cover.sum(axis) @ torch.arange(48.0) / cover.sum((1, 2)) for axis in (2, 1))
    area = cover.sum((1, 2))
    change = {"left": -columns, "right": columns, "up": -rows, "down": rows}
    change |= {"grow": area / 50, "shrink": -area / 50}
    assert change[motion][-1] - change[motion][0] > 5


@pytest.mark.parametrize("shape", scenes.NAMES["shape"])
def test_an_outline_is_the_same_at_twice_the_size(shape):
    scene = one_scene(shape=shape, pattern="plain", camera="still")
    small = render(scene, full_grid(1, 3, 64, 64, "cpu")).coverage
    large = render(scene, full_grid(1, 3, 128, 128, "cpu")).coverage
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small).abs().max() < 0.3
    assert (halved - small).abs().mean() < 0.002


def test_a_window_is_a_part_of_the_frame():
    scene = one_scene(pattern="cloudy")
    whole = render(scene, full_grid(1, 3, 64, 64, "cpu")).clips
    side, top, left = (torch.tensor([value]) for value in (64.0, -8.0, -24.0))
    part = render(scene, window_grid(3, 32, 16, side, top, left, "cpu")).clips
    torch.testing.assert_close(part, whole[..., 8:40, 24:40], rtol=1e-4, atol=1e-4)


def test_sprites_are_marked_in_the_latents_that_see_them():
    coverage = torch.zeros(1, 9, 16, 24)
    coverage[0, 6, 9, 17] = 0.5
    places = sprite_places(coverage)
    assert places.shape == (1, 1, 3, 2, 3)
    assert places.nonzero().tolist() == [[0, 0, 2, 1, 2]]


def test_wilsons_interval():
    assert _wilson(90, 100) == pytest.approx([0.9, 0.826, 0.945], abs=1e-3)  # Wilson 1927


def test_flicker_is_a_ratio_of_means_with_an_interval_over_prompts():
    assert _ratio([2.0, 4.0], [1.0, 2.0]) == [2.0, 2.0, 2.0]
    rng = np.random.default_rng(0)
    rendered = rng.uniform(1, 3, 200)
    made = rendered * rng.uniform(1.0, 1.4, 200)
    ratio, low, high = _ratio(made.tolist(), rendered.tolist())
    assert low < ratio < high
    assert ratio == pytest.approx(made.mean() / rendered.mean(), abs=1e-3)
    assert 1.17 < low < high < 1.23
    assert _ratio([], []) == [0.0, 0.0, 0.0]


def test_the_vaes_own_flicker_is_measured_on_renders(trained):
    size = json.loads((trained / "evaluate.json").read_text())["5x32x32"]
    assert set(size["scores"]["flicker"]) == {"generated", "rendered", "rebuilt"}
    assert len(size["scores"]["flicker over renders'"]) == 3
    clips = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    vae = load_vae(None, "cpu")
    made = _rebuilt(vae, clips)
    assert (made.dtype, made.shape) == (clips.dtype, clips.shape)
    latents = vae.encode(clips.float() / 127.5 - 1).latent_dist.mean
    expected = (vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
    assert (made.float() - expected).abs().max() <= 1


def test_more_stripes_are_drawn_where_more_are_asked_for():
    labels = scenes.draw_labels(np.random.default_rng(0), 400, patterns=(0, 1, 0, 0, 0, 0))
    assert (labels["pattern"] == 1).all()
    usual = scenes.draw_labels(np.random.default_rng(0), 400)["pattern"]
    assert len(set(usual.tolist())) == 6
