"""Pieces of work on the workers of a Ray cluster: the same pieces that one process does.

A worker that dies takes nothing with it: what it had finished is on the disk that all share, and
the piece it was at is done by another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from vidsparse.comparison.reporter import Reporter
from vidsparse.errors import BadInputError, VidsparseError
from vidsparse.own_presets import run_source, sources

ATTEMPTS = 3  # at a piece whose workers die


class Piece(Protocol):
    """A piece of work.

    Attributes:
        label: For a person.
        ready: Whether what it needs is there.
        finished: Whether it is done.
    """

    @property
    def label(self) -> str: ...
    @property
    def ready(self) -> Callable[[], bool]: ...
    @property
    def finished(self) -> Callable[[], bool]: ...


class Doer(Protocol):
    """Does pieces of work by their number; is sent to every worker once."""

    def do_piece(self, number: int) -> Any: ...


Report = Callable[[int, Any, float], None]  # a piece's number, its result or exception, seconds


class Pool:
    """Workers of a cluster, one for each GPU or, without any, for each CPU core.

    Use ``ray_pool``.

    Attributes:
        size: How many workers there are.
    """

    def __init__(self, ray: Any, on_gpu: bool, reporter: Reporter) -> None:
        self._ray, self._reporter = ray, reporter
        self._needs = {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0}
        resources = ray.cluster_resources()
        self.size = int(resources.get("GPU" if on_gpu else "CPU", 0))
        if self.size < 1:
            raise BadInputError(
                f"the Ray cluster has no {'GPU' if on_gpu else 'CPU core'}: add a node, or choose "
                "another --device"
            )

    def ask(self, question: Callable[[], Any]) -> Any:
        """What a function returns on a worker."""
        return self._ray.get(self._ray.remote(**self._needs)(_call).remote(question))

    def do(self, doer: Doer, pieces: Sequence[Piece], report: Report) -> None:
        """Do what is not done yet, each piece as soon as it is ready and a worker is free.

        Args:
            doer: Does them; sent to the workers as it is now.
            pieces: In the order in which they are wanted.
            report: Told of each piece that ended; may raise, which ends the rest.

        Raises:
            BadInputError: When the workers lack code that the work needs.
            VidsparseError: When workers die again and again at one piece.
        """
        lost: Counter[int] = Counter()
        to_do = [number for number, piece in enumerate(pieces) if not piece.finished()]
        if to_do:
            self._check(doer)
        number = min(self.size, len(to_do))
        with _Workers(self._ray, self._needs, doer, number, self._reporter) as workers:
            while to_do or workers.busy:
                for number in [n for n in to_do if pieces[n].ready()][: len(workers.idle)]:
                    to_do.remove(number)
                    workers.start(number)
                number, outcome, seconds = workers.wait()
                if isinstance(outcome, self._ray.exceptions.RayActorError):
                    lost[number] += 1
                    self._check_attempts(pieces[number], lost[number])
                    if not pieces[number].finished():
                        to_do.insert(0, number)
                        continue
                    outcome = None
                report(number, outcome, seconds)

    def _check_attempts(self, piece: Piece, lost: int) -> None:
        if lost >= ATTEMPTS:
            raise VidsparseError(
                f"{lost} workers died at {piece.label}: is there enough memory on each node? What "
                "was finished is kept"
            )
        self._reporter.note(f"a worker died at {piece.label}: another goes on")

    def _check(self, doer: Doer) -> None:
        """Make sure that a worker understands what it is sent, such as a preset of one's own."""
        try:
            self._ray.get(
                self._ray.remote(**self._needs)(_receive).remote(_Parcel(self._ray, doer))
            )
        except (self._ray.exceptions.RayTaskError, TypeError) as error:
            said = str(getattr(error, "cause", None) or error).partition("\n")[0]
            raise BadInputError(
                f"Ray's workers cannot be sent this work ({said.removeprefix('System error: ')}): "
                "install the package that a preset comes from on every node, or give the preset "
                "as FILE.py:NAME"
            ) from error


class _Workers:
    """Actors, idle or busy with a piece."""

    def __init__(
        self, ray: Any, needs: dict[str, int], doer: Doer, number: int, reporter: Reporter
    ) -> None:
        self._ray = ray
        self._actor = ray.remote(**needs)(_Worker).remote
        self._given = ray.put(_Parcel(ray, doer)), str(Path.cwd()), reporter
        self.idle = [self._make() for _ in range(number)]
        self.busy: dict[Any, tuple[Any, int]] = {}

    def _make(self) -> Any:
        return self._actor(*self._given)

    def start(self, number: int) -> None:
        worker = self.idle.pop()
        self.busy[worker.do.remote(number)] = (worker, number)

    def wait(self) -> tuple[int, Any, float]:
        """The next piece that ends: its number, its result or exception, its seconds."""
        (ended, *_), _ = self._ray.wait(list(self.busy), num_returns=1)
        worker, number = self.busy.pop(ended)
        try:
            outcome, seconds = self._ray.get(ended)
        except self._ray.exceptions.RayActorError as death:
            outcome, seconds, worker = death, 0.0, self._make()
        except Exception as error:  # of the piece: for the caller to judge
            outcome, seconds = getattr(error, "cause", None) or error, 0.0
        self.idle.append(worker)
        return number, outcome, seconds

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in (*self.idle, *(worker for worker, _ in self.busy.values())):
            self._ray.kill(worker)


class _Worker:
    """Lives on a node of the cluster, keeps the model between pieces."""

    def __init__(self, doer: Doer, folder: str, reporter: Reporter) -> None:
        with contextlib.suppress(OSError):  # paths as the user wrote them
            os.chdir(folder)
        self._doer, self._reporter = doer, reporter

    def do(self, number: int) -> tuple[Any, float]:
        started = perf_counter()
        with self._reporter.on_worker():
            return self._doer.do_piece(number), perf_counter() - started


@contextlib.contextmanager
def ray_pool(address: str, *, on_gpu: bool, reporter: Reporter) -> Iterator[Pool]:
    """Connect to a cluster, or start one on this machine; let go of it at the end.

    Args:
        address: "local" for this machine, "auto" for the cluster it belongs to, ``HOST:PORT`` or
            ``ray://HOST:PORT``.
        on_gpu: Whether each worker needs a GPU.
        reporter: Who is told of the workers.

    Raises:
        BadInputError: When Ray is not installed, or nothing answers at the address.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise BadInputError("--ray needs Ray: pip install 'vidsparse[ray]'") from error
    _check_address(address)
    try:
        ray.init(
            address=address, include_dashboard=False if address == "local" else None,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RpcError) as error:
        raise BadInputError(_nothing_answers(address, error)) from error
    try:
        pool = Pool(ray, on_gpu, reporter)
        reporter.note(f"{pool.size} Ray workers")
        yield pool
    finally:
        ray.shutdown()


class _Parcel:
    """A doer on its way to a worker, with the files that define presets: there it is the doer."""

    def __init__(self, ray: Any, doer: Doer) -> None:
        self._ray = ray
        self._doer = doer

    def __reduce__(self) -> Any:
        return _unpack, (sources(), self._ray.cloudpickle.dumps(self._doer))


def _unpack(files: dict[str, bytes], content: bytes) -> Any:
    for path, text in files.items():
        run_source(Path(path), text)
    return pickle.loads(content)


def _receive(doer: Doer) -> None:
    """Being called is the test."""


def maybe_pool(
    address: str | None, device: str, reporter: Reporter
) -> contextlib.AbstractContextManager[Pool | None]:
    """The workers of a cluster; None without an address.

    Args:
        address: As ``ray_pool`` takes it.
        device: That each worker is to compute on.
        reporter: Who is told of the workers.

    Raises:
        BadInputError: When there is no such cluster, or one device was asked for.
    """
    if address is None:
        return contextlib.nullcontext()
    if ":" in device:
        raise BadInputError(f"--ray gives each worker a GPU of its own: --device {device} is one")
    return ray_pool(address, on_gpu=device == "cuda", reporter=reporter)


def _call(question: Callable[[], Any]) -> Any:
    return question()


def _check_address(address: str) -> None:
    """Knock first: Ray itself waits five minutes for an answer."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise BadInputError(_nothing_answers(address, error)) from error


def _nothing_answers(address: str, error: Exception) -> str:
    return (
        f"no Ray cluster answers at {address!r} ({error}): give HOST:PORT of its head node, "
        "ray://HOST:PORT, auto, or local for this machine"
    )
