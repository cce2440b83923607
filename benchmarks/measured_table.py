"""Turn records of ``vidsparse bench kernels`` into the table by which ``auto`` chooses an engine.

    python benchmarks/measured_table.py benchmarks/results/kernels_h200.json \
        benchmarks/results/blocks_*_h200.json --arch 9.0 -o kernels/measured.json

For each head_dim and block size: the mean TFLOP/s of every engine at densities 0.05 to 0.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path


def main() -> None:
    args = parse()
    speeds: dict[tuple[int, int, int], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for path in args.records:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            if "failed" not in row and not row["dense"] and 0.04 <= row["density"] <= 0.6:
                case = row["head_dim"], row["q_block"], row["kv_block"]
                speeds[case][row["engine"]].append(row["tflops"])
    rows = [
        {
            "arch": [int(part) for part in args.arch.split(".")],
            "head_dim": case[0],
            "q_block": case[1],
            "kv_block": case[2],
            "tflops": {name: round(statistics.mean(v), 1) for name, v in sorted(engines.items())},
        }
        for case, engines in sorted(speeds.items())
    ]
    sources = [path.name for path in args.records]
    record = {"from": sources, "what": "mean TFLOP/s at densities 0.05 to 0.5", "rows": rows}
    args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--arch", required=True, help="compute capability, such as 9.0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
