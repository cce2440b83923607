"""``doctor`` says how many tokens a block has here, where nobody says."""

import json

import pytest

from vidsparse.pipelines.running import load
from vidsparse.policies.block_size import describe_usual_block


def test_doctor_says_the_rule_for_its_device(cli):
    device = load.resolve_device("auto").partition(":")[0]
    said = describe_usual_block(device)
    assert json.loads(cli("doctor --json").out)["block"] == said
    row = next(line for line in cli("doctor").out.splitlines() if line.startswith("block"))
    assert row.split(maxsplit=1)[1].strip() == said


@pytest.mark.parametrize(("device", "sizes"), [("cpu", ["64"]), ("cuda", ["128", "64", "128"])])
def test_the_rule_names_the_sizes_it_gives(device, sizes):
    words = describe_usual_block(device).replace(",", "").split()
    assert [word for word in words if word in ("64", "128")] == sizes
