"""Turn records of ``vidsparse bench kernels`` into the table by which ``auto`` chooses an engine.

    python benchmarks/measured_table.py benchmarks/results/kernels_h200.json \
        benchmarks/results/blocks_*_h200.json --arch 9.0 -o kernels/measured.json

For each head_dim and block size: the mean TFLOP/s of every engine at densities 0.05 to 0.5. For
each head_dim besides: that of dense attention, by engine; ``model`` is what diffusers calls, cuDNN.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

DENSE = {"cudnn dense": "model", "flash dense": "flash", "triton": "triton"}


def main() -> None:
    args = parse()
    speeds: dict[tuple[int, int, int], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    dense: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in args.records:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if "failed" in row:
                continue
            if row["density"] == 1.0 and row["engine"] in DENSE:
                dense[row["head_dim"]][DENSE[row["engine"]]].append(row["tflops"])
            if not row["dense"] and 0.04 <= row["density"] <= 0.6:
                case = row["head_dim"], row["q_block"], row["kv_block"]
                speeds[case][row["engine"]].append(row["tflops"])
    rows = [
        {
            "arch": [int(part) for part in args.arch.split(".")],
            "head_dim": case[0],
            "q_block": case[1],
            "kv_block": case[2],
            "tflops": means(engines),
        }
        for case, engines in sorted(speeds.items())
    ]
    record = {
        "from": [path.name for path in args.records],
        "what": "mean TFLOP/s at densities 0.05 to 0.5, and of dense attention",
        "rows": rows,
        "dense": [
            {"arch": rows[0]["arch"], "head_dim": head_dim, "tflops": means(engines)}
            for head_dim, engines in sorted(dense.items())
        ],
    }
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


def means(speeds: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(statistics.mean(each), 1) for name, each in sorted(speeds.items())}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--arch", required=True, help="compute capability, such as 9.0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
