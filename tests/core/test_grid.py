"""Token grids, as they are written and read."""

import pytest

from vidsparse.errors import BadInputError
from vidsparse.grid import TokenGrid


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("21x45x80", TokenGrid(21, 45, 80)),
        (" 21X45X80 ", TokenGrid(21, 45, 80)),
        ("226+13x30x45", TokenGrid(13, 30, 45, prefix=226)),
        ("33x45x80+256", TokenGrid(33, 45, 80, suffix=256)),
        ("7+1x2x3+9", TokenGrid(1, 2, 3, 7, 9)),
    ],
)
def test_a_grid_is_read_from_text(text, grid):
    assert TokenGrid.parse(text) == grid
    assert TokenGrid.parse(str(grid)) == grid


@pytest.mark.parametrize(
    "text", ["", "21x45", "21x45x80x2", "ax2x3", "1x2x3+", "-1x2x3", "1.5x2x3"]
)
def test_text_that_is_no_grid_is_quoted_with_an_example(text):
    with pytest.raises(BadInputError, match=r"cannot read the grid .* as 21x45x80") as error:
        TokenGrid.parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    "sizes", [(0, 1, 1), (1, 0, 1), (1, 1, -2), (1, 1, 1, -1), (1, 1, 1, 0, -1)]
)
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(BadInputError, match="at least one frame, row and column"):
        TokenGrid(*sizes)


def test_tokens_are_text_and_video_together():
    grid = TokenGrid(3, 4, 5, prefix=7, suffix=2)
    assert (grid.frame_tokens, grid.video_tokens, grid.tokens) == (20, 60, 69)
