"""Work on a Ray cluster: the same files as here, and nothing lost or done twice when one dies."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import vidsparse
from vidsparse.pipelines.running.video import read_video

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")

SMALL = "--frames=5 --height=64 --width=64 --steps=2 --guidance=1 --density=0.3 --set=min_tokens=0"
SMALL = SMALL.split()
PROMPTS = ["a red circle moving right", "a blue square", "a green star"]


@pytest.fixture(scope="module")
def environment(quick_imports):
    """Of workers, which Ray makes nice: on few busy cores they would get next to nothing."""
    return {"RAY_worker_niceness": "0", "PYTHONPATH": quick_imports}


@pytest.fixture(autouse=True)
def workers_get_their_share(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


CLUSTER = """
import sys, ray
started = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(started.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


class Cluster(NamedTuple):
    address: str
    process: Any  # of psutil

    def workers(self) -> list[Any]:
        """The processes that live for pieces of work."""
        found = []
        for process in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "_Worker" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def cluster(environment):
    """Two workers, started once for all tests that need no cluster of their own."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | environment,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        address = process.stdout.readline().strip()
        yield Cluster(address, psutil.Process(process.pid))
        process.stdin.close()


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def test_prompts_become_the_videos_that_one_process_makes(cli, prompts, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert cli("generate", "--prompts", prompts, *SMALL, "-o", here).code == 0
    done = cli("generate", "--prompts", prompts, *SMALL, "-o", there, "--ray", "local")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    assert "Ray workers" in done.err
    videos = list(here.glob("*.mp4"))
    assert len(videos) == 3
    for file in videos:
        one, other = (read_video(each).astype(int) for each in (file, there / file.name))
        assert abs(one - other).mean() < 4  # threads sum in another order; other seeds give 40
    assert not ray.is_initialized()


def test_a_prompt_that_fails_on_a_worker_does_not_stop_the_others(cli, cluster, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS[:2]))
    strict = [*SMALL[:-1], "--strict", "--ray", cluster.address]  # too few tokens to be sparse
    code, out, err = cli("generate", "--prompts", prompts, *strict, "-o", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "000.mp4 failed ('a red circle moving right'): layer 0 at step 1 cannot be sparse" in err
    assert "2 of 2 prompts failed" in err


OWN = """
from dataclasses import dataclass
from typing import ClassVar

import torch

from vidsparse import Preset
from vidsparse.policies.estimator import Estimate, Estimator, Measure
from vidsparse.policies.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Near(Estimator):
    measure: ClassVar[Measure] = Measure.RANK

    def estimate(self, inputs):
        at = torch.arange(inputs.blocks.number)
        return Estimate(scores=-(at[:, None] - at).abs()[None, None].float())


near = Preset(name="near", summary="", source="", policy=Policy(estimator=Near(), density=0.5))
"""


def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_made_twice(
    cli, cluster, nothing_stays_registered, tmp_path
):
    """Half of the work is that of a preset of a file, which each worker has to be sent."""
    (tmp_path / "my_file.py").write_text(OWN)
    (prompts := tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    folder, preset = tmp_path / "report", f"draft,{tmp_path / 'my_file.py'}:near"
    line = ["--prompts", prompts, "--preset", preset, *SMALL, "-o", folder]
    killer = Killer(cluster, folder)
    killer.start()
    code, out, err = cli("compare", *line, "--ray", cluster.address)
    killer.join()
    assert code == 0, err
    assert "a worker died at" in err
    assert len(killer.made) >= 2
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in killer.made.items())
    assert "draft" in out
    assert (folder / "index.html").exists()
    assert len(list(folder.glob("clips/*/*.scores.json"))) == 4
    assert not [*folder.glob("clips/*/.vidsparse-*"), *folder.glob(".vidsparse-*")]
    for name in ("draft", "near"):
        assert len(files := list(folder.glob(f"clips/*/{name}.npy"))) == 2
        assert np.load(files[0]).shape == (5, 64, 64, 3)
    again = cli("compare", *line)
    assert "pieces of work were done before" in again.err
    assert "made again" not in again.err


class Killer(threading.Thread):
    """Kills a worker as soon as there are two records; knows when each had been written."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(daemon=True)
        self.cluster, self.folder = cluster, folder
        self.made: dict[Path, int] = {}

    def run(self) -> None:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            if len(records := list(self.folder.glob("clips/*/*.json"))) >= 2:
                self.made = {path: path.stat().st_mtime_ns for path in records}
                self.cluster.workers()[0].send_signal(signal.SIGKILL)
                return
            time.sleep(0.05)


def test_a_preset_that_workers_cannot_have_is_refused(
    cli, cluster, nothing_stays_registered, tmp_path, monkeypatch
):
    module = types.ModuleType("only_on_this_machine")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(OWN, vars(module))
    vidsparse.register(module.near)
    line = ["--preset", "near", *SMALL, "-o", tmp_path, "--ray", cluster.address]
    code, _, err = cli("compare", "a red circle", *line)
    assert code == 2
    message = "No module named 'only_on_this_machine'): install the package that a preset comes"
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray", "127.0.0.1:1"], "no Ray cluster answers at '127.0.0.1:1'"),
        (["--ray", "nowhere"], "no Ray cluster answers at 'nowhere'"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(cli, prompts, tmp_path, arguments, message):
    code, _, err = cli("generate", "--prompts", prompts, *SMALL, *arguments, "-o", tmp_path / "o")
    assert code == 2
    assert message in err


def test_without_ray_the_way_to_get_it_is_named(cli, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = cli("generate", "--prompts", prompts, *SMALL, "--ray", "local", "-o", tmp_path)
    assert code == 2
    assert "pip install 'vidsparse[ray]'" in err
