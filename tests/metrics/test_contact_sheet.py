"""The contact sheet shows the right frames, whole, under legible labels."""

from collections import Counter

import numpy as np
import pytest

from vidsparse.errors import BadInputError
from vidsparse.metrics.report.contact_sheet import PAPER, contact_sheet

SIZE = 160  # drawn at its own size


def numbered(frames=25, size=SIZE, offset=0):
    """A clip whose frame ``t`` is the flat colour ``(8 t + offset, 9, 77)``."""
    clip = np.full((frames, size, size, 3), (0, 9, 77), np.uint8)
    clip[..., 0] = (8 * np.arange(frames) + offset)[:, None, None]
    return clip


def patches(sheet):
    """Map each row of drawn frames, as the red values from left to right, to its height."""
    pixels = np.asarray(sheet)
    inside = (pixels[..., 1] == 9) & (pixels[..., 2] == 77)
    lines = [list(dict.fromkeys(pixels[y, inside[y], 0].tolist())) for y in range(len(pixels))]
    return dict(Counter(tuple(line) for line in lines if line))


def test_frames_are_evenly_spaced_with_the_first_and_the_last():
    sheet = contact_sheet({"dense": numbered()}, columns=5)
    assert patches(sheet) == {tuple(8 * t for t in (0, 6, 12, 18, 24)): SIZE}


def test_a_short_clip_shows_each_frame_once():
    assert patches(contact_sheet({"dense": numbered(3)}, columns=6)) == {(0, 8, 16): SIZE}


def test_clips_stand_below_each_other_in_the_order_given():
    rows = patches(contact_sheet({"b": numbered(2, offset=1), "a": numbered(2)}, columns=2))
    assert list(rows) == [(1, 9), (0, 8)]


def test_the_difference_row_is_four_times_the_largest_channel_difference_and_saturates():
    reference, other = numbered(2), numbered(2, offset=10)
    other[1, ..., 1] = 109  # 100 levels off: 4 x 100 does not fit
    clips = {"dense": reference, "draft": other}
    shown = np.asarray(contact_sheet(clips, difference=True))
    for level in (40, 255):
        assert (shown == level).all(axis=-1).sum() == SIZE * SIZE
    assert len(shown) > len(np.asarray(contact_sheet(clips))) + SIZE


def test_the_first_clip_has_no_difference_row():
    alone = contact_sheet({"dense": numbered(2)}, difference=True)
    assert alone.size == contact_sheet({"dense": numbered(2)}).size


def test_label_title_and_frame_numbers_are_drawn_dark_on_light():
    def ink(label, title=None):
        pixels = np.asarray(contact_sheet({label: numbered(1)}, title=title))
        return int((pixels.max(axis=-1) < 130).sum()) - SIZE * SIZE

    bare = ink("")
    assert bare > 20  # "frame 0"
    assert ink("dense") > bare + 50
    assert ink("", title="a red circle") > bare + 100
    assert min(PAPER) > 230


def test_a_label_wider_than_its_frames_widens_the_sheet_instead_of_being_cut():
    narrow = contact_sheet({"dense": numbered(1)})
    wide = contact_sheet({"a label that goes on " * 5: numbered(1)})
    assert wide.width > 2 * narrow.width
    assert (np.asarray(wide)[:, -15:] == PAPER).all()


@pytest.mark.parametrize(("size", "drawn"), [(16, 128), (100, 200), (160, 160), (640, 320)])
def test_tiny_frames_are_enlarged_and_large_ones_reduced(size, drawn):
    (count,) = patches(contact_sheet({"dense": numbered(1, size=size)})).values()
    assert count == drawn


def test_clips_of_different_shapes_are_refused_naming_each():
    with pytest.raises(BadInputError, match=r"'dense' \(3, .*'draft' \(2, "):
        contact_sheet({"dense": numbered(3), "draft": numbered(2)})


def test_frames_that_are_not_raw_are_refused_naming_the_clip():
    with pytest.raises(BadInputError, match=r"'dense'.*float64"):
        contact_sheet({"dense": numbered(2) / 255})


def test_a_sheet_without_clips_or_columns_is_refused():
    with pytest.raises(BadInputError, match="0 clips"):
        contact_sheet({})
    with pytest.raises(BadInputError, match="0 columns"):
        contact_sheet({"dense": numbered(2)}, columns=0)
