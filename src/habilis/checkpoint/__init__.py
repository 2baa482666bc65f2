"""F2: saving and loading named components without pickle, published atomically and verified by checksum."""

from habilis.checkpoint.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint, verify_checkpoint
from habilis.checkpoint.store import CheckpointStore

__all__ = ["FORMAT_VERSION", "CheckpointStore", "load_checkpoint", "save_checkpoint", "verify_checkpoint"]
