"""One run from beginning to end: drives a trainer, writes metrics, evaluates, keeps checkpoints, stops cleanly.

Everything here happens between iterations and draws from no random stream of the training, so a run that is evaluated
or logged more often learns exactly the same.
"""

from __future__ import annotations

import json
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from habilis.checkpoint import CheckpointStore, load_checkpoint
from habilis.checkpoint.store import STEP_NAME, step_name
from habilis.core.config import to_dict
from habilis.core.errors import EndlessEpisodeError, EnvError, NonFiniteError
from habilis.core.files import replace_text
from habilis.core.protocols import VecEnv
from habilis.core.types import State
from habilis.data.episodes import LONGEST_EPISODE
from habilis.evaluation.evaluator import CHOOSING_SEED, EvaluationResult, evaluate
from habilis.evaluation.grid_policy import policy_on_grid
from habilis.training.config import TrainConfig
from habilis.training.keeping import Trainer, components, inexactness, restore
from habilis.training.nonfinite import Watch, first_scalar, moment, write_dump
from habilis.training.report import Report

REMEDY = "look at the rewards' scale, or lower --algo.learning-rate, or go on regardless by --on-nonfinite skip"
"""What to do about numbers of learning that are not finite."""

ENDLESS = 10_000
"""Steps an episode may take in an evaluation on the way, where the environment sets no limit: a policy that has learnt
little may go round in circles, and what it has yet to learn is not to wait for it."""


class Tracking(Protocol):
    """Where a session's scalars go."""

    def log(self, metrics: Mapping[str, Tensor | float], step: int) -> None:
        """Write scalars at a number of environment steps."""
        ...

    def message(self, text: str) -> None:
        """Tell the user something."""
        ...

    def state_dict(self) -> State:
        """Return the position in the files written."""
        ...

    def load_state_dict(self, state: State) -> None:
        """Go back to that position."""
        ...


class Session:
    """Runs a trainer in a run directory.

    Args:
        config: how often to log, evaluate and keep.
        trainer: what is run.
        run_dir: where everything is written.
        tracking: where scalars and messages go.
        make_eval_env: makes an environment for evaluation with a number of copies.
        meta: what checkpoints say of the run besides.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainer: Trainer,
        run_dir: Path,
        tracking: Tracking,
        make_eval_env: Callable[[int], VecEnv],
        meta: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.trainer = trainer
        self.run_dir = run_dir
        self.tracking = tracking
        self.store = CheckpointStore(run_dir / "checkpoints", keep=config.keep_checkpoints)
        self.metrics: dict[str, float] = {}
        self.evaluation: EvaluationResult | None = None
        self.interrupted = False
        self._evaluations = run_dir / "eval"
        self._make_eval_env = make_eval_env
        self._eval_env: VecEnv | None = None
        self._meta = meta
        self._best = -math.inf
        self._wall = 0.0
        self._started = time.monotonic()
        self._window = (0, 0.0)
        self._last_saved = self._last_evaluated = self._last_logged = 0
        self._metrics: dict[str, Tensor] = {}
        self._evaluating = False
        self._checkpoint: Path | None = None
        self._watch = Watch(trainer)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint: all as it was, or fresh episodes where the environment cannot be restored."""
        states, _ = load_checkpoint(path)
        restore(self.trainer, states)
        session = states["session"]
        self._best, self._wall = session["best"], session["wall"]
        steps = self.trainer.counters.env_steps
        self._last_saved = self._last_logged = steps
        self._last_evaluated = session["last_evaluated"]
        self.tracking.load_state_dict(session["tracking"])
        # checkpoints of earlier versions do not have them
        self._metrics = session.get("metrics", {})
        self.metrics = session.get("scalars", {})
        if (evaluation := session.get("evaluation")) is not None:
            self.evaluation = EvaluationResult.from_dict(evaluation)
        self._checkpoint = path
        self._watch = Watch(self.trainer)
        for evaluation in self._evaluations.glob("step_*.json"):
            at = STEP_NAME.match(evaluation.name)
            if at is not None and int(at[1]) > steps:  # of a future that the run has left
                evaluation.unlink()

    def measure_anew(self) -> None:
        """Let the next evaluation be the best so far: the environment is another than those before were taken in."""
        self._best = -math.inf

    def run(self) -> None:
        """Train to the end, or until interrupted; then evaluate and keep the result.

        Raises:
            NonFiniteError: a quantity was not finite; `nonfinite/` in the run directory holds what replays it.
        """
        self._started = time.monotonic()
        self._window = (self.trainer.counters.env_steps, self._started)
        try:
            with self._interruptible():
                for report in self.trainer:
                    self._after(report)
                    if self.interrupted:
                        break
            self._finish()
        except NonFiniteError as error:
            again = self._command_of_evaluation() if self._evaluating else self._dump(error)
            raise NonFiniteError(f"{error} ({again}); {self._way_on()}") from error
        except EnvError as error:
            raise EnvError(f"{error}; {self._way_on()}") from error
        except KeyboardInterrupt:
            self.tracking.message(f"Stopped at once: {self._way_on()}")
            raise
        finally:
            if self._eval_env is not None:
                self._eval_env.close()
                self._eval_env = None

    def _after(self, report: Report) -> None:
        """Log, evaluate and keep where it is time to."""
        steps = report.env_steps
        # an update need not move everything: what it leaves out keeps its last scalars
        self._metrics = self._metrics | report.metrics
        if self.config.on_nonfinite == "stop" and (fault := self._watch.gradient()) is not None:
            raise NonFiniteError(f"{fault}, and its step was left out: {REMEDY}")
        if self._due("log_freq", self._last_logged, steps):
            self._log(report)
        evaluation_due = self.config.eval_episodes > 0 and self._due("eval_freq", self._last_evaluated, steps)
        self._evaluate_and_save(evaluation_due, self._due("checkpoint_freq", self._last_saved, steps))

    def _due(self, name: Any, last: int, steps: int) -> bool:
        """Whether a multiple of the frequency lies between two counts of steps."""
        every = self.config.every(name)
        return steps // every > last // every

    def _log(self, report: Report) -> None:
        """Write scalars, and refuse to go on with what is not finite."""
        steps = report.env_steps
        now = time.monotonic()
        since, then = self._window
        self._window, self._last_logged = (steps, now), steps
        self._check_scalars()
        self.metrics = {f"train/{name}": float(value) for name, value in self._metrics.items()}
        self.metrics |= self.trainer.collector.episodes.summary()
        self.metrics["time/fps"] = (steps - since) / max(now - then, 1e-9)
        self.metrics["time/wall"] = self._wall + now - self._started
        self.metrics["time/iterations"] = report.iteration
        self.metrics["train/gradient_steps"] = report.gradient_steps
        if self.trainer.collector.skipped_rows:
            self.metrics["rollout/skipped_steps"] = self.trainer.collector.skipped_rows
        self.tracking.log(self.metrics, steps)

    def _check_scalars(self) -> None:
        """Stop, where the user did not ask to go on, at a scalar that is not finite."""
        fault = None if self.config.on_nonfinite == "skip" else first_scalar(self._metrics)
        if fault is not None:
            raise NonFiniteError(f"{fault} {moment(self.trainer)}: {REMEDY}")

    def _evaluate_and_save(self, evaluation_due: bool, checkpoint_due: bool) -> None:
        """Do what is due. The checkpoint comes before the evaluation's file: nothing learnt is lost to a full disk."""
        steps = self.trainer.counters.env_steps
        self._evaluating = evaluation_due
        try:
            tree, better = self._evaluate(steps) if evaluation_due else ({}, False)
        except (EnvError, NonFiniteError, KeyboardInterrupt) as error:
            skips = self.config.on_nonfinite == "skip" and isinstance(error, NonFiniteError)
            if not (skips or isinstance(error, EndlessEpisodeError)):
                self.save()  # the policy that met it
                raise
            self.tracking.message(f"The evaluation after {steps:,} env steps is left out: {error}")
            tree, better, self._last_evaluated, self.evaluation = {}, False, steps, None
        self._evaluating = False
        if checkpoint_due or better:
            self.save(best=better)
        if tree:
            self._evaluations.mkdir(exist_ok=True)
            replace_text(self._evaluations / f"{step_name(steps)}.json", json.dumps(tree, allow_nan=False) + "\n")

    def _evaluate(self, steps: int) -> tuple[dict[str, Any], bool]:
        """Evaluate the policy; return what there is to write of it, and whether no policy before was better."""
        env = self._eval_env = self._eval_env or self._make_eval_env(min(self.config.eval_episodes, 10))
        told = {
            "episodes": self.config.eval_episodes,
            "seed": self._evaluation_seed,
            "longest_episode": ENDLESS if env.spec.max_episode_steps is None else LONGEST_EPISODE,
        }
        policy = self.trainer.algorithm.policy
        self.evaluation = result = evaluate(policy, env, **told)
        stochastic = None
        metrics = {
            "eval/mean_reward": result.mean,
            "eval/iqm_reward": result.iqm,
            "eval/mean_ep_length": result.mean_length,
        }
        if self.config.eval_stochastic:
            stochastic = evaluate(policy, env, **told, deterministic=False)
            metrics["eval/mean_reward_stochastic"] = stochastic.mean
        if result.success_rate is not None:
            metrics["eval/success_rate"] = result.success_rate
        self.tracking.log(metrics, steps)
        tree = {"step": steps, "deterministic": result.to_dict(), "stochastic": stochastic and stochastic.to_dict()}
        on_grid = policy_on_grid(policy, env)
        if on_grid is not None:
            tree["grid"] = on_grid.to_dict()
        self._last_evaluated = steps
        better = result.mean > self._best
        self._best = max(self._best, result.mean)
        return tree, better

    def save(self, *, best: bool = False) -> Path:
        """Write a checkpoint of this moment, which must lie between two iterations.

        Args:
            best: whether no policy before was better.

        Raises:
            CheckpointError: it cannot be written.
            NonFiniteError: what was learnt last is not finite, and the user did not ask to go on: nothing is written.
        """
        self._check_scalars()
        steps = self.trainer.counters.env_steps
        session = {
            "best": self._best,
            "wall": self._wall + time.monotonic() - self._started,
            "last_evaluated": self._last_evaluated,
            "tracking": self.tracking.state_dict(),
            "metrics": self._metrics,
            "scalars": self.metrics,
            "evaluation": self.evaluation and self.evaluation.to_dict(),
        }
        states = components(self.trainer) | {"session": session}
        exact = inexactness(self.trainer) is None
        self._checkpoint = self.store.save(steps, states, {"exact": exact, **self._meta}, best=best)
        self._last_saved = steps
        return self._checkpoint

    def _finish(self) -> None:
        """Evaluate and keep the last policy, unless the run was interrupted: then only keep it."""
        steps = self.trainer.counters.env_steps
        evaluation_due = not self.interrupted and self.config.eval_episodes > 0 and self._last_evaluated != steps
        self._evaluate_and_save(evaluation_due, self._last_saved != steps)

    def _way_on(self) -> str:
        """Say what is kept, and how to go on."""
        command = f"habilis train --resume {shlex.quote(str(self.run_dir))}"
        if self._checkpoint is None:
            return f"nothing had been saved yet: start again by {command}"
        return f"what was learnt up to step {self._last_saved} is kept: go on by {command}"

    @property
    def _evaluation_seed(self) -> int:
        """By which the best policy is chosen: not the episodes of `habilis evaluate` with any small seed."""
        return CHOOSING_SEED + self.config.seed

    def _command_of_evaluation(self) -> str:
        """Say how an evaluation is repeated, whose episodes are not those of training."""
        options = f"--episodes {self.config.eval_episodes} --seed {self._evaluation_seed}"
        return f"in an evaluation, which `habilis evaluate {shlex.quote(str(self.run_dir))} {options}` repeats"

    def _dump(self, error: NonFiniteError) -> str:
        """Write what a fault is played again by, and say so."""
        path = self.run_dir / "nonfinite" / step_name(self.trainer.counters.env_steps)
        meta = {**self._meta, "config": to_dict(self.config)}
        return write_dump(path, self.trainer, error, self._checkpoint, meta)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C end the run after the iteration under way, and the second at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(signum: int, frame: object) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, previous)
            with suppress(RuntimeError):  # a line was just being written, in which no other can be
                self.tracking.message("Stopping after this iteration; press Ctrl-C again to stop at once.")

        previous = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
