"""Kernels compile for GPUs that are not here, and fit the shared memory that those have.

Consumer cards (3090, 4090, 5090) have 99 KiB for a program where Hopper has 227: a kernel that asks
for more fails at its launch.
"""

import pytest

SHARED_KIB = {80: 163, 86: 99, 89: 99, 100: 227, 120: 99}  # of a program, by compute capability
STACK = 256  # bytes of what registers do not hold


@pytest.mark.parametrize(
    ("arch", "names"),
    [
        (89, ("balanced", "semantic", "adaspa", "backward", "low-bit")),
        (80, ("low-bit",)),
        (86, ("draft", "twilight", "psa", "low-bit")),
        (100, ("draft", "low-bit")),
        (120, ("balanced", "low-bit")),
    ],
    ids=lambda x: x if isinstance(x, int) else "-".join(x),
)
def test_every_launch_has_a_kernel_that_fits(run_compiled, arch, names):
    limits = SHARED_KIB[arch] * 1024, STACK
    found = run_compiled("compile_portable.py", arch, *limits, ",".join(names))
    assert len({name for name, *_ in found}) >= 3
    for name, candidates, fits in found:
        assert fits, f"{name} on sm_{arch}: none of {candidates} is within {limits}"
