import pytest

from vidsparse.cli.compare import read_seeds
from vidsparse.cli.options import whole_numbers
from vidsparse.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,,2", "takes numbers from 0"),
        ("-1", "takes numbers from 0"),
        ("²", "takes numbers from 0"),
        ("٣", "takes numbers from 0"),
        ("9" * 5000, "takes numbers from 0"),
        (",".join(map(str, range(6000))), "takes at most 1,000 numbers, got 6,000"),
    ],
)
def test_numbers_without_limits_are_refused(text, message):
    with pytest.raises(BadInputError, match=f"--seeds {message}"):
        read_seeds(text, 0)


def test_numbers_with_commas_between_are_read():
    assert whole_numbers("--layers", " 3, 0,3") == [3, 0, 3]
