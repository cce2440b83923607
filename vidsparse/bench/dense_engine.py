"""The best dense run: self-attention by the fastest dense engine that is here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vidsparse.comparison.baselines import PLAIN, dense_calls
from vidsparse.metrics.report.words import STOCK
from vidsparse.pipelines import parallel, taps
from vidsparse.pipelines.call import AttentionRequest, Dense, DenseOf, Layer
from vidsparse.pipelines.compiled import make_handle
from vidsparse.pipelines.recompute import Turn
from vidsparse.pipelines.undo import Undo
from vidsparse.preset import Preset
from vidsparse.presets import PRESETS

BEST_DENSE = "best dense"


def dense_preset() -> Preset:
    """A preset that is dense at every step: a session then does no more than drop empty masks."""
    always = {"density": 1.0, "warmup": 1.0, "ramp_until": 1.0}
    return dataclasses.replace(PRESETS["balanced"].override(always), name=BEST_DENSE)


class DenseEngine:
    """Lets an engine compute what layers in a session compute densely.

    Args:
        layers: Self-attention modules, each in a session.
        engine: A name of ``time_dense_engines``; ``diffusers`` changes nothing.
    """

    def __init__(self, layers: list[nn.Module], engine: str) -> None:
        self._undo = Undo()
        self._kept = []
        for module in layers if engine != STOCK else ():
            inner = taps.layer_of(module)
            assert inner is not None
            self._kept.append(_ByEngine(module, inner, engine))
            taps.attach(module, self._kept[-1], self._undo)

    def __enter__(self) -> DenseEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.run()


class _ByEngine:
    """A layer of a session whose dense calls, where they have no mask, are an engine's."""

    def __init__(self, module: nn.Module, inner: Layer, engine: str) -> None:
        self.handle = make_handle(self)
        self._module, self._inner, self._engine = module, inner, engine

    @property
    def parallel_config(self) -> Any:
        """How diffusers splits the sequence over devices; None where it does not."""
        return parallel.config_of(self._module)

    @property
    def turn(self) -> Turn | None:
        """What the latest attention call decided."""
        return self._inner.turn

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: DenseOf,
        parallel_config: Any,
    ) -> Tensor:  # fmt: skip
        """Attend as the session's layer does, dense calls by the engine."""

        def by_engine(config: Any) -> Dense:
            return lambda q, k, v, mask: (
                dense(config)(q, k, v, mask) if mask is not None else self._call(q, k, v)
            )

        return self._inner.attend(q, k, v, request, by_engine, parallel_config)

    def attend_as(
        self, turn: Turn, q: Tensor, k: Tensor, v: Tensor, request: AttentionRequest, dense: Dense
    ) -> Tensor:
        """Attend again as an earlier call decided; nobody trains here."""
        return self._inner.attend_as(turn, q, k, v, request, dense)

    def _call(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls: dict[str, Callable[[], Any]] = dense_calls(*(x.transpose(1, 2) for x in (q, k, v)))
        made = calls[self._engine if self._engine in calls else PLAIN]()
        return (made[0] if isinstance(made, tuple) else made).transpose(1, 2)
