"""The one operator: schedule, then policy, then kernel, then bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vidsparse.current_gpu import current
from vidsparse.dial import density_or_note
from vidsparse.errors import BadInputError, DenseFallbackError
from vidsparse.gpus import gpu_called, name_of
from vidsparse.grid import TokenGrid
from vidsparse.head_sharing import HeadShare, all_of
from vidsparse.kernels.attention import attention
from vidsparse.kernels.autocast import cast_as_attention, without_autocast
from vidsparse.kernels.dense import MODEL, dense_attention, fastest_dense
from vidsparse.kernels.engines.case import Case
from vidsparse.kernels.engines.table import check_engine, why_gathered
from vidsparse.kernels.planning.permute import unpermute_tokens
from vidsparse.kernels.threads import one_thread
from vidsparse.planner import Planner
from vidsparse.policies.correction import Run
from vidsparse.policies.estimator import Inputs
from vidsparse.policies.policy import Policy
from vidsparse.policies.work import Work
from vidsparse.preset import Dense as DenseSteps
from vidsparse.preset import Precision, Preset
from vidsparse.progress import Progress
from vidsparse.purse import Purse
from vidsparse.run_time import one_layer, why_no_gain
from vidsparse.state import LayerState
from vidsparse.stats import CallKey, Stats, Stopwatch
from vidsparse.training import Take, require_trainable, wants_gradients, work_alone

Dense = Callable[[Tensor, Tensor, Tensor], Tensor]
Observer = Callable[["Call", Work, Tensor, Tensor, Tensor, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Where in a generation an attention call stands.

    Attributes:
        grid: Layout of the sequence; None when the plug-in could not read it.
        layer: Index of the self-attention layer in its transformer, from 0.
        step: Denoising step, from 0.
        sigma: Noise level in [0, 1]; None when unknown.
        progress: Where in its run the step stands; None when unknown.
        layers: How many self-attention layers the transformer has; None when unknown.
        known: Whether somebody said which step this is; if not, the call plans for itself.
        branch: Guidance branch: cond, uncond, or another name.
        expert: Which transformer of the pipeline.
        unsupported: Why the plug-in knows that this call cannot be sparse, in the user's words.
        scale: Score scale; ``head_dim ** -0.5`` when None.
        sample: Which part of the batch this is, where its entries cannot run as one.
        turn: How often the layer has called attention before in this forward call, for the same
            part of the batch.
        share: Which of the layer's heads q, k and v hold, where devices share them; None if all.
        trains: Whether gradients will be asked for, even if not in this very call: nothing of
            other steps is used.
    """

    grid: TokenGrid | None
    layer: int
    step: int
    sigma: float | None = None
    progress: Progress | None = None
    layers: int | None = None
    known: bool = True
    branch: str = "cond"
    expert: str = "transformer"
    unsupported: str | None = None
    scale: float | None = None
    sample: int = 0
    turn: int = 0
    share: HeadShare | None = None
    trains: bool = False

    @property
    def key(self) -> CallKey:
        turn = f"@{self.turn}" if self.turn else ""
        return CallKey(self.step, self.layer, f"{self.expert}/{self.branch}{turn}", self.sample)


class SparseAttention:
    """Sparse attention for one pipeline: ``engine(q, k, v, call, dense) -> out``.

    Attributes:
        observers: Called after every sparse call as ``(call, work, q, k, v, out)``, the tensors
            ``(batch, heads, seq, head_dim)`` in raster order.

    Args:
        preset: What to compute, and when.
        engine: Kernel engine, "auto" or a name in ``kernels.engines.table.ENGINES``.
        strict: Raise instead of falling back to dense.

    Raises:
        BadInputError: For an unknown engine, or one that cannot report what the preset needs.
    """

    def __init__(self, preset: Preset, *, engine: str = "auto", strict: bool = False) -> None:
        engine = _engine_of(preset, engine)
        check_engine(engine, observe=preset.policy.estimator.observes)
        self.preset = preset
        self.engine = engine
        self.strict = strict
        self.stats = Stats()
        self.observers: list[Observer] = []
        self._densities: dict[Hashable, float] = {}
        self._no_gain: dict[Hashable, str | None] = {}
        self._purse: Purse | None = None
        self._planner = Planner(preset.policy, preset.schedule.replan, preset.schedule.budgets)

    @property
    def judges_batches(self) -> bool:
        """Whether one decision is made for all entries of a batch, which then must come singly."""
        return self.preset.schedule.replan > 1 and self.preset.policy.selector.judges_batches

    def start_generation(self) -> None:
        """Forget the generation before: its counts, and what its layers remembered."""
        self.stats.start_generation()
        self._planner.counts.clear()
        self.start_run()

    def start_run(self) -> None:
        """Forget what layers remembered: the generation goes on with another window."""
        self._planner.start_run()
        self._purse = None

    def passed_by(self, call: Call) -> None:
        """Count a call that a model made without asking us, for the reason it is unsupported.

        Raises:
            DenseFallbackError: When the session is strict.
        """
        self._refuse(call.unsupported or "", call)
        self._record(call, torch.ones(1))

    def fall_back_unseen(self, reason: str) -> None:
        """Count a call of which nothing is known but that it was dense.

        Raises:
            DenseFallbackError: When the session is strict.
        """
        if self.strict:
            raise DenseFallbackError(f"{reason}; run without strict to let it be dense")
        self.stats.fallbacks[reason] += 1

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense, take: Take | None = None
    ) -> Tensor:
        """Attend.

        Args:
            q: ``(batch, seq, heads, head_dim)``, as diffusers has it.
            k: ``(batch, seq, heads, head_dim)``.
            v: ``(batch, seq, heads, head_dim)``.
            call: Where in the generation this is.
            dense: The attention the model would have called.
            take: Is told what is decided. One that has been told makes the call what it was then,
                uncounted.

        Returns:
            ``(batch, seq, heads, head_dim)``.

        Raises:
            BadInputError: When gradients are asked for and the preset cannot give them.
            DenseFallbackError: When the session is strict and this call cannot be sparse.
        """
        with current(q.device):
            if take is not None and take.decided:
                return self._again(take, q, k, v, call, dense)
            trains = self._begin(q, k, v, call, take)
            way = self._way(call)
            if self._stays_dense(q, k, call, way):
                return self._dense(q, k, v, call, dense, way, trains)
            q, k, v = cast_as_attention(q, k, v)
            with without_autocast(q):
                with Stopwatch(q.device) as total:
                    with Stopwatch(q.device) as planning, self._quietly(q):
                        work = self._plan(q, k, v, call, way, trains, take)
                    out, besides = self._attending(work, way)()
                    with self._quietly(q):
                        out = self._finished(out, besides, work, call, q)
                self.stats.time(total, planning)
                if q.device.type == "cpu" and (note := why_gathered(self.stats.engines)):
                    self.stats.notes.setdefault(note)
                for observe in self.observers:
                    turned = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
                    observe(call, work, *turned, out)
            return out.transpose(1, 2)

    def _begin(self, q: Tensor, k: Tensor, v: Tensor, call: Call, take: Take | None) -> bool:
        """Check what can be checked before a call; whether it trains."""
        trains = call.trains or wants_gradients(q, k, v)
        if trains:
            require_trainable(self.preset)
        if take is not None:
            take.decided = True
        self._check_memory(q, call)
        self._open_purse(call)
        return trains

    def _dense(
        self, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense, way: float, trains: bool
    ) -> Tensor:
        """A call that stays dense."""
        if way <= 0.0 and not trains:
            self._learn(q, k, v, call)
        own = trains or self._why_dense(q, k, call) is not None
        return dense(q, k, v) if own else self._scheduled(q, k, v, call, dense)

    def _quietly(self, q: Tensor) -> AbstractContextManager[None]:
        """On one thread, where plans are made at every step by drafts: clusters take threads."""
        policy = self.preset.policy
        drafts = policy.order.static and policy.alternatives is None
        return one_thread(q) if drafts and self.preset.schedule.replan == 1 else nullcontext()

    def _learn(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> None:
        """Show a dense step to an order that learns, in layers that will be sparse."""
        order, schedule = self.preset.policy.order, self.preset.schedule
        if not order.learns_while_dense or not call.known or call.layer < schedule.dense_layers:
            return
        if self._why_dense(q, k, call) is not None:
            return
        q, k, v = cast_as_attention(q, k, v)
        with without_autocast(q), torch.no_grad():
            order.learn(replace(self._inputs(q, k, v, call), remember=False))

    def _scheduled(self, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense) -> Tensor:
        """A dense step, by the engine that the preset asks for."""
        typed = [x.transpose(1, 2) for x in cast_as_attention(q, k, v)]
        engine = self._dense_engine(typed[0])
        if engine == MODEL:
            return dense(q, k, v)
        scale = q.shape[-1] ** -0.5 if call.scale is None else call.scale
        with without_autocast(q):
            out = dense_attention(engine, *typed, scale=scale)
        self.stats.engines[engine] += 1
        return out.transpose(1, 2)

    def _dense_engine(self, q: Tensor) -> str:
        if self.preset.precision is not Precision.MODEL:
            return str(self.preset.precision)
        if self.preset.dense is not DenseSteps.FASTEST:
            return str(self.preset.dense)
        engine, why = fastest_dense(Case.of_dense(q))
        if engine == MODEL:
            self.stats.notes[f"dense steps keep the model's own attention: {why}"] = None
        return engine

    def _plan(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: Call,
        way: float,
        trains: bool,
        take: Take | None,
    ) -> Work:
        """Order a call and plan it; dtypes are as they come."""
        inputs = self._inputs(q, k, v, call)
        if not self.preset.policy.order.makes_clusters:
            self.stats.blocks[str(call.grid)] = inputs.blocks.block
        if trains:
            return work_alone(self._planner, inputs, way, take)
        return self._planner.work(inputs, way)

    def _again(
        self, take: Take, q: Tensor, k: Tensor, v: Tensor, call: Call, dense: Dense
    ) -> Tensor:
        """Run an earlier call again, for its backward pass."""
        if take.work is None:
            return dense(q, k, v)
        q, k, v = cast_as_attention(q, k, v)
        with without_autocast(q), self._uncounted():
            work = self._planner.again(take.work, *(x.transpose(1, 2) for x in (q, k, v)))
            out, besides = self._attending(work, take.way)()
            return self._finished(out, besides, work, call, q).transpose(1, 2)

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        counted, self.stats = self.stats, Stats()
        try:
            yield
        finally:
            self.stats = counted

    def _stays_dense(self, q: Tensor, k: Tensor, call: Call, way: float) -> bool:
        """Whether a call is dense, by the schedule or for a reason; it is then counted.

        Raises:
            DenseFallbackError: When there is a reason and the session is strict.
        """
        reason = self._why_dense(q, k, call)
        if self._scheduled_dense(call, way):
            if reason is None:
                self._full_density(call, q)  # raises at once, not on the way
        elif reason is not None:
            self._refuse(reason, call)
        else:
            return False
        self._record(call, torch.ones(1))
        return True

    def _scheduled_dense(self, call: Call, way: float) -> bool:
        """Whether this call is dense whatever the policy would do: not a fallback."""
        if call.progress is None:
            return False
        return way <= 0.0 or self.preset.policy.any_density == 1.0

    def _way(self, call: Call) -> float:
        """How far a call has come from dense, 0, to full sparsity, 1.

        What is observed is first observed at the last dense step, as if it were the one after;
        where nobody knows which that is, at a dense one besides those of the schedule.
        """
        schedule, progress = self.preset.schedule, call.progress
        if progress is None:
            return 1.0
        way, observes = schedule.way(progress, call.layer), self.preset.policy.estimator.observes
        if way > 0.0 or progress.next is None or not observes:
            return way
        return schedule.way(progress.next, call.layer)

    def _why_dense(self, q: Tensor, k: Tensor, call: Call) -> str | None:
        """The reason this call cannot be sparse, in the user's words."""
        tokens = q.shape[1]
        if call.unsupported is not None:
            return call.unsupported
        if call.grid is None:
            return "the token grid of this call is unknown"
        if tokens != k.shape[1] or tokens != call.grid.tokens:
            return f"{tokens} queries and {k.shape[1]} keys do not fit the grid {call.grid}"
        if call.progress is None:
            return "how far the run has come at this step is unknown"
        if why := self.preset.why_too_few(tokens):
            return why
        return self._why_no_gain(q, call) if self.preset.min_tokens is None else None

    def _refuse(self, reason: str, call: Call) -> None:
        """Count a call that cannot be sparse, or raise for it."""
        if self.strict:
            raise DenseFallbackError(
                f"layer {call.layer} at step {call.step} cannot be sparse: {reason}; "
                "run without strict to let it be dense"
            )
        self.stats.fallbacks[reason] += 1

    def _inputs(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Inputs:
        """The call as policies see it; tensors ``(batch, heads, seq, head_dim)``."""
        assert call.grid is not None
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        policy, schedule = self.preset.policy, self.preset.schedule
        block = self.preset.block_on(q.device.type, call.grid.tokens, q.shape[-1])
        blocks = self._planner.blocks(call.grid, block, q.device, policy.key_block)
        state, shared = LayerState(), None
        if call.known:
            where = (call.expert, call.sample, call.turn, q.shape[0], str(q.device))
            own = call.layer, q.shape[1]
            state = self._planner.state((call.branch, call.grid, own, *where))
            shared = self._shared_state(call, own, (block, *where))
        for each in (state, shared):
            if each is not None:
                each.follow(call.share)
        return Inputs(
            blocks=blocks,
            q=q,
            k=k,
            v=v,
            scale=q.shape[-1] ** -0.5 if call.scale is None else call.scale,
            heads=q.shape[1],
            share=call.share,
            layer=call.layer,
            expert=call.expert,
            step=call.step,
            done=0.0 if call.progress is None else call.progress.before,
            density=self._full_density(call, q),
            purse=self._purse,
            state=state,
            shared=shared,
            remember=call.known and schedule.remembers,
            eight_bits=self.preset.precision is not Precision.MODEL,
        )

    def _shared_state(
        self, call: Call, own: tuple[int, int], where: tuple[Hashable, ...]
    ) -> LayerState | None:
        """What branches or neighbouring layers remember together; None if each keeps to itself.

        Args:
            call: Where in the generation this is.
            own: The layer and its number of heads; neighbours that differ in it are to meet.
            where: What else they have to agree in.
        """
        assert call.grid is not None
        schedule, alike = self.preset.schedule, (call.branch, call.grid)
        if schedule.share_branches:
            alike = _alike_in_branches(call.grid, self.preset.policy)
        elif schedule.share_layers == 1:
            return None
        together = own if schedule.share_layers == 1 else schedule.first_of_layers(call.layer)
        return self._planner.state((alike, together, *where))

    def _full_density(self, call: Call, q: Tensor) -> float | None:
        """Share of the pairs at full sparsity; None leaves it to the parts of the policy.

        Raises:
            BadInputError: When the mean density cannot be reached in this run, and was asked for
                or the session is strict.
        """
        policy, progress = self.preset.policy, call.progress
        if policy.mean_density is None or progress is None:
            return policy.density
        run, grid = progress.run, call.grid
        assert grid is not None
        key = run.bounds, call.layers, grid, q.device.type, q.shape[-1]
        if key not in self._densities:
            block = self.preset.block_on(q.device.type, grid.tokens, q.shape[-1])
            self._densities[key], note = density_or_note(
                self.preset, run, layers=call.layers, means=policy.key_means(grid, block),
                besides=policy.besides(grid), strict=self.strict,
            )  # fmt: skip
            if note:
                self.stats.notes.setdefault(note)
        return self._densities[key]

    def _why_no_gain(self, q: Tensor, call: Call) -> str | None:
        """In a sentence why calls like this are no faster for being sparse.

        None where they are, or nothing is known of the GPU or of how much would be computed.
        """
        batch, tokens, heads, head_dim = q.shape
        density = self._full_density(call, q)
        key = tokens, heads, head_dim, batch, density, q.device
        if key not in self._no_gain:
            gpu, why = gpu_called(name_of(q.device)), None
            if gpu is not None and density is not None:
                block = self.preset.block_on(q.device.type, tokens, head_dim)
                layer = one_layer(tokens, heads, head_dim, batch)
                why = why_no_gain(self.preset, block, density, layer, gpu)
            self._no_gain[key] = why
        return self._no_gain[key]

    def _attending(self, work: Work, way: float) -> Run:
        """What runs a plan; rows that are to be exact are so in the model's own precision."""
        kernel = partial(
            attention, scale=work.inputs.scale, engine=self.engine, ran=self.stats.engines
        )
        own = self.preset.precision is Precision.MODEL
        exact = kernel if own else partial(kernel, engine="auto")
        policy, replan = self.preset.policy, self.preset.schedule.replan
        return policy.attending(work, kernel, exact=exact, way=way, replan=replan)

    def _finished(
        self, out: Tensor, besides: float | Tensor, work: Work, call: Call, like: Tensor
    ) -> Tensor:
        """What a plan gave, back in raster order; its density is counted.

        Args:
            out: ``(batch, heads, seq, head_dim)`` in the plan's order.
            besides: Density of what was computed beside the plan; of each head, as a tensor.
            work: The plan.
            call: Where in the generation this is.
            like: Queries as they came, ``(batch, seq, heads, head_dim)``: so the model reads on.
        """
        head_density = work.head_density()
        if isinstance(besides, Tensor) or besides:
            head_density = head_density + besides
        head_density = all_of(call.share, head_density)
        head_density = head_density[0] if len(head_density) == 1 else head_density.mean(dim=0)
        self._record(call, head_density)
        if call.share is not None:
            self.stats.loads[call.key] = call.share.imbalance(head_density)
        if work.q_order is not None:
            out = unpermute_tokens(out, work.q_order, like=like.transpose(1, 2))
        return work.silenced(out)

    def _check_memory(self, q: Tensor, call: Call) -> None:
        """Raise at the first call, not on the way, for what would not fit into memory."""
        compensation, grid = self.preset.policy.compensation, call.grid
        if grid is None or grid.tokens < self.preset.least_tokens:
            return
        of_head = compensation.state_bytes(grid, q.shape[-1], q.dtype.itemsize)
        heads = q.shape[0] * q.shape[2]  # of all entries of the batch
        compensation.check_memory(of_head * heads * (call.layers or 1))

    def _open_purse(self, call: Call) -> None:
        """Where a tolerance is to meet a mean density; in a run of which all steps are known."""
        policy, progress = self.preset.policy, call.progress
        start = policy.selector.tolerance_of_purse
        if policy.mean_density is None or start is None or progress is None:
            return
        if not call.known or progress.is_alone:
            self.stats.notes.setdefault(
                f"mean density {policy.mean_density:g} could not be aimed at: nobody says how many "
                f"steps the run takes; the tolerance stayed at {start:g}"
            )
            return
        if self._purse is None:
            self._purse = Purse(policy.mean_density, start)
        schedule = self.preset.schedule
        sparse = 1 - min(1.0, schedule.dense_layers / call.layers) if call.layers else 1.0
        self._purse.enter(progress, [sparse * way for way in schedule.ways(progress)])

    def _record(self, call: Call, head_density: Tensor) -> None:
        if self._purse is not None:
            self._purse.pay(head_density)
        self.stats.record(call.key, call.sigma, head_density)
        self.stats.memory_bytes = self._planner.nbytes()
        self.stats.host_memory_bytes = self._planner.host_nbytes()
        self.stats.plans = dict(self._planner.counts)
        self.stats.notes |= self._planner.notes


def _engine_of(preset: Preset, engine: str) -> str:
    """The engine that a preset's precision asks for, or the one that is given."""
    if preset.precision is Precision.MODEL:
        return engine
    if engine != "auto":
        raise BadInputError(
            f"precision={preset.precision} has an engine of its own: leave engine={engine!r} out"
        )
    return str(preset.precision)


def _alike_in_branches(grid: TokenGrid, policy: Policy) -> TokenGrid:
    """What branches have in common that can share a plan: their texts may differ in length.

    Before the video only where text is a cluster of its own on both sides; equal blocks would be
    cut elsewhere.
    """
    order = policy.order
    apart = order.clusters_queries and order.clusters_keys
    prefix = min(grid.prefix, 1) if apart else grid.prefix
    return replace(grid, prefix=prefix, suffix=0)
