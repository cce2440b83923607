"""The Hopper kernels compile where there is no GPU, as their launches call them, without spills."""

import pytest


@pytest.fixture
def compiled(run_compiled):
    """Counts of wgmma in what a launch compiles."""

    def run(*what):
        seen = run_compiled("compile_for_hopper.py", *what)
        assert seen["stack"] <= 16
        assert seen["shared"] <= 227 * 1024
        return seen["wgmma"]

    return run


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kv_block", [64, 128])
def test_eight_bits(compiled, head_dim, kv_block):
    found = compiled("low_bit", head_dim, 128, kv_block)
    consumers, sites = 2, 3  # the first scores, the first product, the loop
    assert found[".s32.s8.s8"] == consumers * sites * head_dim // 32
    assert found[".f32.e4m3.e4m3"] == consumers * 2 * 128 // 32


@pytest.mark.parametrize(
    ("what", "head_dim", "q_block", "kv_block"),
    [
        ("hopper", 128, 128, 128),
        ("hopper", 64, 64, 64),
        ("observe", 128, 128, 128),
        ("observe", 128, 64, 64),
        ("partial", 128, 128, 128),
        ("packed", 128, 128, 64),
        ("packed", 64, 64, 64),
        ("means", 128, 128, 64),
    ],
)
def test_sixteen_bits(compiled, what, head_dim, q_block, kv_block):
    found = compiled(what, head_dim, q_block, kv_block)
    assert found[".f32.bf16.bf16"] > 0
