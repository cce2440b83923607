"""What a session did as plain values, for JSON, and in one short line."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidsparse.stats import Stats


def stats_to_dict(stats: Stats) -> dict[str, Any]:
    """Everything that ``Stats`` counts, as values that JSON has.

    Returns:
        ``mean_density`` and ``dense_steps_share`` (None before the first generation); ``steps``
        and ``layers``, each with its mean density; ``calls``, each with its step, layer and branch
        and the ``head_density`` of its heads, one number where all share a plan; ``load`` of those
        whose heads devices share, the work of the busiest over the mean; ``blocks``, tokens in
        one, by token grid; ``plans``, sparse calls by the origin of their plan; ``fallbacks``,
        ``engines``, ``notes``, ``generations``, seconds and bytes.

    Example:
        >>> import torch
        >>> from vidsparse.stats import CallKey, Stats
        >>> stats = Stats()
        >>> stats.record(CallKey(0, 0, "cond"), 0.75, torch.tensor([0.25, 0.5]))
        >>> found = stats_to_dict(stats)
        >>> found["mean_density"], found["steps"]
        (0.375, [{'step': 0, 'sigma': 0.75, 'density': 0.375}])
        >>> found["calls"][0]["head_density"]
        [0.25, 0.5]
    """
    return {
        "generations": stats.generations,
        "mean_density": stats.mean_density if stats.calls else None,
        "dense_steps_share": stats.dense_steps_share if stats.calls else None,
        "steps": [
            {"step": step, "sigma": stats.sigmas.get(step), "density": density}
            for step, density in stats.step_density.items()
        ],
        "layers": [
            {"layer": layer, "density": density} for layer, density in stats.layer_density.items()
        ],
        "calls": [
            asdict(key)
            | {"head_density": heads.flatten().tolist()}
            | ({"load": float(stats.loads[key])} if key in stats.loads else {})
            for key, heads in stats.calls.items()
        ],
        "engines": dict(stats.engines),
        "blocks": dict(stats.blocks),
        "plans": dict(stats.plans),
        "fallbacks": dict(stats.fallbacks),
        "notes": list(stats.notes),
        "attention_seconds": stats.attention_seconds,
        "plan_seconds": stats.plan_seconds,
        "memory_bytes": stats.memory_bytes,
        "host_memory_bytes": stats.host_memory_bytes,
    }


def describe_stats(stats: Stats) -> str:
    """One line without tensors, for ``repr``.

    Example:
        >>> from vidsparse.stats import Stats
        >>> describe_stats(Stats(generations=2))
        'Stats(generations=2, calls=0, engines={}, fallbacks={})'
    """
    parts = [f"generations={stats.generations}", f"calls={len(stats.calls)}"]
    if stats.calls:
        parts.append(f"mean_density={stats.mean_density:.3f}")
    parts += [f"engines={dict(stats.engines)}", f"fallbacks={dict(stats.fallbacks)}"]
    return f"Stats({', '.join(parts)})"
