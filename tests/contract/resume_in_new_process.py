"""Run by `test_algorithms`: load a checkpoint in a process of its own, go on, and print the fingerprint."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import fingerprint, iterate, small_trainer

from habilis.checkpoint import load_checkpoint
from habilis.training.keeping import restore

algorithm, env, path, count = sys.argv[1:]
trainer = small_trainer(algorithm, env, seed=12345)
restore(trainer, load_checkpoint(Path(path))[0])
iterate(trainer, int(count))
sys.stdout.write(fingerprint(trainer))
