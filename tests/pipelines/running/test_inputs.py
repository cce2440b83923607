"""What pipelines of diffusers take beside the prompt, and the size that follows from it."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from vidsparse.comparison.fingerprint import of_run
from vidsparse.errors import BadInputError
from vidsparse.pipelines.running.checkpoints import Checkpoint
from vidsparse.pipelines.running.generate import TOLD, Request
from vidsparse.pipelines.running.geometry import Geometry
from vidsparse.pipelines.running.given import arguments_for, size_from
from vidsparse.pipelines.running.inputs import inputs_of, makes_images
from vidsparse.pipelines.running.pictures import InputFile, look_at, picture, pictures
from vidsparse.pipelines.running.video import write_video


def nothing_of(kind):
    """A pipeline without components: its class is all that is asked."""
    return object.__new__(getattr(diffusers, kind))


TAKES = {  # what of the roles each takes, needed with !; the default of its strength
    "WanPipeline": ("", None),
    "WanImageToVideoPipeline": ("image! last-image", None),
    "WanVideoToVideoPipeline": ("video!", 0.8),
    "WanVACEPipeline": ("image video mask", None),
    "HunyuanVideoImageToVideoPipeline": ("image!", None),
    "HunyuanVideo15ImageToVideoPipeline": ("image!", None),
    "HunyuanVideoFramepackPipeline": ("image! last-image", None),
    "LTXPipeline": ("", None),
    "LTXImageToVideoPipeline": ("image", None),
    "LTXConditionPipeline": ("image last-image video", 1.0),
    "LTX2ConditionPipeline": ("image last-image video", 1.0),
    "CogVideoXImageToVideoPipeline": ("image!", None),
    "CogVideoXVideoToVideoPipeline": ("video!", 0.8),
    "CogVideoXFunControlPipeline": ("control", None),
    "FluxPipeline": ("", None),
    "FluxImg2ImgPipeline": ("image!", 0.6),
    "FluxFillPipeline": ("image! mask!", 1.0),
    "FluxKontextPipeline": ("image", None),
    "FluxControlPipeline": ("control", None),
    "QwenImageEditPipeline": ("image", None),
    "QwenImageEditPlusPipeline": ("image", None),
    "QwenImageInpaintPipeline": ("image! mask!", 0.6),
    "JoyImageEditPlusPipeline": ("image", None),
}


@pytest.mark.parametrize("kind", TAKES)
def test_a_pipeline_takes_what_the_signature_of_its_call_says(kind):
    found, (roles, strength) = inputs_of(nothing_of(kind), told=TOLD), TAKES[kind]
    assert " ".join(slot.role + "!" * slot.needed for slot in found.slots) == roles
    assert found.strength == strength
    assert found.others == ()
    assert makes_images(nothing_of(kind)) == kind.startswith(("Flux", "Qwen", "Joy"))


def test_a_pipeline_that_needs_more_is_refused_with_what():
    found = inputs_of(nothing_of("WanAnimatePipeline"), told=TOLD)
    with pytest.raises(BadInputError, match="also needs pose_video, face_video, for which"):
        found.check("WanAnimatePipeline", {"image"})


def file(role, frames, height, width, **changes):
    facts: dict[str, Any] = {"path": Path("a"), "sha256": "", "is_image": frames == 1} | changes
    return InputFile(role=role, frames=frames, height=height, width=width, **facts)


def checkpoint(kind, **size):
    return Checkpoint(source="a", inputs=inputs_of(nothing_of(kind)), pipeline=kind, **size)


WAN: dict[str, Any] = {"frames": 81, "height": 480, "width": 832}


@pytest.mark.parametrize(
    ("kind", "files", "asked", "expected"),
    [
        ("WanImageToVideoPipeline", [file("image", 1, 300, 200)], {}, (None, 288, 192)),
        ("WanImageToVideoPipeline", [file("image", 1, 2000, 1000)], {}, (None, 880, 432)),
        ("WanImageToVideoPipeline", [file("image", 1, 2000, 1000)], {"width": 96}, (None, 192, 96)),
        ("WanImageToVideoPipeline", [file("image", 1, 2000, 1000)], {"height": 32, "width": 64},
         (None, 32, 64)),
        ("WanImageToVideoPipeline", [file("image", 1, 10, 10)], {}, (None, 16, 16)),
        ("WanVideoToVideoPipeline", [file("video", 40, 96, 64)], {}, (37, 96, 64)),
        ("WanVideoToVideoPipeline", [file("video", 40, 96, 64)], {"frames": 9}, (9, 96, 64)),
        ("WanVACEPipeline", [file("video", 200, 96, 64)], {}, (81, 96, 64)),
        ("WanVACEPipeline", [file("video", 50, 96, 64), file("mask", 30, 8, 8)], {}, (29, 96, 64)),
        ("WanVACEPipeline", [file("video", 50, 96, 64), file("mask", 1, 8, 8)], {}, (49, 96, 64)),
        ("WanVACEPipeline", [file("image", 1, 96, 64)], {}, (None, None, None)),
        ("LTXConditionPipeline", [file("video", 9, 96, 64)], {}, (None, 96, 64)),
    ],
)  # fmt: skip
def test_a_size_that_is_left_out_is_that_of_the_input(kind, files, asked, expected):
    size = {"frames": None, "height": None, "width": None} | asked
    found = size_from(checkpoint(kind, **WAN), files, **size)
    assert tuple(found.values()) == expected


def test_a_model_without_a_size_of_its_own_takes_all_of_the_input():
    geometry = Geometry(temporal=None, size_multiple=16)
    model = Checkpoint(
        source="a", inputs=inputs_of(nothing_of("FluxImg2ImgPipeline")), geometry=geometry
    )
    found = size_from(model, [file("image", 1, 3000, 2000)], frames=None, height=None, width=None)
    assert found == {"frames": None, "height": 2992, "width": 2000}


def request(**changes):
    size: dict[str, Any] = {"frames": 9, "height": 32, "width": 48, "steps": 4, "guidance": 1.0}
    return Request(prompt="changed", **(size | changes))


@pytest.fixture
def given(tmp_path):
    """An image, a video and a mask, looked at."""
    draw = np.random.default_rng(0)
    frames = draw.integers(0, 256, (11, 16, 24, 3), dtype=np.uint8)
    write_video(tmp_path / "video.mp4", frames, 8)
    np.save(tmp_path / "video.npy", frames)
    Image.fromarray(frames[0]).save(tmp_path / "image.png")
    return tmp_path


def test_conditions_are_objects_of_the_class_that_the_call_names(given):
    files = (
        look_at("image", given / "image.png"),
        look_at("last-image", given / "image.png"),
        look_at("video", given / "video.mp4"),
    )
    asked = request(inputs=files, strength=0.5)
    first = arguments_for(nothing_of("LTXConditionPipeline"), asked)["conditions"]
    assert [type(each).__name__ for each in first] == ["LTXVideoCondition"] * 3
    assert [each.frame_index for each in first] == [0, 8, 0]
    assert [each.strength for each in first] == [0.5] * 3
    assert [each.video and len(each.video) for each in first] == [None, None, 9]
    second = arguments_for(nothing_of("LTX2ConditionPipeline"), asked)["conditions"]
    assert [each.index for each in second] == [0, -1, 0]
    assert len(second[2].frames) == 9


def test_frames_are_brought_to_the_size_that_is_made_and_images_left_as_they_are(given):
    files = tuple(
        look_at(role, given / name)
        for role, name in (("image", "image.png"), ("video", "video.mp4"), ("mask", "image.png"))
    )
    found = arguments_for(nothing_of("WanVACEPipeline"), request(inputs=files))
    assert found.keys() == {"reference_images", "video", "mask"}
    assert [each.size for each in found["reference_images"]] == [(24, 16)]
    assert [each.size for each in found["video"]] == [(48, 32)] * 9
    assert found["mask"] == [found["mask"][0]] * 9


def test_a_file_is_what_it_is_however_it_is_stored(given):
    video, raw = look_at("video", given / "video.mp4"), look_at("video", given / "video.npy")
    assert (video.frames, video.height, video.width, video.fps) == (11, 16, 24, 8)
    assert (raw.frames, raw.height, raw.width, raw.fps) == (11, 16, 24, None)
    assert len(pictures(raw, 3, None)) == 3
    assert np.array_equal(np.asarray(pictures(raw, 3, None)[2]), np.load(given / "video.npy")[2])
    turned = Image.open(given / "image.png")
    turned.getexif()[0x0112] = 6  # a phone held upright
    turned.save(given / "turned.jpg", exif=turned.getexif())
    upright = look_at("image", given / "turned.jpg")
    assert (upright.height, upright.width) == (24, 16)
    assert picture(upright).size == (16, 24)


def test_a_file_that_is_broken_is_refused(given):
    (given / "cut.mp4").write_bytes((given / "video.mp4").read_bytes()[:200])
    with pytest.raises(BadInputError, match=r"--video .*cut\.mp4 cannot be read as a video"):
        look_at("video", given / "cut.mp4")
    (given / "cut.png").write_bytes((given / "image.png").read_bytes()[:100])
    with pytest.raises(BadInputError, match=r"--image .*cut\.png cannot be read as an image"):
        look_at("image", given / "cut.png")


def test_finished_work_is_of_the_files_content_and_strength(given):
    before = of_run({}, request(inputs=(look_at("image", given / "image.png"),)), None)
    Image.new("RGB", (24, 16)).save(given / "other.png")
    (given / "copy.png").write_bytes((given / "image.png").read_bytes())
    same = of_run({}, request(inputs=(look_at("image", given / "copy.png"),)), None)
    other = of_run({}, request(inputs=(look_at("image", given / "other.png"),)), None)
    assert before == same
    assert [key for key in before if before[key] != other[key]] == ["inputs"]
    assert of_run({}, request(strength=0.5), None) != of_run({}, request(), None)
