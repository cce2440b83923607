"""Every kernel engine at real shapes, beside dense attention: ``vidsparse bench kernels``.

    python benchmarks/kernels.py -o benchmarks/results/kernels_h200.json

A script so that it runs from a checkout without an install, as on a bare GPU machine.
"""

import sys

from vidsparse.cli import run

if __name__ == "__main__":
    sys.exit(run(["bench", "kernels", *sys.argv[1:]]))
