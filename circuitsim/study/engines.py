"""Where the tasks of a sweep run: in this process, in local processes, on a dask cluster.

Every engine gives every task one thread, so that the order of sums, and with it every bit of a result, does
not depend on where it was computed.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from circuitsim.errors import CircuitsimError, SpecError
from circuitsim.solver.threads import threads
from circuitsim.study.sweep_tasks import Outcome, Task, run_task

__all__ = ["Cluster", "Engine", "InProcess", "LocalWorkers", "TaskQueue"]

_UNIT = 0.3
"""Seconds that tasks sent to a worker together should take, so that sending them does not count."""
_DEATHS = 3
"""Times that a task may take its worker with it."""
_POLL = 0.02
"""Seconds between looks at a cluster."""
_PATIENCE = 60.0
"""Seconds that a cluster may be without a worker."""
_STARTS = 3
"""Times in a row that a worker may die before it has begun."""
_LIBRARIES = ("OMP", "OPENBLAS", "MKL", "NUMBA")
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in _LIBRARIES} | {"CIRCUITSIM_THREADS": "1"}

Answer = tuple[dict[str, Any] | None, str]
"""Result, or why there is none: an outcome without its task, which the sender has."""


class TaskQueue:
    """Tasks that wait, handed out in units of at least `_UNIT` seconds once it is known what they take."""

    def __init__(self, tasks: Sequence[Task], *, workers: int = 1) -> None:
        self._waiting = deque(tasks)
        self._suspects: deque[Task] = deque()
        self._deaths: Counter[str] = Counter()
        self._fastest: dict[int, float] = {}
        self._workers = workers

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    @property
    def suspects(self) -> int:
        """How many tasks wait that a worker has died over."""
        return len(self._suspects)

    def take(self) -> list[Task]:
        """Return tasks for one worker, none where all are handed out."""
        if self._suspects:
            return [self._suspects.popleft()]
        # Small units at the end keep every worker busy to the last.
        most = max(1, len(self._waiting) // (2 * self._workers))
        unit: list[Task] = []
        seconds = 0.0
        while self._waiting and len(unit) < most and seconds < _UNIT:
            seconds += self._expected(self._waiting[0])
            unit.append(self._waiting.popleft())
        return unit

    def finished(self, unit: Sequence[Task], answers: Sequence[Answer]) -> list[Outcome]:
        """Return the outcomes of a unit, and learn from them what tasks of a point take."""
        outcomes = []
        for task, (result, lost) in zip(unit, answers, strict=True):
            outcome = Outcome(task=task, result=result, lost=lost)
            if result is not None:
                # The first task of a worker takes longer than the others.
                fastest = self._fastest.get(task.point, float("inf"))
                self._fastest[task.point] = min(outcome.seconds, fastest)
            outcomes.append(outcome)
        return outcomes

    def died(self, unit: Sequence[Task], reason: str, *, often: bool = False) -> list[Outcome]:
        """Take back what a worker died over, to be run one by one; return those that are given up.

        Args:
            unit: the tasks that the worker had.
            reason: how that is put.
            often: it has happened several times, and to nothing else.
        """
        lost = []
        for task in unit:
            self._deaths[task.key] += _DEATHS if often and len(unit) == 1 else 1
            if self._deaths[task.key] >= _DEATHS:
                lost.append(Outcome(task=task, result=None, lost=reason))
            else:
                self._suspects.append(task)
        return lost

    def _expected(self, task: Task) -> float:
        if not self._fastest:
            return _UNIT
        return self._fastest.get(task.point, max(self._fastest.values()))


class Engine(Protocol):
    """Runs tasks in any order and yields what becomes of each."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Closing the iterator stops the work."""


class InProcess:
    """Runs tasks here, one after the other."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        with _one_thread():
            for task in tasks:
                yield run_task(task)


@dataclass(frozen=True, kw_only=True)
class LocalWorkers:
    """Runs tasks in ``workers`` processes of this machine. A process that dies is replaced."""

    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes. Raises CircuitsimError where no worker can be started."""
        count = max(1, min(self.workers, len(tasks)))
        queue = TaskQueue(tasks, workers=count)
        idle = [_Worker() for _ in range(count)]
        busy: dict[Future[list[Answer]], tuple[_Worker, list[Task]]] = {}
        everyone = list(idle)
        outcomes: list[Outcome] = []
        try:
            while True:
                # Workers go on while what they have done is kept.
                while idle and (unit := queue.take()):
                    worker = idle.pop()
                    busy[worker.submit(unit)] = (worker, unit)
                yield from outcomes
                if not busy:
                    return
                outcomes = []
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    worker, unit = busy.pop(future)
                    idle.append(worker)
                    try:
                        answers = future.result()
                    except BrokenProcessPool:
                        worker.replace()
                        outcomes += queue.died(unit, f"killed its worker process {_DEATHS} times")
                    else:
                        outcomes += queue.finished(unit, answers)
        finally:
            for worker in everyone:
                worker.kill()


class _Worker:
    """One process with one thread. A pool of its own for each tells which task a process has died over."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._ready: Future[int] | None = None
        self._failed_starts = 0

    def submit(self, unit: list[Task]) -> Future[list[Answer]]:
        if self._pool is None:
            from multiprocessing import get_context

            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)
            with _environment(_ONE_THREAD), _deaf_to_interrupts():
                self._ready = self._pool.submit(os.getpid)
        return self._pool.submit(_run_unit, unit)

    def replace(self) -> None:
        """Drop a process that has died; the next unit starts another.

        Raises:
            CircuitsimError: it never came to life, and those before it neither.
        """
        begun = self._ready is not None and self._ready.done() and self._ready.exception() is None
        self._failed_starts = 0 if begun else self._failed_starts + 1
        self.kill()
        if self._failed_starts >= _STARTS:
            raise CircuitsimError(
                "worker processes die as they start",
                field="--workers",
                remedy="See their own words above; a script needs `if __name__ == '__main__':`.",
            )

    def kill(self) -> None:
        if self._pool is None:
            return
        # ProcessPoolExecutor.kill_workers() from Python 3.14 on.
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Runs tasks on the workers of a dask.distributed scheduler.

    They need the same circuitsim, and the same data where these come from files.
    """

    address: str
    timeout: float = 15.0
    """Seconds to wait for the scheduler, and again for its first worker."""

    def run(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Yield outcomes.

        Raises:
            CircuitsimError: no dask, no scheduler, no worker, or the scheduler went away.
        """
        try:
            import distributed
        except ImportError:
            raise SpecError(
                "needs dask.distributed, which is not installed",
                field="--scheduler",
                value=self.address,
                remedy="Install it with: pip install 'circuitsim[cluster]'.",
            ) from None
        try:
            client = distributed.Client(self.address, timeout=self.timeout, set_as_default=False)
        except (OSError, ValueError, TypeError, TimeoutError) as error:
            raise SpecError(
                f"no scheduler answers: {_first_line(error)}", field="--scheduler", value=self.address
            ) from error
        try:
            yield from self._run(distributed, client, tasks)
        finally:
            client.close(timeout=5)

    def _run(self, distributed: Any, client: Any, tasks: Sequence[Task]) -> Iterator[Outcome]:
        try:
            client.wait_for_workers(1, timeout=self.timeout)
        except TimeoutError:
            raise SpecError(
                f"has no worker, even after {self.timeout:g} s",
                field="--scheduler",
                value=self.address,
                remedy="Start some with: dask worker ADDRESS.",
            ) from None
        slots = max(1, sum(client.nthreads().values()))
        queue = TaskQueue(tasks, workers=slots)
        busy: dict[Any, list[Task]] = {}
        seen, alone = time.monotonic(), False
        while True:
            # One more for each worker, to begin with as soon as it is free; but what workers have died over
            # runs alone, because dask counts a death against everything that the worker had.
            alone = (alone and bool(busy)) or (queue.suspects > 0 and not busy)
            most = 1 if alone else 0 if queue.suspects else 2 * slots
            while len(busy) < most and (unit := queue.take()):
                busy[client.submit(_run_unit, unit, pure=False)] = unit
            if not busy:
                return
            ready = [future for future in busy if future.done()]
            if not ready:
                time.sleep(_POLL)
                seen = self._watch(client, seen)
            for future in ready:
                try:
                    answers = future.result(timeout=self.timeout)
                except distributed.KilledWorker:
                    unit = busy.pop(future)
                    yield from queue.died(unit, "killed its worker several times", often=alone)
                except TimeoutError:
                    # Its worker is gone, and with it the result: the scheduler has it computed again.
                    seen = self._watch(client, seen)
                except (distributed.client.FutureCancelledError, OSError) as error:
                    raise self._lost(_first_line(error)) from error
                else:
                    yield from queue.finished(busy.pop(future), answers)

    def _watch(self, client: Any, seen: float) -> float:
        """Return when the cluster last had a worker. Raises CircuitsimError where that is long ago."""
        now = time.monotonic()
        if now - seen < 1:
            return seen
        if client.status not in ("running", "connecting"):
            raise self._lost("the scheduler has closed it")
        if client.status == "running" and client.nthreads():
            return now
        if now - seen > _PATIENCE:
            raise self._lost(f"no worker for {_PATIENCE:g} s")
        return seen

    def _lost(self, reason: str) -> CircuitsimError:
        return CircuitsimError(
            f"the cluster is lost: {reason}",
            field="--scheduler",
            value=self.address,
            remedy="What is finished is kept: the same command goes on.",
        )


def _run_unit(unit: list[Task]) -> list[Answer]:
    """Run tasks in a worker, which stays with one thread from then on."""
    _limit_threads()
    outcomes = [run_task(task) for task in unit]
    return [(outcome.result, outcome.lost) for outcome in outcomes]


def _begin() -> None:
    """Prepare a local worker: the parent alone decides what Ctrl-C does, and no worker outlives it."""
    from multiprocessing import connection, parent_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch-parent").start()
    _limit_threads()


def _limit_threads() -> Any:
    """Give this process one thread; return the limit on libraries, which can be lifted."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    os.environ["CIRCUITSIM_THREADS"] = "1"
    threads.cache_clear()
    return threadpool_limits(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    limits = None
    try:
        with _environment({"CIRCUITSIM_THREADS": "1"}):
            limits = _limit_threads()
            yield
    finally:
        if limits is not None:
            limits.restore_original_limits()
        threads.cache_clear()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process, and of those that it starts inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they start; this one sees it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
