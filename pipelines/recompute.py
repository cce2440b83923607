"""Gradient checkpointing: a layer that runs again for the backward pass does what it did before.

Checkpointing frees what a part of a model has made and runs that part again when the backward pass
gets there. The transformer may have been called again by then, at another noise level. Which call
the backward pass is of can be read off the autograd node that it is at: nodes are numbered in the
order in which they are made, so those of one call have numbers from one interval.

A recording lives as long as the graph of its call: the last node of that graph holds it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from vidsparse.errors import BadInputError
from vidsparse.pipelines.layout import Part
from vidsparse.sparse_attention import Call
from vidsparse.training import Take

_RECORDING = "vidsparse"  # in the metadata of an autograd node
_LAST = sys.maxsize


@dataclass(eq=False)
class Turn:
    """What one attention call of a layer was cut into, and what was decided of each part.

    Attributes:
        calls: Of the parts of the batch; a take is None where no gradients will be asked for.
    """

    calls: list[tuple[Part, Call, Take | None]]

    def recorded(self) -> Turn:
        """The same, of which the engine says what it decides."""
        return Turn(
            [(part, dataclasses.replace(call, trains=True), Take()) for part, call, _ in self.calls]
        )


class Recording:
    """The attention calls of one forward call of a transformer.

    Args:
        first: Number that the first autograd node of the call will have.
    """

    def __init__(self, first: int) -> None:
        self._first, self._end, self._next = first, _LAST, _LAST
        self._turns: dict[int, list[Turn]] = {}
        self._replayed: dict[int, tuple[int, int]] = {}  # by which backward pass, and how many

    def add(self, layer: int, turn: Turn) -> Turn:
        """Keep the next call of a layer."""
        turn = turn.recorded()
        self._turns.setdefault(layer, []).append(turn)
        return turn

    def again(self, layer: int) -> Turn:
        """The next call of a layer that is recomputed, in the order in which they were made."""
        turns, now = self._turns[layer], torch._C._current_graph_task_id()
        before, number = self._replayed.get(layer, (now, 0))
        number = number if before == now else 0
        self._replayed[layer] = now, number + 1
        return turns[number % len(turns)]

    def close(self, number: int) -> None:
        """The forward call is over; the next node has this number."""
        self._end = number

    def is_followed(self, number: int) -> None:
        """There is another forward call, whose first node has this number."""
        self._next = min(self._next, number)

    def holds(self, node: Any) -> bool:
        """Whether a node is of this forward call, or of what one checkpoint may hold after it.

        A reentrant checkpoint has a number from before what it holds.
        """
        end = self._end if _is_reentrant(node) else self._next
        return self._first <= node._sequence_nr() < end


class Recordings:
    """Forward calls of one transformer that a backward pass may come back to."""

    def __init__(self) -> None:
        self._known: WeakSet[Recording] = WeakSet()
        self._called_again: tuple[int, int] | None = None

    def begin(self, transformer: nn.Module, arguments: Iterable[Any]) -> Recording | None:
        """The transformer is called; None where no gradients are asked for."""
        for recording in self._known:
            recording.is_followed(_next_node())
        if not torch.is_grad_enabled() or not _has_gradients(transformer, arguments):
            return None
        recording = Recording(_next_node())
        self._known.add(recording)
        return recording

    def end(self, recording: Recording | None, output: Any) -> None:
        """The call is over; what it recorded goes when its graph does."""
        if recording is None:
            return
        recording.close(_next_node())
        for x in tree_leaves(output):
            if isinstance(x, Tensor) and x.grad_fn is not None:
                node: Any = x.grad_fn
                node.metadata[_RECORDING] = recording

    def current(self) -> Recording:
        """The forward call that the backward pass is at.

        Raises:
            BadInputError: When it was made outside of the session.
        """
        node = torch._C._current_autograd_node()
        for recording in self._known:
            if recording.holds(node):
                return recording
        raise BadInputError(
            "a layer is recomputed for the backward pass of a forward call that this session has "
            "not seen with gradients: call the model and backward() in the same session, and put "
            "no reentrant checkpoint around the whole model (pass use_reentrant=False)"
        )

    def call_again(self) -> None:
        """The transformer is called as a whole for the backward pass.

        Raises:
            BadInputError: When that is not the one call that a checkpoint may hold.
        """
        self.current()
        number = torch._C._current_autograd_node()._sequence_nr()
        here = torch._C._current_graph_task_id(), number
        if here == self._called_again:
            raise BadInputError(
                "a checkpoint holds more than one call of the transformer: give each call a "
                "checkpoint of its own"
            )
        self._called_again = here


def in_backward() -> bool:
    """Whether a backward pass runs in this thread, so that a layer called now is recomputed."""
    return torch._C._current_graph_task_id() != -1


def _next_node() -> int:
    """The number of the autograd node that is made next in this thread."""
    return torch.autograd._get_sequence_nr()  # pyright: ignore[reportPrivateImportUsage]


def _is_reentrant(node: Any) -> bool:
    return type(node).__name__ == "CheckpointFunctionBackward"


def _has_gradients(transformer: nn.Module, arguments: Iterable[Any]) -> bool:
    tensors = (x for x in tree_leaves(list(arguments)) if isinstance(x, Tensor))
    return any(x.requires_grad for x in tensors) or any(
        x.requires_grad for x in transformer.parameters()
    )


class Tokens:
    """Names turns to compiled code, which can keep nothing but tensors, by where a tensor lies.

    No other tensor can lie there while it is kept; one that comes after takes over the name.
    """

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[int, Turn] = WeakValueDictionary()

    def name(self, token: Tensor, turn: Turn | None) -> None:
        """From now on the tensor names a turn."""
        if turn is None:
            self._turns.pop(token.data_ptr(), None)
        else:
            self._turns[token.data_ptr()] = turn

    def turn(self, token: Tensor) -> Turn:
        """The turn that a tensor names.

        Raises:
            BadInputError: When it is forgotten, as it is once the session has ended.
        """
        turn = self._turns.get(token.data_ptr())
        if turn is None:
            raise BadInputError(
                "what compiled attention decided is not known any more: call backward() before "
                "the graph is freed, and leave saved tensors on their device"
            )
        return turn


@contextmanager
def autograd_inside_an_op() -> Iterator[None]:
    """Gradients are recorded, although a custom op is being run, where torch turns that off."""
    keys = ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")
    guards = [
        torch._C._SetExcludeDispatchKeyGuard(getattr(torch._C.DispatchKey, key), False)
        for key in keys
    ]
    with guards[0], guards[1], guards[2], torch.enable_grad():
        yield
