"""Video files: what comes out is what went in, and no failure loses a finished video."""

import json
import os
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.container import InputContainer
from PIL import Image

from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.pipelines.running import video
from vidsparse.pipelines.running.video import (
    check_writable,
    read_video,
    to_uint8,
    write_image,
    write_video,
)


def smooth(frames=9, height=48, width=64):
    """Slow waves of colour, as raw frames."""
    t, y, x, c = np.ogrid[:frames, :height, :width, :3]
    return (127 + 100 * np.sin(x / 20 + t / 5 + c) * np.cos(y / 25)).round().astype(np.uint8)


def decibels(ours, theirs):
    return 10 * np.log10(255**2 / np.mean((ours.astype(float) - theirs) ** 2))


@pytest.fixture
def temp_folder(tmp_path, monkeypatch):
    """A system temporary folder of our own, to see what is left in it."""
    folder = tmp_path / "system-temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


class FailingFrame:
    """Stands in for ``av.VideoFrame``: the third frame raises."""

    def __init__(self, error):
        self.error, self.made, self.real = error, 0, av.VideoFrame

    def from_ndarray(self, *args, **kwargs):
        self.made += 1
        if self.made == 3:
            raise self.error
        return self.real.from_ndarray(*args, **kwargs)


def test_values_are_rounded_not_truncated():
    levels = np.array([0, 0.49, 0.51, 99.4, 99.6, 254.6], np.float32) / 255
    clip = np.broadcast_to(levels[:, None, None, None], (6, 2, 2, 3))
    assert to_uint8(clip)[:, 0, 0, 0].tolist() == [0, 0, 1, 99, 100, 255]


def test_every_level_survives_a_float32_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    clip = np.broadcast_to(levels[:, None, None, None], (256, 1, 1, 3))
    assert np.array_equal(to_uint8(clip.astype(np.float32) / 255), clip)


def test_arrays_tensors_and_images_of_one_clip_give_the_same_frames():
    expected = smooth()
    floats = expected.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).movedim(-1, 1)
    images = [Image.fromarray(frame) for frame in expected]
    for clip in (floats, tensor, images, expected):
        assert np.array_equal(to_uint8(clip), expected)


def test_bfloat16_tensors_are_read():
    frames = to_uint8(torch.full((1, 3, 2, 2), 0.5, dtype=torch.bfloat16))
    assert frames.shape == (1, 2, 2, 3)
    assert np.unique(frames).tolist() == [128]


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (np.full((1, 2, 2, 3), -1.0), r"\[0, 1\].*spans \[-1, -1\].*latents"),
        (np.full((1, 2, 2, 3), 200.0), "divide 0 to 255"),
        (np.zeros((1, 4, 2, 2, 3)), r"\(1, 4, 2, 2, 3\).*not a batch"),
        (torch.zeros(1, 3, 4, 2, 2), "not a batch"),
        (np.zeros((0, 2, 2, 3)), r"\(0, 2, 2, 3\)"),
        ([np.zeros((2, 2, 3))], "PIL.*ndarray"),
        ([Image.new("RGB", (2, 2)), Image.new("RGB", (4, 2))], r"one size.*\(4, 2\)"),
        ([], "no images"),
    ],
)
def test_what_is_not_one_clip_in_range_is_refused(clip, said):
    with pytest.raises(BadInputError, match=said):
        to_uint8(clip)


def test_nan_is_reported_with_its_frame_instead_of_turning_black():
    clip = np.zeros((3, 2, 2, 3))
    clip[2, 0, 0, 0] = np.nan
    with pytest.raises(VidsparseError, match=r"frame 2 .* NaN.*bfloat16"):
        to_uint8(clip)


def test_missing_folders_are_created_and_nothing_else_is_left(tmp_path):
    check_writable(tmp_path / "a" / "b" / "clip.mp4")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["a", "a/b"]


def test_an_existing_video_is_left_as_it_is(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"old")
    check_writable(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["clip.avi", "clip", ".mp4"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(BadInputError, match=r"\.mp4, \.webm, \.npy"):
        check_writable(tmp_path / name)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(BadInputError, match=r"clip\.mp4 is a folder: name a file in it"):
        check_writable(tmp_path / "clip.mp4")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a" / "clip.mp4", tmp_path / "a" / "b" / "clip.mp4"):
        with pytest.raises(BadInputError, match=r"cannot be created .*choose another folder"):
            check_writable(path)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_files_is_refused_even_for_root():
    with pytest.raises(BadInputError, match=r"/proc cannot be written to .*choose another"):
        check_writable("/proc/clip.mp4")
    with pytest.raises(BadInputError, match="/proc/none does not exist and cannot be created"):
        check_writable("/proc/none/clip.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".MP4", ".webm"])
def test_a_video_has_our_frames_size_and_rate_and_looks_the_same(tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    write_video(path, smooth(), fps=16)
    with av.open(path) as container:
        assert isinstance(container, InputContainer)
        stream = container.streams.video[0]
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert stream.average_rate == 16
        assert stream.codec_context.pix_fmt == "yuv420p"
    assert np.array(decoded).shape == smooth().shape
    assert decibels(np.array(decoded), smooth()) > 36
    assert np.array_equal(read_video(path), decoded)
    assert list(tmp_path.iterdir()) == [path]


def test_a_fractional_rate_is_kept(tmp_path):
    write_video(tmp_path / "clip.mp4", smooth(), fps=24000 / 1001)
    with av.open(tmp_path / "clip.mp4") as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_quality_is_set_above_the_codecs_default(tmp_path):
    grain = np.random.default_rng(0).integers(96, 160, (3, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "ours.mp4", grain, fps=16)
    with av.open(tmp_path / "default.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in grain:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())
    ours, default = (tmp_path / name for name in ("ours.mp4", "default.mp4"))
    assert ours.stat().st_size > 1.2 * default.stat().st_size


def test_npy_keeps_every_pixel(tmp_path):
    write_video(tmp_path / "clip.npy", smooth(), fps=16)
    assert np.array_equal(read_video(tmp_path / "clip.npy"), smooth())


def test_odd_sides_are_made_even_by_doubling_the_last_row_and_column(tmp_path):
    odd = smooth(height=47, width=63)
    write_video(tmp_path / "clip.mp4", odd, fps=16)
    decoded = read_video(tmp_path / "clip.mp4")
    assert decoded.shape == (9, 48, 64, 3)
    assert decibels(decoded[:, :47, :63], odd) > 36
    assert decibels(decoded[:, 47, :63], odd[:, 46]) > 30


def test_an_older_file_is_replaced(tmp_path):
    (tmp_path / "clip.npy").write_bytes(b"old")
    write_video(tmp_path / "clip.npy", smooth(), fps=16)
    assert np.array_equal(read_video(tmp_path / "clip.npy"), smooth())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1e6, 1e-9])
def test_a_rate_that_makes_no_sense_is_refused(tmp_path, fps):
    with pytest.raises(BadInputError, match="fps must be at "):
        write_video(tmp_path / "clip.mp4", smooth(), fps=fps)


def test_float_frames_and_unknown_suffixes_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(BadInputError, match=r"float64.*to_uint8"):
        write_video(tmp_path / "clip.mp4", smooth() / 255, fps=16)
    with pytest.raises(BadInputError, match="suffix"):
        write_video(tmp_path / "clip.gif", smooth(), fps=16)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(av, "VideoFrame", FailingFrame(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_video(path, smooth(), fps=16)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"old"


def kept_in(folder, error):
    """Check that the frames were kept, and that the error says where."""
    (kept,) = folder.iterdir()
    assert str(kept) in str(error)
    assert np.array_equal(read_video(kept), smooth())


def test_a_full_disk_keeps_the_frames_elsewhere_and_says_where(tmp_path, temp_folder, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    full = FailingFrame(OSError(28, "No space left on device"))
    monkeypatch.setattr(av, "VideoFrame", full)
    with pytest.raises(VidsparseError, match="No space left") as raised:
        write_video(out / "clip.mp4", smooth(), fps=16)
    assert not list(out.iterdir())
    kept_in(temp_folder, raised.value)


@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_a_folder_removed_meanwhile_keeps_the_frames_elsewhere(tmp_path, temp_folder, suffix):
    path = tmp_path / "out" / f"clip{suffix}"
    check_writable(path)
    path.parent.rmdir()
    with pytest.raises(VidsparseError, match=r"cannot write .*out/clip") as raised:
        write_video(path, smooth(), fps=16)
    kept_in(temp_folder, raised.value)


def test_a_folder_put_in_place_of_the_file_meanwhile_keeps_the_frames(tmp_path, temp_folder):
    path = tmp_path / "out" / "clip.mp4"
    path.mkdir(parents=True)
    with pytest.raises(VidsparseError) as raised:
        write_video(path, smooth(), fps=16)
    assert list(path.parent.iterdir()) == [path]
    kept_in(temp_folder, raised.value)


def test_when_nothing_can_be_kept_the_error_says_so_and_no_half_file_stays(
    tmp_path, temp_folder, monkeypatch
):
    def save(path, frames):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video, "save_array", save)
    with pytest.raises(VidsparseError, match=r"nor keep its frames in .*system-temp.*No space"):
        write_video(tmp_path / "clip.npy", smooth(), fps=16)
    assert [path.name for path in tmp_path.rglob("*")] == ["system-temp"]


def test_reading_says_when_there_is_no_file_or_no_video(tmp_path):
    with pytest.raises(BadInputError, match=r"there is no file .*none\.mp4"):
        read_video(tmp_path / "none.mp4")
    for name in ("text.mp4", "text.npy"):
        (tmp_path / name).write_text("not a video")
        with pytest.raises(BadInputError, match="cannot be read as a video"):
            read_video(tmp_path / name)


def test_reading_refuses_an_array_that_is_not_raw_frames(tmp_path):
    np.save(tmp_path / "floats.npy", smooth() / 255)
    with pytest.raises(BadInputError, match=r"holds float64.*not raw frames"):
        read_video(tmp_path / "floats.npy")


def test_an_image_keeps_every_pixel_as_png_and_npy(tmp_path):
    frame = smooth(frames=1, height=31, width=33)
    for name in ("image.PNG", "image.npy"):
        check_writable(tmp_path / name, image=True)
        write_image(tmp_path / name, frame)
    with Image.open(tmp_path / "image.PNG") as image:
        assert np.array_equal(np.asarray(image)[None], frame)
    assert np.array_equal(read_video(tmp_path / "image.npy"), frame)


def test_what_is_no_image_or_no_video_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="an image is one frame, got 9"):
        write_image(tmp_path / "image.png", smooth())
    with pytest.raises(BadInputError, match=r"one of \.png, \.npy"):
        check_writable(tmp_path / "image.mp4", image=True)
    with pytest.raises(BadInputError, match=r"one of \.mp4, \.webm, \.npy"):
        write_video(tmp_path / "video.png", smooth(), fps=16)
    assert not list(tmp_path.iterdir())


def moving_grain(frames, height, width):
    """Noise that moves: what x264 looks ahead for."""
    draw = np.random.default_rng(0)
    grain = draw.integers(0, 256, (height + frames, width + 2 * frames, 3), dtype=np.uint8)
    return np.stack([grain[t : height + t, 2 * t : width + 2 * t] for t in range(frames)])


@pytest.mark.parametrize(
    ("suffix", "times", "size"),
    [(".mp4", 12, (33, 128, 192)), (".mp4", 12, (33, 47, 63)), (".webm", 4, (33, 128, 192))],
)
def test_the_same_frames_give_the_same_bytes(tmp_path, suffix, times, size):
    frames, draw = moving_grain(*size), np.random.default_rng(1)
    for number in range(times):
        for length in draw.integers(10_000, 900_000, 5):  # memory that is not all zeros
            draw.integers(0, 256, length, dtype=np.uint8)
        write_video(tmp_path / f"{number}{suffix}", frames, fps=16)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    with av.open(tmp_path / f"0{suffix}") as container:
        assert isinstance(container, InputContainer)
        assert "creation_time" not in container.metadata


def test_x264_is_told_to_leave_nothing_to_chance(tmp_path):
    """x264 writes its settings into the stream."""
    write_video(tmp_path / "clip.mp4", smooth(2, 480, 480), fps=16)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert b" threads=1 lookahead_threads=1 " in content
    assert b" mbtree=0 " in content


HOSTILE = (
    "a cat", "", "猫 é", 'quote " \' \\ <script>', "line\none\r\ntwo\u2028", "\x00\x07\x1b[31mred",
    "lone \ud800 surrogate", "; title=x", "=SUM(A1)", "long " * 40_000,
)  # fmt: skip


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
def test_a_video_says_how_it_was_made_whatever_the_prompt(tmp_path, suffix, prompt):
    about = {"prompt": prompt, "seed": 3, "preset": "draft", "vidsparse": "0.1.0"}
    write_video(tmp_path / f"clip{suffix}", smooth(3), fps=16, about=about)
    with av.open(tmp_path / f"clip{suffix}") as container:
        assert isinstance(container, InputContainer)
        said = {name.lower(): value for name, value in container.metadata.items()}
    assert json.loads(said["comment"]) == about
    assert said.get("title", "").isprintable()
    assert len(said.get("title", "")) <= 200
    assert read_video(tmp_path / f"clip{suffix}").shape == smooth(3).shape


@pytest.mark.parametrize("prompt", HOSTILE, ids=range(len(HOSTILE)))
def test_an_image_says_how_it_was_made_whatever_the_prompt(tmp_path, prompt):
    about = {"prompt": prompt, "seed": 3, "preset": None}
    write_image(tmp_path / "image.png", smooth(1), about=about)
    with Image.open(tmp_path / "image.png") as image:
        image.load()
        assert json.loads(image.info["Comment"]) == about
        assert np.array_equal(np.asarray(image)[None], smooth(1))


LIMITED = """
import resource, sys
import numpy as np
from vidsparse.errors import VidsparseError
from vidsparse.pipelines.running import video

resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
for path in sys.argv[1:]:
    number = 1 if "image" in path else 9
    frames = np.random.default_rng(0).integers(0, 256, (number, 96, 128, 3), dtype=np.uint8)
    write = video.write_image if number == 1 else lambda *a: video.write_video(*a, 16)
    try:
        write(path, frames)
    except VidsparseError as error:
        print(error)
"""


def test_where_the_system_takes_no_more_bytes_path_and_cause_are_said(tmp_path):
    (tmp_path / "out").mkdir()
    names = ["clip.mp4", "clip.webm", "clip.npy", "image.png", "image.npy"]
    paths = [tmp_path / "out" / name for name in names]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths],
        env=os.environ | {"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for path, said in zip(paths, done.stdout.splitlines(), strict=True):
        assert said.startswith(f"cannot write {path} (File too large), nor keep its frames")
        assert "File too large" in said.partition("nor keep")[2]
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
