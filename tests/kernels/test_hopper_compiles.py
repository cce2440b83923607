"""The Hopper kernels compile where there is no GPU, as their launches call them, without spills."""

import itertools

import pytest

EIGHT_BITS = [
    ("low_bit", dim, 128, kv_block) for dim, kv_block in itertools.product((64, 128), repeat=2)
]
CLUSTERS_IN_EIGHT_BITS = [
    ("low_bit_packed", 128, 128, 64),
    ("low_bit_packed", 64, 64, 64),
    ("low_bit_means", 128, 128, 64),
]
SIXTEEN_BITS = [
    ("hopper", 128, 128, 128),
    ("hopper", 64, 64, 64),
    ("observe", 128, 128, 128),
    ("observe", 128, 64, 64),
    ("partial", 128, 128, 128),
    ("partial", 128, 128, 64),
    ("packed", 128, 128, 64),
    ("packed", 64, 64, 64),
    ("means", 128, 128, 64),
]  # what, head_dim, q_block, kv_block


@pytest.fixture(scope="module")
def compiled(run_compiled):
    """Counts of wgmma in what a launch compiles; all are compiled by one process."""
    cases = {
        case: ",".join(map(str, case))
        for case in EIGHT_BITS + CLUSTERS_IN_EIGHT_BITS + SIXTEEN_BITS
    }
    found = run_compiled("compile_for_hopper.py", *cases.values())

    def counts(case):
        seen = found[cases[case]]
        assert isinstance(seen, dict), seen
        assert seen["stack"] <= 16
        assert seen["shared"] <= 227 * 1024
        return seen["wgmma"]

    return counts


@pytest.mark.parametrize("case", EIGHT_BITS, ids=str)
def test_eight_bits(compiled, case):
    found, head_dim = compiled(case), case[1]
    consumers, sites = 2, 3  # the first scores, the first product, the loop
    assert found[".s32.s8.s8"] == consumers * sites * head_dim // 32
    assert found[".f32.e4m3.e4m3"] == consumers * 2 * 128 // 32


@pytest.mark.parametrize("case", CLUSTERS_IN_EIGHT_BITS, ids=str)
def test_clusters_in_eight_bits(compiled, case):
    found, head_dim = compiled(case), case[1]
    consumers, sites = 2, 2  # the first scores, the loop
    assert found[".s32.s8.s8"] == consumers * sites * head_dim // 32
    assert found[".f32.e4m3.e4m3"] == consumers * 128 // 32


@pytest.mark.parametrize("case", SIXTEEN_BITS, ids=str)
def test_sixteen_bits(compiled, case):
    assert compiled(case)[".f32.bf16.bf16"] > 0
