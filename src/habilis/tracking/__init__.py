"""F2: where scalars go: console, JSON lines, TensorBoard, Weights & Biases."""

from habilis.tracking.progress import Progress
from habilis.tracking.tracker import Tracker, Writer, open_tracking
from habilis.tracking.writers import JsonlWriter, TensorBoardWriter, WandbWriter

__all__ = [
    "JsonlWriter",
    "Progress",
    "TensorBoardWriter",
    "Tracker",
    "WandbWriter",
    "Writer",
    "open_tracking",
]
