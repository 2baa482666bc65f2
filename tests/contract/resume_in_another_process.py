"""Run by `test_algorithms`: load checkpoints in a process of its own, go on, and print the fingerprint of each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import fingerprint, iterate, small_trainer

from habilis.checkpoint import load_checkpoint
from habilis.training.keeping import restore

for line in sys.stdin:
    algorithm, env, path, count = json.loads(line)
    trainer = small_trainer(algorithm, env, seed=12345)
    restore(trainer, load_checkpoint(Path(path))[0])
    iterate(trainer, count)
    sys.stdout.write(f"{fingerprint(trainer)}\n")
    sys.stdout.flush()
