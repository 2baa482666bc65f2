"""The asynchronous loop of A3C (Mnih et al. 2016): processes that share one network and step on it without locks.

Each worker has one environment and a network of its own. Again and again it copies the shared parameters, makes a short
rollout with them, and steps along its gradient on whatever the shared parameters have become meanwhile, the mean of
squared gradients being shared too (Hogwild, Recht et al. 2011): two workers may write at once, and some of what one
writes may be lost, which does no harm to speak of. Which worker comes first is chance, so no two runs are the same and
a resumed one is not exactly the one that was stopped.

The trainer's own process learns nothing. It gives the workers rounds of environment steps; between two rounds all of
them wait, so that what is evaluated and kept does not move, and what their normalisers have seen is put together.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing import get_context

from habilis.core.acceleration import Precision, configure
from habilis.core.errors import EnvError, HabilisError, NonFiniteError
from habilis.core.protocols import Algorithm, Plugin, VecEnv
from habilis.core.random import RandomStreams, derive_seed
from habilis.core.types import Metrics
from habilis.data.episodes import Episode
from habilis.data.rollout import RolloutBuffer
from habilis.nn.normalizer import RunningNorm
from habilis.nn.optimizer import Optimizer
from habilis.training.collector import Collector
from habilis.training.on_policy import OnPolicyTrainer
from habilis.training.report import Counters, Report

ROLLOUTS = 50
"""Rollouts of each worker in a round, on average."""
PATIENCE = 5.0
"""Seconds a worker is given to end by itself."""


class AsynchronousState(Protocol):
    """What workers share of an algorithm, and what is counted for it."""

    policy: nn.Module
    critic: nn.Module
    reward_norm: nn.Module
    optimizer: Optimizer
    gradient_steps: int


class AsynchronousAlgorithm(Algorithm, Protocol):
    """What the loop asks of an algorithm: one optimiser for all that it learns, and normalisers."""

    state: AsynchronousState


Moments = tuple[Tensor, Tensor, Tensor]
"""Mean, variance and count of the rows that a normaliser has seen."""


@dataclass(frozen=True)
class Shared:
    """What lies in memory that all processes see."""

    optimizer: dict[str, Tensor]
    """The parameters and all that a step changes."""
    moments: list[Moments]
    """Of each normaliser, at the beginning of a round."""
    claimed: Any
    """Environment steps that are done or under way, with a lock."""


@dataclass(frozen=True)
class Work:
    """What every worker is told at its start; it must be fit to be sent to another process."""

    make_env: Callable[[int], VecEnv]
    """Makes one environment from a seed."""
    make_algorithm: Callable[[VecEnv, RandomStreams], AsynchronousAlgorithm]
    """Makes the algorithm; its first parameters do not matter."""
    n_steps: int
    """Environment steps in a rollout."""
    total_timesteps: int
    skip_nonfinite: bool
    """As for `Collector`."""
    precision: Precision
    """Of products of float32 matrices."""


@dataclass(frozen=True)
class Round:
    """What a worker tells at the end of a round."""

    metrics: dict[str, float]
    """Means over its updates."""
    episodes: list[Episode]
    """The last of those that ended."""
    ended: int
    """How many did."""
    updates: int
    skipped_rows: int
    diverged: int
    """Steps in which its simulation diverged."""
    moments: list[tuple[np.ndarray, ...]]
    """What each normaliser has seen in it."""


@dataclass(frozen=True)
class Failure:
    """What a worker tells when it cannot go on."""

    message: str
    trace: str
    kind: type[HabilisError]


class AsynchronousTrainer:
    """Yields a `Report` after each round until `total_timesteps` environment steps are made.

    Args:
        collector: an environment that is not stepped: it says what the workers' are, and follows their episodes.
        algorithm: what learns; the workers' are copies of it.
        work: what the workers do.
        workers: how many.
        streams: the run's random streams; the workers' seeds come from their seed.
    """

    def __init__(
        self,
        collector: Collector,
        algorithm: AsynchronousAlgorithm,
        work: Work,
        *,
        workers: int,
        streams: RandomStreams,
    ) -> None:
        self.collector = collector
        self.algorithm = algorithm
        self.streams = streams
        self.total_timesteps = work.total_timesteps
        self.plugins: Sequence[Plugin] = ()
        self.counters = Counters()
        self._work = work
        self._count = workers
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._stop = lambda: None

    def __iter__(self) -> Iterator[Report]:
        while self.counters.env_steps < self.total_timesteps:
            yield self.iterate()

    def iterate(self) -> Report:
        """Let the workers make one round.

        Raises:
            EnvError: the environment of a worker raised, or gave what is not finite.
            HabilisError: a worker failed otherwise, or died.
        """
        counters = self.counters
        if not self._workers:
            self._start()
        self.algorithm.set_progress(counters.env_steps / self.total_timesteps, self.collector.episodes.count)
        size = ROLLOUTS * self._work.n_steps * self._count
        self._shared.claimed.value = counters.env_steps
        for index, (_, connection) in enumerate(self._workers):
            self._tell(index, connection, min(counters.env_steps + size, self.total_timesteps))
        rounds = self._gather()
        counters.iteration += 1
        counters.env_steps = self._shared.claimed.value
        for each in rounds:
            self._take(each)
        metrics = _mean([each.metrics for each in rounds if each.metrics])
        return Report(counters.iteration, counters.env_steps, self.algorithm.gradient_steps, metrics)

    def _take(self, told: Round) -> None:
        """Add a worker's round to what is known here."""
        collector, state = self.collector, self.algorithm.state
        collector.episodes.take(told.episodes)
        collector.episodes.count += told.ended - len(told.episodes)
        collector.skipped_rows += told.skipped_rows
        collector.episodes.diverged += told.diverged
        state.gradient_steps += told.updates
        for normalizer, moments in zip(normalizers(state), told.moments, strict=True):
            mean, var, count = map(torch.as_tensor, moments)
            if count > 0:
                normalizer.merge(mean, var, count)

    def close(self) -> None:
        """End the workers."""
        self._stop()
        self._workers = []

    def _start(self) -> None:
        """Start the workers, each with seeds of its own, which no earlier part of the run has had."""
        context = get_context("spawn")
        state = self.algorithm.state
        self._shared = Shared(
            optimizer=state.optimizer.share(),
            moments=[tuple(x.share_memory_() for x in moments_of(each)) for each in normalizers(state)],
            claimed=context.Value("q", self.counters.env_steps),
        )
        # what is ignored here is ignored there from the start: Ctrl-C is for this process to answer
        with _interrupts_ignored():
            for index in range(self._count):
                seed = derive_seed(self.streams.seed, f"worker/{index}/{self.counters.iteration}")
                here, there = context.Pipe()
                process = context.Process(target=serve, args=(self._work, seed, self._shared, there), daemon=True)
                process.start()
                there.close()  # so that a worker that dies is heard of here
                self._workers.append((process, here))
        # also where nobody calls `close`
        self._stop = weakref.finalize(self, _end, self._workers)

    def _tell(self, index: int, connection: Connection, limit: int) -> None:
        try:
            connection.send(limit)
        except OSError:
            raise self._death(index) from None

    def _gather(self) -> list[Round]:
        """Wait for every worker's round."""
        rounds: dict[int, Round] = {}
        while len(rounds) < self._count:
            waiting = {k: self._workers[k] for k in range(self._count) if k not in rounds}
            wait([x for process, connection in waiting.values() for x in (process.sentinel, connection)])
            for index, (process, connection) in waiting.items():
                try:
                    if connection.poll():
                        rounds[index] = self._open(index, connection.recv())
                    elif not process.is_alive():
                        raise EOFError
                except (EOFError, OSError):
                    raise self._death(index) from None
        return [rounds[index] for index in range(self._count)]

    def _open(self, index: int, told: Round | Failure) -> Round:
        """Return a worker's round, or raise its failure."""
        if isinstance(told, Round):
            return told
        error = told.kind(f"worker {index} stopped: {told.message}")
        error.add_note(told.trace)
        raise error

    def _death(self, index: int) -> HabilisError:
        process = self._workers[index][0]
        process.join(PATIENCE)
        died = f"worker {index} died with exit code {process.exitcode}"
        if self.counters.iteration == 0 and process.exitcode == 1:
            return HabilisError(
                f"{died} before it did anything: each worker imports the script again, so a script that trains on "
                "several processes must be a file and train under `if __name__ == '__main__':`; any other cause is "
                "printed above"
            )
        memory = ", which often means that the system ran out of memory" if process.exitcode == -signal.SIGKILL else ""
        return HabilisError(
            f"{died}{memory}: habilis train --resume goes on from the last checkpoint; a new run may have fewer workers"
        )


def normalizers(state: AsynchronousState) -> list[RunningNorm]:
    """Return the normalisers of an algorithm, each once, in an order that is the same in every process."""
    modules = [x for part in (state.policy, state.critic, state.reward_norm) for x in part.modules()]
    return [x for x in dict.fromkeys(modules) if isinstance(x, RunningNorm)]


def moments_of(normalizer: RunningNorm) -> Moments:
    """Return a normaliser's statistics, which change with it."""
    return normalizer.mean, normalizer.var, normalizer.count


def serve(work: Work, seed: int, shared: Shared, connection: Connection) -> None:
    """Be a worker until told to end, or until the trainer is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_into_death, daemon=True).start()
    try:
        _serve(work, seed, shared, connection)
    except (EOFError, BrokenPipeError):
        pass  # the trainer is gone
    except Exception as error:
        known = isinstance(error, HabilisError)
        kind = NonFiniteError if isinstance(error, NonFiniteError) else EnvError if known else HabilisError
        message = str(error) if known else f"{type(error).__name__}: {error}"
        connection.send(Failure(message, traceback.format_exc(), kind))


def _serve(work: Work, seed: int, shared: Shared, connection: Connection) -> None:
    configure(threads=1, precision=work.precision)
    streams, env_seed = RandomStreams(seed), derive_seed(seed, "env")
    env = work.make_env(env_seed)
    collector = Collector(env, skip_nonfinite=work.skip_nonfinite)
    collector.reset(env_seed)
    algorithm = work.make_algorithm(env, streams)
    optimizer, own = algorithm.state.optimizer, normalizers(algorithm.state)
    parameters = optimizer.flat
    optimizer.attach(shared.optimizer)
    buffer = RolloutBuffer(work.n_steps)
    trainer = OnPolicyTrainer(collector, algorithm, buffer, streams=streams, total_timesteps=work.total_timesteps)
    while (limit := connection.recv()) is not None:
        metrics, episodes, skipped = [], collector.episodes.count, collector.skipped_rows
        diverged = collector.episodes.diverged
        for normalizer, moments in zip(own, shared.moments, strict=True):
            for mine, theirs in zip(moments_of(normalizer), moments, strict=True):
                mine.copy_(theirs)
        while (at := _claim(shared.claimed, limit, work.n_steps)) is not None:
            parameters.copy_(optimizer.flat)
            trainer.counters.env_steps = at
            metrics.append(trainer.iterate().metrics)
        ended = collector.episodes.count - episodes
        told = Round(
            metrics={name: float(value) for name, value in _mean(metrics).items()},
            episodes=list(collector.episodes.recent)[-ended:] if ended else [],
            ended=ended,
            updates=len(metrics),
            skipped_rows=collector.skipped_rows - skipped,
            diverged=collector.episodes.diverged - diverged,
            moments=[tuple(x.numpy() for x in n.since(*m)) for n, m in zip(own, shared.moments, strict=True)],
        )
        connection.send(told)
    env.close()


def _claim(claimed: Any, limit: int, steps: int) -> int | None:
    """Take the next `steps` environment steps; return how many came before them, or None where the round is over."""
    with claimed.get_lock():
        at: int = claimed.value
        if at >= limit:
            return None
        claimed.value = at + steps
        return at


def _mean(metrics: Sequence[dict[str, float] | Metrics]) -> Metrics:
    """Return the mean of scalars of the same names; nothing where there are none."""
    if not metrics:
        return {}
    return {name: torch.stack([torch.as_tensor(each[name]) for each in metrics]).mean() for name in metrics[0]}


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Ignore Ctrl-C for a moment, where it may be: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _follow_into_death() -> None:
    """End this process at once when the trainer's has ended, whatever the environment is doing."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _end(workers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    """End the workers: by asking, then by force."""
    for _, connection in workers:
        with suppress(OSError):  # it may be dead
            connection.send(None)
    for process, connection in workers:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
        connection.close()
