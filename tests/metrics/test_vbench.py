"""The vbench adapter, with a package of that name that we wrote."""

import json
import os
import sys

import av
import numpy as np
import pytest

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.metrics.vbench import read_results, run_vbench, write_lossless

PROMPTS = {"a.mp4": 'say "hi" `touch ran` $(touch ran) </script>', "b.mp4": "it's; rm -rf x"}
PACKAGE = """
import json, os, pathlib
class VBench:
    def __init__(self, device, full_info, output):
        assert pathlib.Path(full_info).read_text() == "[]"
        self.device, self.output = device, pathlib.Path(output)
    def evaluate(self, videos_path, name, prompt_list, dimension_list, local, mode):
        if "FAIL" in prompt_list.get("a.mp4", ""):
            raise RuntimeError("the network is missing")
        seen = {"prompts": prompt_list, "mode": mode, "local": local, "device": str(self.device),
                "proxy": os.environ.get("https_proxy")}
        (self.output / "seen.json").write_text(json.dumps(seen))
        raw = {"imaging_quality": [60.0, 80.0], "dynamic_degree": [True, False]}
        files = sorted(os.listdir(videos_path))
        if "LEAVE" in prompt_list.get("a.mp4", ""):
            files = files[:1]
        results = {
            dimension: [0.123, [
                {"video_path": os.path.join(videos_path, file), "video_results": value}
                for file, value in zip(files, raw.get(dimension, [0.5, 0.7]))
            ]]
            for dimension in dimension_list
        }
        (self.output / f"{name}_eval_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def python(tmp_path):
    """An interpreter that finds our ``vbench`` and a ``torch`` that takes no time to import."""
    site = tmp_path / "site"
    (site / "vbench").mkdir(parents=True)
    (site / "vbench" / "__init__.py").write_text(PACKAGE)
    (site / "vbench" / "VBench_full_info.json").write_text("[]")
    (site / "torch.py").write_text("device = str")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in PROMPTS:
        (folder / name).touch()
    return folder


def test_each_dimension_is_averaged_over_videos_on_one_scale(python, videos, tmp_path):
    dimensions = ["imaging_quality", "dynamic_degree", "temporal_flickering"]
    found = run_vbench(python, videos, PROMPTS, dimensions, tmp_path / "out")
    assert found.raw == pytest.approx(
        {"imaging_quality": 0.7, "dynamic_degree": 0.5, "temporal_flickering": 0.6}
    )
    assert found.videos["imaging_quality"] == pytest.approx({"a.mp4": 0.6, "b.mp4": 0.8})


def test_prompts_arrive_as_they_are_and_no_shell_reads_them(python, videos, tmp_path):
    run_vbench(python, videos, PROMPTS, ["temporal_style"], tmp_path / "out", device="cpu")
    seen = json.loads((tmp_path / "out" / "seen.json").read_text())
    assert seen["prompts"] == PROMPTS
    assert (seen["mode"], seen["local"], seen["device"]) == ("custom_input", True, "cpu")
    assert not list(tmp_path.rglob("ran"))


def test_it_gets_no_network_unless_allowed(python, videos, tmp_path):
    for download, proxy in ((False, "http://127.0.0.1:9"), (True, os.environ.get("https_proxy"))):
        out = tmp_path / "out"
        run_vbench(python, videos, PROMPTS, ["dynamic_degree"], out, download=download)
        assert json.loads((out / "seen.json").read_text())["proxy"] == proxy


def test_relative_paths_work(python, videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = python.relative_to(tmp_path), videos.relative_to(tmp_path)
    found = run_vbench(
        *here, PROMPTS, ["dynamic_degree"], tmp_path.joinpath("out").relative_to(tmp_path)
    )
    assert found.raw == {"dynamic_degree": 0.5}


def test_a_failure_is_one_sentence_and_a_log_and_never_the_results_of_another_run(
    python, videos, tmp_path
):
    out = tmp_path / "out"
    run_vbench(python, videos, PROMPTS, ["dynamic_degree"], out)
    with pytest.raises(VidsparseError, match=r"status 1 \(RuntimeError: the network is missing\)"):
        run_vbench(python, videos, PROMPTS | {"a.mp4": "FAIL"}, ["dynamic_degree"], out)
    assert "Traceback" in (out / "vbench.log").read_text()
    assert not (out / "run_eval_results.json").exists()


def test_a_video_left_out_is_an_error_and_not_a_smaller_average(python, videos, tmp_path):
    prompts = PROMPTS | {"a.mp4": "LEAVE"}
    with pytest.raises(VidsparseError, match=r"no dynamic_degree of b\.mp4"):
        run_vbench(python, videos, prompts, ["dynamic_degree"], tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": {"a.mp4": "x"}}, r"do not match \(b\.mp4\)"),
        ({"prompts": PROMPTS | {"../c.mp4": "x"}}, r"do not match \(\.\./c\.mp4\)"),
        ({"dimensions": ["scene"]}, "measures scene on its own prompts only"),
        ({"dimensions": ["charm"]}, "no dimension charm"),
        ({"dimensions": []}, "none given"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_starts(change, said, python, videos, tmp_path):
    request = {"prompts": PROMPTS, "dimensions": ["dynamic_degree"]} | change
    with pytest.raises(BadInputError, match=said):
        run_vbench(python, videos, output=tmp_path / "out", **request)
    assert not (tmp_path / "out").exists()


def test_a_missing_interpreter_or_folder_is_refused(python, videos, tmp_path):
    with pytest.raises(BadInputError, match=r"no Python .*nowhere: give that of an environment"):
        run_vbench(tmp_path / "nowhere", videos, PROMPTS, ["dynamic_degree"], tmp_path / "out")
    with pytest.raises(BadInputError, match="do not match"):
        run_vbench(python, tmp_path / "none", {}, ["dynamic_degree"], tmp_path / "out")


def test_a_dimension_missing_from_results_is_an_error(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(VidsparseError, match=r"no dynamic_degree of a\.mp4"):
        read_results(tmp_path / "x.json", ["dynamic_degree"], ["a.mp4"])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 51)])
def test_a_lossless_video_decodes_to_the_same_pixels(height, width, tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    write_lossless(tmp_path / "a.mp4", clip, fps=16)
    with av.open(tmp_path / "a.mp4") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]  # type: ignore
        assert container.streams.video[0].average_rate == 16
    assert np.array_equal(np.stack(frames), clip)
