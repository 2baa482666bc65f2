"""The progress of a run as it goes: a live display on a terminal, plain lines every few seconds anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from habilis.tracking.console import Status, format_line, render

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_FRAMES = 0.2
SECONDS_BETWEEN_MARKS = 0.1
WINDOW_SECONDS = 30.0


class SpeedMeter:
    """Steps a second over the last `WINDOW_SECONDS`, so that a resumed run and a slow start do not blur it."""

    def __init__(self, step: int, now: float) -> None:
        self._marks: deque[tuple[float, int]] = deque([(now, step)])

    def update(self, step: int, now: float) -> None:
        """Note that the run has come to `step` at the time `now`."""
        if len(self._marks) > 2 and now - self._marks[-2][0] < SECONDS_BETWEEN_MARKS:
            self._marks.pop()
        self._marks.append((now, step))
        while len(self._marks) > 2 and self._marks[1][0] <= now - WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def speed(self) -> float | None:
        """Steps a second; None before the first update."""
        (first_time, first_step), (last_time, last_step) = self._marks[0], self._marks[-1]
        return (last_step - first_step) / (last_time - first_time) if last_time > first_time else None


class Progress:
    """Shows where a run is: env steps, speed, returns, evaluations, time left, losses.

    Args:
        total_steps: Env steps of the whole run.
        stream: Where to; standard output unless said otherwise. A terminal gets the live display.
        clock: Seconds that only grow.
    """

    def __init__(
        self, total_steps: int, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._clock = clock
        self._total = total_steps
        self._metrics: dict[str, float] = {}
        self._shown_at = -float("inf")
        self._closed = False
        self._warned = False
        terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._live = _start_live(self._stream) if terminal else None
        self.restart(0)

    def restart(self, step: int) -> None:
        """Go on from `step`, done by an earlier process: speed counts from here."""
        self._step = self._shown_step = step
        self._meter = SpeedMeter(step, self._clock())

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell that the run has come to `step`, with scalars that may be some of all; an evaluation shows at once."""
        self._step = step
        self._metrics.update(metrics)
        self._warn(metrics)
        self._meter.update(step, self._clock())
        interval = SECONDS_BETWEEN_FRAMES if self._live else SECONDS_BETWEEN_LINES
        if "eval/mean_reward" in metrics or self._clock() - self._shown_at >= interval:
            self._show()

    def message(self, text: str) -> None:
        """Print `text` above the display, or as a line of its own."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Show the last state and leave it there; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._shown_step != self._step:
            self._show()
        if self._live:
            self._live.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _warn(self, metrics: Mapping[str, float]) -> None:
        """Say once that simulations diverge: figures of episodes alone would not show it."""
        diverged = metrics.get("rollout/diverged_steps", 0)
        if diverged and not self._warned:
            self._warned = True
            self.message(
                f"warning: simulations diverged in {diverged:,.0f} steps so far; their episodes were cut off and these "
                "steps are not learnt from. rollout/diverged_steps counts on: if it grows, look at the model's time "
                "step and gains, or at the bounds of the actions"
            )

    def _show(self) -> None:
        self._shown_at, self._shown_step = self._clock(), self._step
        status = Status(self._step, self._total, self._meter.speed, self._metrics)
        if self._live:
            self._live.update(render(status), refresh=True)
        else:
            self.message(format_line(status))


def tell(text: str) -> None:
    """Write a line to standard output at once: what a run says before its display is open."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _start_live(stream: TextIO) -> Any:
    """Start rich's live display, drawn only when asked: a thread of its own would take turns with the training."""
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(file=stream), auto_refresh=False)
    live.start()
    return live
