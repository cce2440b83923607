"""The numbers of the pages' tables are those of the records that the pages link to."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import pytest
from scipy import stats

from vidsparse.cli.plan_nearer import PSNR
from vidsparse.forecast import forecast
from vidsparse.grid import TokenGrid
from vidsparse.metrics.report.results import read_results
from vidsparse.pipelines.models import MODELS
from vidsparse.presets import PRESETS
from vidsparse.run_time import predict
from vidsparse.step_time import Shapes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RUNGS = {
    "quality": ("ladder_rungs", "quality"),
    "semantic": ("ladder_rungs", "semantic"),
    "balanced": ("ladder_corrected", "balanced"),
    "fast": ("ladder_corrected", "fast"),
    "turbo": ("ladder_corrected", "turbo"),
}
FAMILIES = {
    "clusters": "clusters",
    "boxes of 128, means": "tiles 128, means",
    "boxes of 64": "tiles 64",
    "boxes of 128": "tiles 128",
    "draft, 64": "draft 64",
    "draft, 128": "draft 128",
}


def record(name, machine="h200"):
    return json.loads((RESULTS / f"{name}_{machine}.json").read_text())["rows"]


def clips(name):
    """The rows of a record of fidelity, by candidate and the density that was asked for."""
    return {(row["candidate"], row["asked"]): row for row in record(name)}


def psnr(row):
    """As the pages write it: the mean, and half of its 95 % t-interval."""
    each = row["psnr_each"]
    half = stats.t.ppf(0.975, len(each) - 1) * stdev(each) / len(each) ** 0.5
    return f"{mean(each):.1f} ± {half:.1f}"


def table_after(page, words):
    """The first table after some words: its cells by the first one of each row, and its head."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert words in text
    lines = text.partition(words)[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" *`") for cell in line.strip("|").split("|")])
    head, _, *body = rows
    return head[1:], {row[0]: row[1:] for row in body}


@pytest.mark.parametrize("rung", RUNGS)
def test_the_ladder_of_the_readme(rung):
    _, rows = table_after("README.md", "Four rungs")
    cells = next(cells for name, cells in rows.items() if name.startswith(rung))
    cells = [cell.removesuffix(" †").strip("*") for cell in cells]
    name, candidate = RUNGS[rung]
    row = next(row for row in record(name) if row["candidate"] == candidate)
    assert cells[5:] == [f"{psnr(row)} dB", f"{row['ssim']:.3f}"]
    assert PSNR[rung] == round(mean(row["psnr_each"]), 1)
    together = {row["name"]: row for row in record("pipeline_wan14b_fp8")}
    eight = together.get(f"{rung}-int8")
    if eight is not None:
        assert cells[4] == f"{eight['over_stock']:.2f}x"
    elif rung in ("semantic", "quality"):
        assert cells[4] == f"{everything_together(rung):.2f}x predicted"
    else:
        assert cells[4] == ""
    runs = {run["preset"]: run for run in record("whole_run_wan-14b") if run["mode"] == "eager"}
    runs |= {row["name"]: row for row in record("pipeline_wan14b_clusters")}
    compiled = {
        row["name"]: row
        for name in ("compiled", "clusters_compiled")
        for row in record(f"pipeline_wan14b_{name}")
    }
    if rung != "turbo":
        assert cells[2:4] == [f"{each[rung]['over_stock']:.2f}x" for each in (runs, compiled)]
    else:
        assert "predicted" in cells[2]
        assert cells[3] == ""


def everything_together(rung):
    """How many times as fast as stock ``plan`` says 20 steps of Wan 14B in eight bits are."""
    planned = forecast(PRESETS[rung].override({"precision": "int8"}), TokenGrid(21, 45, 80), 20, 40)
    return predict(planned, wan_14b(), "h200", compiled=True, quantized="fp8").over_stock


def test_whole_runs_of_clusters():
    _, rows = table_after("docs/performance.md", "**Clusters**: the 14B at 720p")
    runs = record("pipeline_wan14b_clusters") + record("pipeline_wan14b_clusters_compiled")
    found = [run for run in runs if "preset" in run]
    assert len(rows) == len(found)
    for (name, cells), run in zip(rows.items(), found, strict=True):
        assert run["preset"].partition("-")[0] in name
        assert ("eight bits" in name) == run["preset"].endswith("int8")
        ratios = [f"{run[key]:.2f}x" for key in ("over_stock", "over_best_dense")]
        seconds = [f"{run['seconds']:.2f} s", f"{run['whole_seconds']:.0f} s"]
        assert [cell.strip("*") for cell in cells] == seconds + ratios


def test_calls_of_clusters():
    _, rows = table_after("docs/performance.md", "[numbers](../benchmarks/results/clusters_h200")
    found = record("clusters")
    assert len(rows) == len(found)
    for row in found:
        ms = row["ms"]
        assert rows[row["case"]] == [
            f"{row['density']:.4f}", f"{ms:.1f}", f"{ms / row['density'] / 100:.2f}",
            f"{row['computed']:.2f}", f"{row['int8_ms']:.1f}",
        ]  # fmt: skip


def wan_14b():
    linear = 40 * (6 * 5120**2 + 2 * 5120 * 13_824)
    return Shapes(tokens=75_600, layers=40, heads=40, head_dim=128, linear=linear)


def test_how_many_clusters():
    _, rows = table_after("docs/methods.md", "### How many clusters")
    found, calls = clips("ladder_clusters"), record("ladder_calls_counts")
    assert len(rows) == len({row["candidate"] for row in calls})
    for name, cells in rows.items():
        name = name if "boxes" in name else f"clusters {name}"
        (x0, y0), (x1, y1) = (
            (row["realised"], row["ms"]) for row in calls if row["candidate"] == name
        )
        expected = []
        for density in (0.25, 0.15):
            each = (density - 0.05) / 0.95  # of the steps that are not dense
            ms = y0 + (y1 - y0) / (x1 - x0) * (each - x0)
            expected += [psnr(found[f"{name} {density}", 0.0]), f"{ms:.1f}"]
        assert cells == expected, name


def test_clusters_beside_boxes():
    _, rows = table_after("docs/methods.md", "The rungs beside boxes, from one process")
    found = {row["candidate"]: row for row in record("ladder_filled") + record("ladder_rungs")}
    shifted = {row["candidate"]: row for row in record("ladder_rungs_shift12")}
    runs = {row["name"]: row for row in record("pipeline_wan14b_clusters")}
    assert set(rows) == {"quality", "semantic", "balanced", "semantic` at 0.15", "fast"}
    for label, cells in rows.items():
        name = label.replace("` at", "")
        row, there = found[name], shifted.get(name.replace(" 0.", " ."))
        assert cells[:3] == [f"{row['mean_density']:.2f}", psnr(row), psnr(there) if there else ""]
        assert cells[3] == (f"{runs[label]['over_stock']:.2f}x" if label in runs else "")


def test_how_full_tiles_are():
    _, rows = table_after("docs/methods.md", "### Clusters that fill tiles")
    found = {row["side"]: row for row in record("filled_tiles", "cpu")}
    for name, cells in rows.items():
        row = found[name.partition(",")[0]]
        plain, filled = (
            [
                f"{row[f'empty, {how}']:.1%}",
                f"{row[f'whole, {how}']:.0%}",
                f"{row[f'distance, {how}']:.3f}",
            ]
            for how in ("plain", "filled")
        )
        assert cells == [*plain, f"{row['moved']:.1%}", *filled]


def test_calls_of_filled_clusters():
    _, rows = table_after("docs/performance.md", "; q, k and v are noise)")
    found = {(row["candidate"], row["density"]): row for row in record("ladder_calls_filled")}
    dense = json.loads((RESULTS / "ladder_calls_filled_h200.json").read_text())["dense"]
    names = {"clusters as k-means leaves them": "clusters, ragged", "filled": "clusters"}
    assert len(rows) == 3
    for label, cells in rows.items():
        name = names.get(label, "boxes")
        ms = [found[f"{name}{bits}", at]["ms"] for at in (0.21, 0.06) for bits in ("", ", int8")]
        share = ms[0] / dense["wan-14b-720p"]
        planning = found[name, 0.06]["plan_ms"]
        floats, eight, *rest = (f"{x:.1f}" for x in (*ms, planning))
        assert cells == [floats, f"{share:.1%}", eight, *rest]


def test_what_exact_scores_cost():
    _, rows = table_after("docs/performance.md", "**Exact scores**")
    took = {}
    for row in record("exact_shares"):
        took.setdefault((row["candidate"], row["kernel"]), []).append(row["plan_ms"])
    for name, cells in rows.items():
        preset = re.split("[` ]", name)[0]
        kernels = ("gathered keys, scores in memory", "exact mass")
        assert cells == [f"{mean(took[preset, kernel]):.0f}" for kernel in kernels], preset


def test_calls_of_fewer_clusters():
    page = (ROOT / "docs" / "performance.md").read_text()
    found = {}
    for row in record("ladder_calls_200x1000"):
        found.setdefault(row["candidate"], []).append(row)
    at = {}
    for name, (low, high) in found.items():
        slope = (high["ms"] - low["ms"]) / (high["realised"] - low["realised"])
        at[name] = f"{high['ms'] + slope * (0.21 - high['realised']):.1f}"
    more, fewer = "clusters", "clusters 200 x 1000"
    assert f"filled clusters take {at[more]} ms and in eight bits {at[f'{more}, int8']};" in page
    assert f"200 x 1,000 of them {at[fewer]} and {at[f'{fewer}, int8']}" in page


def test_partial_blocks_beside_whole_ones():
    text = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    found = json.loads((RESULTS / "partial_blocks_h200.json").read_text())
    lists = [f"{found['lists']['times whole'][f'{n}% partial']:.2f}" for n in (10, 50, 100)]
    assert "takes {}, {} and {} times as long".format(*lists) in text
    rules = {row["rule"]: f"{row['times whole']['exact']:.2f}" for row in found["rules"]}
    assert f"are partial, {rules['clear']} and {rules['gna']} times" in text
    assert f"(38% and 26%) {rules['radial']} and {rules['freeswim']} times" in text


def test_the_fidelity_of_clusters_in_eight_bits():
    _, rows = table_after("docs/performance.md", "**Clusters** are near enough to dense")
    found = {row["candidate"]: psnr(row) for row in record("ladder_precision_clusters")}
    for name, cells in rows.items():
        preset = name.partition("`")[2]
        assert cells == [f"{found[f'{preset}, {bits}']} dB" for bits in ("model", "int8")]


def test_the_fidelity_of_filled_clusters_in_eight_bits():
    _, rows = table_after("docs/performance.md", "As they are now, 8 prompts x 2 seeds")
    floats = {row["candidate"]: row for row in record("ladder_rungs")}
    eight = {row["candidate"]: row for row in record("ladder_precision_filled")}
    for name, cells in rows.items():
        preset = name.partition("`")[2]
        pair = floats[preset], eight[f"{preset}, int8"]
        each = [a - b for b, a in zip(*(row["psnr_each"] for row in pair), strict=True)]
        assert cells == [*(f"{psnr(row)} dB" for row in pair), psnr({"psnr_each": each})]


def test_predicted_seconds_beside_measured_ones():
    _, rows = table_after("docs/performance.md", "**Before you measure**")
    shapes = wan_14b()
    for number, (name, steps) in enumerate({"compiled": 50, "fp8": 20}.items()):
        found = {
            row["name"].removesuffix("-int8"): row for row in record(f"pipeline_wan14b_{name}")
        }
        balanced, fast = found["balanced"], found["fast"]
        how = {"compiled": True, "quantized": fast["quantized"]}
        times = []
        for row in (balanced, fast):
            rung, _, precision = row["preset"].partition("-")
            preset = PRESETS[rung].override({"precision": precision or "model"})
            planned = forecast(preset, TokenGrid(21, 45, 80), steps, 40)
            times.append(predict(planned, shapes, "h200", **how))
        dense = (
            times[0].flash if found["best dense"]["engine"] == "flash-attn-4" else times[0].dense
        )
        assert dense is not None
        predicted = {
            "stock": times[0].whole(times[0].stock),
            "best dense": times[0].whole(dense),
            "balanced": times[0].sparse,
            "fast": times[1].sparse,
        }
        for label, cells in rows.items():
            row = found[label.removesuffix(" diffusers")]
            seconds = [row["whole_seconds"], predicted[row["name"].removesuffix("-int8")]]
            shown = [cell.partition(" ")[0] for cell in cells[2 * number : 2 * number + 2]]
            assert shown == [f"{each:.0f}" for each in seconds], (name, label)


def test_the_curves():
    head, rows = table_after("docs/methods.md", "**By mean density**")
    found, compared = clips("ladder_curves"), 0
    for name, cells in rows.items():
        for density, cell in zip(head, cells, strict=True):
            row = found.get((f"{FAMILIES[name]} {density}", 0.0))
            assert cell == ("" if row is None else psnr(row)), (name, density)
            compared += row is not None
    assert compared == len(found)


def test_the_methods():
    _, rows = table_after("docs/methods.md", "**By method**")
    found = clips("ladder_methods")
    assert len(rows) * 2 == len(found)
    for name, cells in rows.items():
        preset = re.split(r"[` ]", name)[0]
        made = [found[preset, level] for level in (0.45, 0.3)]
        expected = [[psnr(r), f"{r['ssim']:.3f}", f"{r['temporal']:.2f}"] for r in made]
        assert cells == expected[0] + expected[1], name


def test_the_presets_under_one_schedule():
    _, rows = table_after("docs/methods.md", "**By preset, at 0.35")
    found = {row["candidate"]: row for row in record("ladder_presets")}
    assert {name.strip("`") for name in rows} == set(found)
    others = [
        {row["candidate"]: row for row in record(f"ladder_presets{level}")} for level in (25, 45)
    ]
    assert all(set(found) <= set(other) for other in others)
    for name, cells in rows.items():
        row = found[name]
        expected = [
            f"{row['mean_density']:.3f}", psnr(row), f"{row['ssim']:.3f}", f"{row['temporal']:.2f}",
            above_draft(name, found),
        ]  # fmt: skip
        for other in others:
            there = other[name]
            expected += [f"{there['mean_density']:.3f}", psnr(there), above_draft(name, other)]
        assert cells == expected, name


PRESETS_AT = [f"ladder_presets_length{level}" for level in (35, 25, 15)]
PARTS = [
    "draft", "draft, delta", "draft, delta, agreed", "draft, proxyattn", "draft, permuted",
    "twilight", "semantic", "semantic, uncorrected", "semantic, delta",
]  # fmt: skip


@pytest.mark.parametrize(
    ("records", "arguments"),
    [
        ([*PRESETS_AT, "ladder_calls_presets"], ["--as-long-as", "draft:0.3,draft:0.25"]),
        (
            [*PRESETS_AT, "ladder_parts_length", "ladder_calls_presets", "ladder_calls_parts"],
            [
                *("--as-long-as", "draft:0.3,draft:0.25,semantic:0.25"),
                *("--beside", "draft,semantic", "--only", ";".join(PARTS)),
            ],
        ),
    ],
    ids=["presets", "parts"],
)
def test_presets_and_parts_at_equal_time(records, arguments):
    files = [RESULTS / f"{name}_h200.json" for name in [*records, "whole_run_wan-14b"]]
    script = ROOT / "benchmarks" / "equal_time.py"
    made = subprocess.run(
        [sys.executable, script, *files, *arguments], capture_output=True, text=True, check=True
    )
    assert made.stdout in (ROOT / "docs" / "methods.md").read_text()


def above_draft(name, found):
    """What a preset gains over ``draft`` in pairs of the same clips, as the page writes it."""
    if name == "draft":
        return ""
    pairs = zip(found[name]["psnr_each"], found["draft"]["psnr_each"], strict=True)
    gained = psnr({"psnr_each": [ours - theirs for ours, theirs in pairs]})
    return gained if gained.startswith("-") else f"+{gained}"


@pytest.mark.parametrize("shift", [3, 12])
def test_the_shifts(shift):
    head, rows = table_after("docs/methods.md", "**By shift of the noise**")
    column = head.index(f"shift {shift}")
    found = {psnr(row) for row in record(f"ladder_shift{shift}")}
    assert {cells[column] for cells in rows.values() if cells[column]} == found


def test_whole_runs():
    head, rows = table_after("docs/performance.md", "## Whole runs")
    models = {"14B": "wan-14b", "A14B": "wan-2.2-a14b", "1.3B": "wan-1.3b"}
    for model, name in models.items():
        column = next(i for i, text in enumerate(head) if f" {model} " in text)
        for run in record(f"whole_run_{name}"):
            if run["mode"] == "eager" and run["preset"] != "stock":
                cells = next(c for n, c in rows.items() if n.startswith(run["preset"]))
                assert cells[column] == f"{run['over_stock']:.2f}x", (model, run["preset"])


def test_two_gpus():
    _, rows = table_after("docs/performance.md", "## Two GPUs")
    runs = record("whole_run_wan-14b_compiled", "h200x2")
    modes = {
        "one GPU": "alone", "two, Ulysses": "ulysses on 2", "two, ring": "ring on 2"
    }  # fmt: skip
    for name, mode in modes.items():
        cells = [cell.strip("*") for cell in rows[name]]
        assert cells == [f"{run['over_stock']:.2f}x" for run in runs if run["mode"] == mode]


def test_the_compiled_runs():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    _, rows = table_after("docs/performance.md", "**With the correction")
    runs = record("pipeline_wan14b_compiled")
    found = [run for run in runs if run["name"] != "without blocks"]
    assert len(rows) == len(found)
    for (name, cells), run in zip(rows.items(), found, strict=True):
        assert run["name"] in name
        assert cells[1] == f"{run['whole_seconds']:.0f} s"
        if "preset" in run:
            assert [cells[2].strip("*"), cells[3].strip("*")] == [
                f"{run[key]:.2f}x" for key in ("over_stock", "over_best_dense")
            ]
            assert f"{run['predicted_seconds']:.0f}" in text


OTHERS = ("hunyuanvideo", "wan1.3b", "qwen_2048", "flux_2048", "ltx2", "ltx_video")


def test_the_other_models():
    _, rows = table_after("docs/performance.md", "**Other models**")
    assert len(rows) == len(OTHERS)
    for (name, cells), model in zip(rows.items(), OTHERS, strict=True):
        found = {row["name"]: row for row in record(f"pipeline_{model}")}
        balanced, fast, dense = found["balanced"], found["fast"], found["best dense"]
        seconds = [f"{row['whole_seconds']:.1f} s" for row in (found["stock"], balanced, fast)]
        assert [cells[2], *cells[4:6]] == seconds, name
        assert cells[3] == f"{dense['whole_seconds']:.1f} s ({dense['engine']})"
        over = [
            f"{row['over_stock']:.2f}x, {row['over_best_dense']:.2f}x" for row in (balanced, fast)
        ]
        assert [cell.replace("*", "") for cell in cells[6:]] == over
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = {row["name"]: row for row in record("pipeline_hunyuanvideo")}
    for rung in ("balanced", "fast"):
        assert f"`{rung}` {found[rung]['over_stock']:.2f}x" in readme
        assert f"{found[rung]['over_best_dense']:.2f}x" in readme


def test_the_run_with_a_cache():
    _, rows = table_after("docs/performance.md", "**Measured with everything else**")
    found = [row for row in record("pipeline_wan14b_cached") if row["name"] != "without blocks"]
    for cells, row in zip(rows.values(), found, strict=True):
        assert cells[0] == f"{row['whole_seconds']:.0f} s"
        assert cells[1].strip("*") in ("1x", f"{row['over_stock']:.2f}x")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`fast` {found[-1]['over_stock']:.2f}x" in readme


def test_tiles_in_turn():
    _, rows = table_after("docs/performance.md", "**Tiles in turn.**")
    found = record("turns")
    for name, (density, *cells) in rows.items():
        for number, kernel in enumerate(("bf16", "int8")):
            row = next(
                row
                for row in found
                if (row["shape"], row["kernel"]) == (name, kernel)
                and f"{row['density']:.2f}" == density
            )
            expected = [f"{row['every_nth_ms']:.1f}", f"{row['in_turn_ms']:.1f}"]
            assert cells[3 * number : 3 * number + 3] == [*expected, f"{row['gain']:.2f}x"]
            assert row["bitwise"]


def test_the_demo_of_the_readme_is_that_of_its_record():
    script = runpy.run_path(str(ROOT / "docs" / "demo_pictures.py"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = read_results(ROOT / script["RECORD"])
    assert script["with_demo"](readme, results) == readme
    assert (ROOT / "docs" / "demo.webp").stat().st_size < 2_000_000


def test_the_readme_counts_the_models():
    assert f"{len(MODELS)} transformers" in (ROOT / "README.md").read_text(encoding="utf-8")
