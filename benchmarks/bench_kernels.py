"""Every kernel engine at real shapes, beside dense attention: ``vidsparse bench kernels``.

    python benchmarks/bench_kernels.py -o benchmarks/results/kernels_h200.json

A script so that it runs from a checkout without an install, as on a bare GPU machine. Not named
kernels.py: started from its folder, it would hide Hugging Face's package of that name.
"""

import sys

from vidsparse.cli import run

if __name__ == "__main__":
    sys.exit(run(["bench", "kernels", *sys.argv[1:]]))
