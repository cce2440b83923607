"""A comparison that was never run: small moving clips, one of them identical to dense."""

import numpy as np
import pytest

from vidsparse.metrics.report.results import Results

FRAMES, HEIGHT, WIDTH, STEPS, LAYERS, HEADS = 12, 48, 64, 6, 4, 3
PROMPTS = ['a red ball <script>alert(1)</script> & "more"', "=SUM(A1) | a blue ball"]
PRESETS = ("balanced", "draft", "radial")


def clip(seed, noise):
    """A ball that moves, with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = np.full((FRAMES, HEIGHT, WIDTH, 3), (150, 180, 220), np.uint8)
    for t in range(FRAMES):
        frames[t][(x - 8 - 4 * t) ** 2 + (y - 24) ** 2 < 80] = (200, 40, 40)
    rough = rng.normal(0, noise, frames.shape) if noise else 0
    return (frames + rough).clip(0, 255).round().astype(np.uint8)


def stages(total, attention):
    return {
        "text_encoder": 0.2, "attention": attention, "planning": 0.1 * attention,
        "other": total - 0.5 - 1.1 * attention, "vae": 0.3, "total": total,
    }  # fmt: skip


def make_clip(folder, preset, prompt_index, seed):
    at = PRESETS.index(preset)
    identical = preset == "radial" and (prompt_index, seed) == (0, 0)
    noise = 0 if identical else 4 + 5 * at + 2 * seed + prompt_index
    name = f"clips/{prompt_index}-{seed}"
    (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / name / "dense.npy", clip(seed, 0))
    np.save(folder / name / f"{preset}.npy", clip(seed, noise))
    psnr = None if identical else 38.0 - noise
    density = 0.6 - 0.1 * at
    return {
        "preset": preset, "prompt_index": prompt_index, "seed": seed,
        "seconds": 6.0 - at + 0.2 * seed, "dense_seconds": 9.0,
        "mean_density": density, "dense_steps_share": 1 / 6,
        "sigmas": [1 - s / STEPS for s in range(STEPS)],
        "density": [[None if (r, c) == (3, 5) else 1.0 if c == 0 else density - 0.02 * r
                     for c in range(STEPS)] for r in range(LAYERS)],
        "head_density": [[density + 0.05 * h for h in range(HEADS)] for _ in range(LAYERS)],
        "attention_error": [] if at else [[0.01 * c for c in range(STEPS)] for _ in range(LAYERS)],
        "step_latent_error": [0.01 * s * noise for s in range(STEPS)],
        "engines": {"cpu": 40}, "fallbacks": {"too short": 2} if at == 2 else {}, "notes": [],
        "time": stages(6.0 - at, 2.0 - 0.5 * at), "dense_time": stages(9.0, 5.0),
        "identical": identical,
        "scores": {"psnr": psnr, "psnr_worst_frame": None if psnr is None else psnr - 3,
                   "ssim": 1.0 if identical else 0.9 - 0.02 * at,
                   "proxy/motion_smoothness": 0.97, "proxy/motion_smoothness@dense": 0.98},
        "curves": {"psnr": [None if psnr is None else psnr + np.sin(f) for f in range(FRAMES)],
                   "ssim": [0.9 for _ in range(FRAMES)]},
        "frames": {"dense": f"{name}/dense.npy", "sparse": f"{name}/{preset}.npy"},
    }  # fmt: skip


def summary(clips, preset):
    own = [c for c in clips if c["preset"] == preset]
    finite = [c["scores"]["psnr"] for c in own if c["scores"]["psnr"] is not None]

    def score(mean, spread, identical=0):
        return {"mean": mean, "low": mean - spread, "high": mean + spread,
                "prompts": 2, "clips": 4, "identical": identical}  # fmt: skip

    speed = 9.0 / own[0]["seconds"]
    others = [p for p in PRESETS if p > preset]
    return {
        "preset": preset, "speedup": {"median": speed, "low": speed - 0.1, "high": speed + 0.1},
        "mean_density": own[0]["mean_density"], "dense_steps_share": 1 / 6,
        "asked_mean_density": 0.35 if preset == PRESETS[0] else None,
        "scores": {"psnr": score(float(np.mean(finite)), 1.5, 4 - len(finite)),
                   "ssim": score(0.88, 0.01),
                   "psnr_worst_frame": score(25.0, 2.0),
                   "proxy/motion_smoothness": score(0.97, 0.01),
                   "proxy/motion_smoothness@dense": score(0.98, 0.01)},
        "against_next": [{"other": o, "metric": "psnr", "difference": 2.5, "low": None,
                          "high": None, "verdict": "not distinguishable"} for o in others],
        "gain": {"attention_share": 0.55, "ideal": 1.6, "limit": 2.2, "achieved": speed,
                 "kernel_efficiency": 0.8},
        "sentence": f"{speed:.2f}x as fast as dense at PSNR {np.mean(finite):.1f} dB",
    }  # fmt: skip


def metric(name, label, tier="exact", better="higher", stands_in_for=None):
    return {"id": name, "label": label, "unit": "dB" if "psnr" in name else "", "better": better,
            "tier": tier, "stands_in_for": stands_in_for, "caveat": f"About {label}."}  # fmt: skip


def made_up(folder, cases=((0, 0), (0, 1), (1, 0), (1, 1))):
    """The results, and the frames they name."""
    clips = [make_clip(folder, p, *case) for case in cases for p in PRESETS]
    metrics = [
        metric("psnr", "PSNR"), metric("psnr_worst_frame", "PSNR of the worst frame"),
        metric("ssim", "SSIM"),
        metric("proxy/motion_smoothness", "motion smoothness by DIS", "stand-in",
               "closer to dense", "vbench/motion_smoothness"),
    ]  # fmt: skip
    return Results.model_validate({
        "schema_version": 1, "created": "2026-11-23T12:00:00+00:00",
        "command": "vidsparse compare '</pre><script>alert(2)</script>' --preset balanced",
        "model": "tiny", "device": "cpu", "gpu": None, "dtype": "float32", "engine": "cpu",
        "versions": {"torch": "2.13.0"},
        "video": {"frames": FRAMES, "height": HEIGHT, "width": WIDTH, "fps": 12.0,
                  "grid": "3x6x8", "tokens": 144},
        "steps": STEPS, "guidance": 4.0, "prompts": PROMPTS, "seeds": [0, 1],
        "schedule_note": "dense in the first 5% of the run", "dense_engines": {"diffusers": 1.5},
        "noise_floor": {"psnr": 41.0, "identical": False, "how": "dense by another engine"},
        "presets": [{"name": p, "summary": f"What {p} does", "source": "a paper",
                     "parameters": {"density": 0.3, "p": None}} for p in PRESETS],
        "metrics": {m["id"]: m for m in metrics}, "clips": clips,
        "summary": [summary(clips, p) for p in PRESETS],
    })  # fmt: skip


@pytest.fixture(scope="session")
def make_results():
    return made_up


@pytest.fixture
def results(tmp_path):
    return made_up(tmp_path)
