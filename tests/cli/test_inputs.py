"""Pipelines that are given images and videos beside the prompt, from the command line."""

import json
import re

import av
import numpy as np
import pytest
from PIL import Image

from vidsparse.pipelines.running.video import read_video, write_video

SPARSE = "--preset draft --density 0.3 --set min_tokens=0 --set block=16 --strict"
SIZE = (9, 64, 96)  # what is made of the files below, where nothing else is said


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """``video.mp4`` of 11 frames, an image and a mask of the same size, and smaller ones."""
    folder, draw = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    noise = draw.integers(0, 256, (11, 64, 96, 3), dtype=np.uint8)
    write_video(folder / "video.mp4", noise, 12)
    Image.fromarray(noise[0]).save(folder / "image.png")
    Image.fromarray(noise[0, :24, :32]).save(folder / "small.png")
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


@pytest.fixture
def generate(cli, models, files, tmp_path, monkeypatch):
    """``generate("FluxFillPipeline", "--image small.png", ...)`` where the files are."""
    monkeypatch.chdir(files)

    def call(kind, line, *more, style=SPARSE):
        out = tmp_path / "out.npy"
        made = cli(
            f"generate changed {line} {style} --steps 3 --model", models / kind, "-o", out, *more
        )
        return made, out

    return call


CASES = {
    "video to video": ("WanVideoToVideoPipeline", "--video video.mp4 --strength 0.7", SIZE),
    "image to video": ("WanImageToVideoPipeline", "--image image.png --frames 9", SIZE),
    "first and last": (
        "WanImageToVideoPipeline", "--image image.png --last-image mask.png --frames 5",
        (5, 64, 96),
    ),
    "a masked video": ("WanVACEPipeline", "--video video.mp4 --mask mask.png", SIZE),
    "a wider masked video, with a reference": (
        "WanVACEPipeline", "--video video.mp4 --mask video.mp4 --image small.png --height 96",
        (9, 96, 144),
    ),
    "CogVideoX video to video": ("CogVideoXVideoToVideoPipeline", "--video video.mp4", (9, 48, 64)),
    "CogVideoX image to video": (
        "CogVideoXImageToVideoPipeline", "--image image.png --frames 9", (9, 48, 64)
    ),
    "a condition at each end": (
        "LTXConditionPipeline", "--image image.png --last-image mask.png --frames 9", SIZE
    ),
    "a video to go on from": (
        "LTXConditionPipeline", "--video video.mp4 --frames 9 --strength 0.9", SIZE
    ),
    "image to image": ("FluxImg2ImgPipeline", "--image small.png", (1, 24, 32)),
    "filling in": ("FluxFillPipeline", "--image small.png --mask mask.png", (1, 24, 32)),
    "edges to follow": ("FluxControlPipeline", "--control small.png", (1, 24, 32)),
    "a video to follow": ("CogVideoXFunControlPipeline", "--control video.mp4", (9, 48, 64)),
    "an instruction": ("FluxKontextPipeline", "--image small.png", (1, 24, 32)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_images_for_kontext(monkeypatch):
    """It scales what it is given to one of these, a million pixels each."""
    module = "diffusers.pipelines.flux.pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS"
    monkeypatch.setattr(module, [(24, 24), (32, 24)])


@pytest.mark.parametrize("name", CASES)
def test_what_is_given_is_used_sparsely(generate, name):
    kind, line, size = CASES[name]
    (code, said, err), out = generate(kind, line)
    assert code == 0, err
    assert read_video(out).shape == (*size, 3)
    assert float(re.findall(r"mean density (\d\.\d+)", said)[0]) < 1
    assert "nothing fell back to dense" in said


@pytest.mark.parametrize("name", ["video to video", "filling in"])
def test_dense_runs_too_and_is_another(generate, name):
    kind, line, size = CASES[name]
    outcome, out = generate(kind, line)
    assert outcome.code == 0
    sparse = read_video(out)
    outcome, out = generate(kind, line, "--overwrite", style="--dense")
    assert outcome.code == 0, outcome.err
    assert read_video(out).shape == (*size, 3)
    assert not np.array_equal(read_video(out), sparse)


def test_what_is_made_depends_on_what_is_given(generate, files):
    made = []
    for image in ("small.png", "image.png"):
        line = f"--image {image} --height 24 --width 32 --json --overwrite"
        outcome, out = generate("FluxImg2ImgPipeline", line)
        facts = json.loads(outcome.out)
        assert facts["inputs"] == {"image": [image]}
        made.append(read_video(out))
    assert not np.array_equal(*made)


def test_a_video_keeps_its_rate_and_says_what_it_was_made_of(cli, models, files, tmp_path):
    out = tmp_path / "out.mp4"
    line = f"generate changed --video {files / 'video.mp4'} --strength 0.7 --steps 3 {SPARSE}"
    assert cli(line, "--model", models / "WanVideoToVideoPipeline", "-o", out).code == 0
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 12
        about = json.loads(container.metadata["comment"])
    assert about["inputs"] == {"video": [str(files / "video.mp4")]}
    assert about["strength"] == 0.7


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("wan", "--image image.png", "WanPipeline takes no image: leave --image out"),
        ("WanImageToVideoPipeline", "", "does not work from text alone: give it an image, --image"),
        ("WanImageToVideoPipeline", "--image image.png --video video.mp4",
         "takes no video: leave --video out; it takes --image, --last-image"),
        ("WanImageToVideoPipeline", "--image image.png --strength 0.5", "takes no strength"),
        ("WanImageToVideoPipeline", "--image video.mp4", "video.mp4 cannot be read as an image"),
        ("WanVideoToVideoPipeline", "", "give it a video, --video FILE"),
        ("WanVideoToVideoPipeline", "--video image.png", "is an image, and must be a video"),
        ("WanVideoToVideoPipeline", "--video none.mp4", "there is no such file"),
        ("WanVideoToVideoPipeline", "--video mask.npy", "there is no such file"),
        ("WanVideoToVideoPipeline", "--video video.mp4 --frames 13",
         "video.mp4 has 11 frames, fewer than the 13 that were asked for"),
        ("WanVideoToVideoPipeline", "--video video.mp4 --frames 10", "nearest are 9 and 13"),
        ("WanVideoToVideoPipeline", "--video video.mp4 --strength 0", "must be more than 0"),
        ("WanVideoToVideoPipeline", "--video video.mp4 --strength 0.1", "must be at least 10"),
        ("WanVideoToVideoPipeline", "--video video.mp4 --strength 1.1", "must be at most 1"),
        ("FluxFillPipeline", "--image small.png", "give it a mask, --mask FILE"),
        ("FluxImg2ImgPipeline", "--image small.png --frames 5", "makes an image, which is 1 frame"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_weights_load(
    generate, monkeypatch, tmp_path, kind, line, message
):
    monkeypatch.setattr("vidsparse.pipelines.running.load.load_pipeline", None)
    (code, said, err), out = generate(kind, line)
    assert (code, said, out.exists()) == (2, "", False)
    assert message in " ".join(err.split())


def test_a_pipeline_that_fails_for_want_of_a_file_says_which(generate):
    (code, _, err), _ = generate("FluxKontextPipeline", "--image small.png --image image.png")
    assert code == 1
    assert "FluxKontextPipeline failed with --image: " in err
    assert "Traceback" not in err


def test_a_comparison_of_changed_videos_says_of_what(cli, models, files, tmp_path):
    video = files / "video.mp4"
    line = ["--model", models / "WanVideoToVideoPipeline", "--video", video, "-o", tmp_path / "out"]
    line += ["--strength", "0.7", "--steps", "3", *SPARSE.split()]
    code, _, err = cli("compare changed", *line)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["inputs"] == {"video": [str(video)]}
    assert found["strength"] == 0.7
    assert (found["video"]["frames"], found["video"]["fps"]) == (9, 12)
    assert str(video) in (tmp_path / "out" / "report.md").read_text()
