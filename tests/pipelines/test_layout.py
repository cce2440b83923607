"""Parts of a batch: padding, stacked guidance, and what a mask says."""

import pytest
import torch

from vidsparse.grid import TokenGrid
from vidsparse.pipelines.layout import Layout, OnlyDense, key_padding

VIDEO = TokenGrid(2, 3, 4)


def layout(
    before=lambda extra, padding: 0, branches=lambda batch: [(slice(None), "cond")], batch=None
):
    return Layout(video=VIDEO, before=before, branches=branches, batch=batch)


def stacked(batch):
    return [(slice(batch // 2, batch), "cond"), (slice(0, batch // 2), "uncond")]


def shape(batch, tokens):
    return torch.Size((batch, tokens, 2, 8))


def test_a_call_without_padding_is_one_part_that_covers_it():
    (part,) = layout().parts(shape(3, 24), None)
    assert part.covers(shape(3, 24))
    assert part.grid == VIDEO


@pytest.mark.parametrize(
    ("prefix", "valid", "grid"),
    [
        (0, range(29), "2x3x4+5"),
        (0, [*range(24), 25, 27], "2x3x4+2"),
        (6, range(2, 30), "4+2x3x4"),
        (6, [0, 1, *range(6, 30)], "2+2x3x4"),
        (3, [0, *range(3, 29)], "1+2x3x4+2"),
    ],
)
def test_padding_is_left_out_wherever_it_stands(prefix, valid, grid):
    taking = torch.zeros(1, 30, dtype=torch.bool)
    taking[:, list(valid)] = True
    (part,) = layout(before=lambda extra, padding: prefix).parts(shape(1, 30), taking)
    assert str(part.grid) == grid
    assert not part.covers(shape(1, 30))
    x = torch.arange(30)[None, :, None, None]
    assert part.take(x).flatten().tolist() == list(valid)
    out = torch.full_like(x, -1)
    part.put(out, part.take(x))
    assert out.flatten().tolist() == [i if i in valid else -1 for i in range(30)]


def test_entries_that_leave_out_padding_are_parts_of_their_branch():
    """Each by itself, whatever those beside it leave out: what it remembers is its own."""
    valid = torch.ones(6, 27, dtype=torch.bool)
    valid[0:3, 25:] = False
    valid[4, 26:] = False
    parts = layout(branches=stacked).parts(shape(6, 27), valid)
    found = [(p.branch, p.sample, p.entries.start, p.entries.stop, str(p.grid)) for p in parts]
    assert found == [
        ("cond", 0, 3, 4, "2x3x4+3"),
        ("cond", 1, 4, 5, "2x3x4+2"),
        ("cond", 2, 5, 6, "2x3x4+3"),
        ("uncond", 0, 0, 1, "2x3x4+1"),
        ("uncond", 1, 1, 2, "2x3x4+1"),
        ("uncond", 2, 2, 3, "2x3x4+1"),
    ]
    alike = layout(branches=stacked).parts(shape(6, 27), torch.ones(6, 27, dtype=torch.bool))
    assert [part.sample for part in alike] == [0, 1, 2] * 2


def test_a_second_call_of_a_layer_for_the_same_entries_is_told_from_the_first():
    assert [layout().parts(shape(2, 24), None, turn)[0].turn for turn in range(3)] == [0, 1, 2]


def test_entries_may_be_asked_for_one_by_one():
    parts = layout().parts(shape(3, 24), None, singly=True)
    assert [(part.sample, part.entries) for part in parts] == [
        (entry, slice(entry, entry + 1)) for entry in range(3)
    ]


def test_a_video_may_begin_where_the_text_of_each_sample_ends():
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[0, 28:] = False
    parts = layout(before=lambda extra, padding: extra - padding).parts(shape(2, 30), valid)
    assert [str(part.grid) for part in parts] == ["4+2x3x4", "6+2x3x4"]


def test_a_model_may_call_attention_for_each_entry_by_itself():
    cut = layout(branches=stacked, batch=4)
    found = [cut.parts(shape(1, 24 + turn), None, turn)[0] for turn in range(4)]
    assert [(part.branch, part.sample, str(part.grid)) for part in found] == [
        ("uncond", 0, "2x3x4"),
        ("uncond", 1, "2x3x4+1"),
        ("cond", 0, "2x3x4+2"),
        ("cond", 1, "2x3x4+3"),
    ]
    assert all(part.covers(shape(1, 24)) for part in found)
    with pytest.raises(OnlyDense, match="more than once for a batch of 4"):
        cut.parts(shape(1, 24), None, 4)


def test_a_whole_batch_is_cut_as_ever_where_entries_may_come_one_by_one():
    parts = layout(branches=stacked, batch=2).parts(shape(2, 24), None)
    assert [(part.branch, part.entries) for part in parts] == [
        ("cond", slice(1, 2)),
        ("uncond", slice(0, 1)),
    ]


def test_masked_video_can_only_be_dense():
    valid = torch.ones(1, 27, dtype=torch.bool)
    valid[:, 5] = False
    with pytest.raises(OnlyDense, match="masks video tokens"):
        layout().parts(shape(1, 27), valid)


def masks_of(valid):
    """The ways in which models say that these keys take part."""
    rows, both = valid[:, None, None], valid[:, None, :, None] & valid[:, None, None, :]
    yield valid
    yield rows
    yield rows.expand(-1, 4, -1, -1)
    yield rows.expand(-1, 1, 7, -1)
    yield rows.expand(-1, 4, 7, -1).contiguous()
    yield both
    yield torch.zeros(rows.shape).masked_fill(~rows, -10_000.0)
    yield torch.zeros(rows.shape).masked_fill(~rows, float("-inf"))


@pytest.mark.parametrize("which", range(8))
def test_padding_is_read_from_every_kind_of_mask(which):
    valid = torch.tensor([[True] * 5 + [False] * 2, [True, False, True, True, True, True, False]])
    mask = list(masks_of(valid))[which]
    assert torch.equal(key_padding(mask, torch.Size((2, 7, 4, 8))), valid)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(7, 7).tril().bool()[None, None], "differs between queries"),
        (torch.eye(7).bool()[None, None], "differs between queries"),
        (torch.rand(1, 1, 1, 7), "adds a bias"),
        (torch.ones(7, 7).bool(), "for each query"),
        (torch.ones(2, 1, 1, 9).bool(), "unknown kind"),
        (object(), "unknown kind"),
    ],
)
def test_a_mask_that_says_more_can_only_be_dense(mask, reason):
    with pytest.raises(OnlyDense, match=reason):
        key_padding(mask, torch.Size((2, 7, 4, 8)))


def test_heads_that_differ_can_only_be_dense():
    mask = torch.ones(2, 4, 1, 7).bool()
    mask[:, 1, :, 3] = False
    with pytest.raises(OnlyDense, match="differs between"):
        key_padding(mask, torch.Size((2, 7, 4, 8)))
