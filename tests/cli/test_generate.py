import json
import multiprocessing
import os
import pty
import re
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from vidsparse.cli import main
from vidsparse.cli.generate import read_prompts
from vidsparse.cli.generate_work import GenerateWork
from vidsparse.cli.run_options import RunOptions
from vidsparse.comparison.job import Job
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.checkpoints import TINY
from vidsparse.pipelines.running.skeleton import skeleton
from vidsparse.pipelines.running.video import read_video

PROMPT = "a red circle moving right"


def test_a_video_of_the_asked_size_is_written_and_described(cli, small, tmp_path):
    path = tmp_path / "new" / "clip.mp4"
    code, out, err = cli("generate", *small, "--density", 0.3, "--seed", 3, "-o", path)
    assert code == 0
    assert read_video(path).shape == (5, 80, 80, 3)
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]
    assert "drawn with seed 3: " in err
    pattern = r"clip\.mp4 in \d+\.\d s, mean density 0\.\d{3}, 50% of the steps dense, nothing fell"
    assert re.search(pattern, out)


def test_guidance_leads_away_from_a_negative_prompt(cli, small, tmp_path):
    line = ["generate", PROMPT, *small, "--guidance", 3]
    made = {}
    for name, more in (("plain", []), ("away", ["--negative-prompt", "a blue square"])):
        path = tmp_path / f"{name}.mp4"
        assert cli(*line, *more, "-o", path)[0] == 0
        made[name] = read_video(path).astype(int)
        with av.open(str(path)) as container:
            about = json.loads(container.metadata["comment"])
        assert about.get("negative_prompt") == (more[1] if more else None)
    assert abs(made["plain"] - made["away"]).mean() > 1


def test_a_mean_density_is_met_or_refused_with_the_least(cli, small, tmp_path):
    path = tmp_path / "a.mp4"
    asked = ["--set", "mean_density=0.35"]
    code, out, err = cli("generate", PROMPT, *small, *asked, "-o", path)
    assert (code, out, path.exists()) == (2, "", False)
    assert "mean_density=0.35 cannot be reached in a run of 2 steps" in err
    assert "1/2 steps" not in err  # said before the first step is over
    small[small.index("--steps") + 1] = "8"
    code, out, _ = cli("generate", PROMPT, *small, "--set", "block=16", "-o", path)
    assert code == 0
    realised = float(re.findall(r"mean density (\d\.\d{3})", out)[0])
    assert realised == pytest.approx(0.35, abs=0.03)  # of 13 blocks


def test_a_sequence_too_short_to_gain_runs_dense_and_says_so(cli, small, tmp_path):
    code, out, _ = cli("generate", PROMPT, *small[:-2], "-o", tmp_path / "a.mp4")
    assert code == 0
    assert "mean density 1.000" in out
    assert "200 tokens are too few to gain" in out


def test_strict_fails_in_one_line_where_a_call_would_be_dense(cli, small, tmp_path):
    path = tmp_path / "a.mp4"
    code, out, err = cli("generate", PROMPT, *small[:-2], "--strict", "-o", path)
    assert (code, out, path.exists()) == (1, "", False)
    assert "vidsparse: layer 0 at step 1 cannot be sparse: 200 tokens are too few" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--height 170", "height 170 is not possible: the model takes multiples of 16; nearest "
         "are 160 and 176"),
        ("--width 0", "width 0 is not possible: the model takes multiples of 16; nearest is 16"),
        ("--frames 24", "frames 24 is not possible: the model takes 4k+1; nearest are 21 and 25"),
        ("--frames -3", "nearest is 1"),
        ("--steps 0", "steps must be at least 1"),
        ("--seed -1", "seed must be"),
        ("--guidance nan", "guidance must be at least 0"),
        ("--fps 0", "fps must be at least 0.01"),
        ("--preset radail", "unknown preset 'radail': did you mean radial"),
        ("--density 0", "density must be in (0, 1], got 0"),
        ("--density 1.5", "density must be in (0, 1], got 1.5"),
        ("--set density", "must be KEY=VALUE"),
        ("--set decoy=1", "has no parameter 'decoy'"),
        ("--device tpu9", "unknown device 'tpu9'"),
        ("--dtype int4", "unknown dtype 'int4': choose float32, bfloat16, float16"),
        ("--model no/such/folder", "there is no model folder no/such/folder"),
        ("--prompts p.txt", "give a prompt or --prompts FILE, not both"),
        ("-o clip.gif", "suffix must be one of .mp4"),
    ],
)  # fmt: skip
def test_what_is_not_possible_is_refused_in_one_line(
    cli, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli("generate", PROMPT, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("vidsparse: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_refused_before_loading(cli, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = cli("generate", PROMPT, "-o", tmp_path / "file" / "a.mp4")
    assert code == 2
    assert err.startswith("vidsparse: folder")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(cli):
    code, _, err = cli("generate", PROMPT, "--device", "cuda")
    assert code == 2
    assert f"cuda was asked for but torch sees no GPU (torch {torch.__version__})" in err


def test_another_model_needs_a_prompt(cli, other_model):
    code, _, err = cli("generate", "--model", other_model)
    assert code == 2
    assert "a prompt is needed" in err


def test_unknown_words_are_named(cli, tmp_path):
    _, _, err = cli("generate", "a red zebra", "-o", tmp_path / "x.gif")
    assert "ignored: zebra" in err


def test_a_file_of_prompts_makes_a_folder_of_videos(cli, small, tmp_path):
    (tmp_path / "prompts.txt").write_text("# two\n\na red circle\n  a blue square \n")
    folder = tmp_path / "out"
    code, out, _ = cli(
        "generate", "--prompts", tmp_path / "prompts.txt", *small, "--density", 0.3, "-o", folder
    )
    assert code == 0
    names = ["000.mp4", "000.mp4.json", "001.mp4", "001.mp4.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert len(out.splitlines()) == 2


def test_prompts_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(BadInputError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_prompt_is_a_line_whatever_else_stands_in_it(tmp_path, start):
    file = tmp_path / "prompts.txt"
    separators = "a red\u2028circle\r\n# none\r\na\u0085blue\x0csquare\x1etoo\n"
    file.write_bytes(start + separators.encode())
    assert read_prompts(file) == ["a red\u2028circle", "a\u0085blue\x0csquare\x1etoo"]
    file.write_bytes(start + b"# none\n")
    with pytest.raises(BadInputError, match="holds no prompt"):
        read_prompts(file)


def test_a_file_without_end_is_no_file_of_prompts():
    with pytest.raises(BadInputError, match="/dev/zero is longer than 10,000,000 characters"):
        read_prompts(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--fps 1e-9", "fps must be at least 0.01, got 1e-09"),
        ("--fps nan", "fps must be at least 0.01, got nan"),
        ("--steps 99999999999999999999", "steps must be at most 10,000"),
        ("--guidance 1e39", "guidance must be at most 1,000"),
        ("--guidance nan", "guidance must be at least 0, got nan"),
        ("--seed 9223372036854775808", "seed must be a whole number from 0 to 2**63 - 1"),
    ],
)
def test_settings_beyond_all_limits_are_refused_at_once(cli, arguments, message):
    code, _, err = cli("generate", PROMPT, *arguments.split())
    assert code == 2
    assert message in err


def test_one_failing_prompt_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    weightless = skeleton(TINY)

    class Pipe:
        vae, transformer = weightless.vae, weightless.transformer

        def set_progress_bar_config(self, **config):
            pass

        def __call__(self, *, prompt, num_frames, height, width, **rest):
            if "square" in prompt:
                raise RuntimeError("boom")
            return SimpleNamespace(frames=np.zeros((1, num_frames, height, width, 3)))

    options = RunOptions(frames=5, height=32, width=32)
    job = options.job(["a red square", "a red circle"])
    paths = [tmp_path / "000.mp4", tmp_path / "001.mp4"]
    monkeypatch.setattr(Job, "load", lambda self: Pipe())
    work = GenerateWork(job, None, paths)
    work.do()
    assert [each["error"] for each in work.to_json()["failed"]] == ["boom"]
    assert [each["prompt"] for each in work.to_json()["videos"]] == ["a red circle"]
    assert [path.exists() for path in paths] == [False, True]
    assert "vidsparse: 000.mp4 failed ('a red square'): boom" in capsys.readouterr().err


def on_a_terminal(terminal, out, *arguments):
    """The command in a process of its own, which shows its progress there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background
    os.environ |= {"TERM": "xterm", "COLUMNS": "100"}
    os.dup2(terminal, 2)
    sys.stdout, sys.stderr = out.open("w"), os.fdopen(2, "w", closefd=False)
    sys.argv = ["vidsparse", *arguments]
    main()


def test_ctrl_c_in_the_middle_leaves_no_file(small, tmp_path):
    """SIGINT is sent when the first step shows on the terminal."""
    ours, theirs = pty.openpty()
    (folder := tmp_path / "made").mkdir()
    arguments = [PROMPT, *small, "--steps", "500", "-o", str(folder / "a.mp4")]
    process = multiprocessing.get_context("fork").Process(
        target=on_a_terminal, args=(theirs, tmp_path / "out", "generate", *arguments)
    )  # forked, which spares an import of everything
    process.start()
    os.close(theirs)
    seen = tail = b""
    while not re.search(rb"[1-9]\d*/500", seen):
        seen += os.read(ours, 4096)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    try:
        while chunk := os.read(ours, 4096):
            tail += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    process.join(timeout=240)
    assert process.exitcode == 130
    assert (tmp_path / "out").read_text() == ""
    assert tail.rstrip().endswith(b"vidsparse: interrupted; files already finished are whole")
    assert b"Traceback" not in tail
    assert not list(folder.iterdir())


def test_what_libraries_warn_of_a_model_is_shown(cli, small, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 1}))
    file = tmp_path / "a.npy"
    small += ["--density", "0.3"]
    code, _out, err = cli("generate", PROMPT, "--model", folder, *small, "-o", file)
    assert code == 0, err
    assert "transformers: UMT5EncoderModel LOAD REPORT" in err
    assert "encoder.block.1.layer" in err
    assert "\x1b" not in err
    assert "LOAD REPORT" not in cli("generate", PROMPT, *small, "-o", file).err


@pytest.mark.parametrize(
    "option", [("--preset", "draft"), ("--set", "block=32"), ("--density", "0.3"),
               ("--precision", "int8")],
)  # fmt: skip
def test_a_dense_run_takes_nothing_that_is_of_sparse_ones(cli, tmp_path, option):
    found = cli("generate", "a red circle", "--dense", *option, "-o", tmp_path / "x.mp4")
    assert found.code == 2
    assert f"--dense and {option[0]} cannot go together" in " ".join(found.err.split())


def test_eight_bits_on_a_cpu_are_refused_before_weights_load(cli, small, tmp_path):
    path = tmp_path / "x.mp4"
    found = cli("generate", PROMPT, *small, "--precision", "int8", "-o", path)
    assert (found.code, found.out, path.exists()) == (2, "", False)
    assert "precision=int8 here: eight bits gain on a GPU alone" in " ".join(found.err.split())
