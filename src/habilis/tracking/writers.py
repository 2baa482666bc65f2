"""The places scalars are written to: JSON lines, TensorBoard, Weights & Biases.

Each fits `Writer`. Those that keep files append whole records and, on resume, drop what lies beyond the checkpoint, so
that a curve has every step once.
"""

from __future__ import annotations

import io
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from habilis.core.errors import HabilisError, import_extra
from habilis.core.types import State


class AppendFile:
    """A file that grows by whole records: a record that does not fit on the disk leaves no part behind."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("a+b", buffering=0)

    def append(self, record: bytes) -> None:
        """Write `record` at the end.

        Raises:
            HabilisError: If the disk does not take it.
        """
        end = self._file.seek(0, os.SEEK_END)
        problem: OSError | str | None = None
        try:
            if self._file.write(record) < len(record):
                problem = "no space left"
        except OSError as error:
            problem = error
        if problem:
            self._file.truncate(end)
            raise HabilisError(f"{self.path} could not be written ({problem}): make room on the disk, then resume")

    def position(self) -> int:
        """Return the length of the file, after the disk has it."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def truncate_lines(self, limit: int) -> None:
        """Drop every line that does not end within the first `limit` bytes."""
        self._file.seek(0)
        whole = self._file.read(limit).rfind(b"\n") + 1
        self._file.truncate(whole)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JsonlWriter:
    """One JSON object a line, `{"step": ..., "<name>": number or null, ...}`; null stands for NaN and infinity.

    A line is on its way to the disk when `write` returns. A last line that a kill cut off is dropped on opening.
    """

    def __init__(self, path: Path) -> None:
        self._file = AppendFile(Path(path))
        self._file.truncate_lines(self._file.position())

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Append a line."""
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in metrics.items()}}
        self._file.append(json.dumps(line).encode() + b"\n")

    def state_dict(self) -> State:
        """Return the length of the file in bytes."""
        return {"position": self._file.position()}

    def load_state_dict(self, state: State) -> None:
        """Drop the lines that were written after `state_dict`."""
        self._file.truncate_lines(state["position"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardWriter:
    """Event files for TensorBoard, one for each process that wrote to the run, made at its first event."""

    _file: AppendFile | None

    def __init__(self, directory: Path) -> None:
        # the record format and the messages alone: torch.utils.tensorboard takes ten times as long to import
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._messages, self._summaries, self._records = event_pb2, summary_pb2, RecordWriter
        self._step = 0
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._file = Path(directory) / name, None

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Append an event with every scalar."""
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]
        self._append(step=step, summary=self._summaries.Summary(value=values))
        self._step = step

    def state_dict(self) -> State:
        """Return the last step written."""
        return {"step": self._step}

    def load_state_dict(self, state: State) -> None:
        """Tell TensorBoard to forget the events of other files after the saved step."""
        self._step = state["step"]
        session = self._messages.SessionLog(status=self._messages.SessionLog.START)
        self._append(step=self._step + 1, session_log=session)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _append(self, **content: Any) -> None:
        if self._file is None:
            self._file = AppendFile(self._path)
            self._append(file_version="brain.Event:2")
        record = io.BytesIO()
        event = self._messages.Event(wall_time=time.time(), **content)
        self._records(record).write(event.SerializeToString())
        self._file.append(record.getvalue())


class WandbWriter:
    """A run at Weights & Biases, made at the first write; `WANDB_MODE` and the other variables of wandb hold.

    Args:
        directory: Where wandb keeps its files.
        project: The project to log to.
        name: The run's name.
        config: What to show as the run's configuration.

    Raises:
        MissingExtraError: If wandb is not installed.
    """

    def __init__(self, directory: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        self._wandb = import_extra("wandb", "wandb")
        self._settings = {"dir": str(directory), "project": project, "name": name, "config": dict(config)}
        self._id = uuid.uuid4().hex[:8]
        self._run: Any = None

    def write(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the scalars; the x axis of every chart is `step`, env steps."""
        if self._run is None:
            self._run = self._wandb.init(id=self._id, resume="allow", **self._settings)
            self._run.define_metric("*", step_metric="step")
        self._run.log({**metrics, "step": step})

    def state_dict(self) -> State:
        """Return the id of the run at wandb."""
        return {"id": self._id}

    def load_state_dict(self, state: State) -> None:
        """Go on with the saved run; wandb keeps what was logged after the checkpoint beside what comes now."""
        self._id = state["id"]

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
            self._run = None
