"""The version of Habilis, which checkpoints, runs and exports name."""

__version__ = "0.1.0"
