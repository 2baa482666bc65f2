"""One checkpoint: a folder with two files a component and a manifest that vouches for them.

`<name>.json` holds the structure of a component and `<name>.safetensors` its tensors, where it has any;
`manifest.json` holds the format version, the sizes and SHA-256 sums, and what the writer wants to be known (`meta`).
Loading parses JSON and copies numbers; it never runs anything. A checkpoint is written into a staging folder beside its
place, brought to the disk and then renamed, so that a name either holds a whole checkpoint or nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from habilis.checkpoint.files import check_fingerprint, fingerprint, read_tensors, write_tensors
from habilis.checkpoint.state_tree import flatten, unflatten
from habilis.core.errors import CheckpointError, did_you_mean
from habilis.core.files import sync_folder, write_bytes
from habilis.core.types import State
from habilis.core.version import __version__

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
COMPONENT_NAME = re.compile(r"(?!manifest$)[A-Za-z0-9_][A-Za-z0-9_.-]*")

HEADER_BYTES_PER_TENSOR = 256
FOLDER_BYTES = 64 * 1024
"""Room for the manifest, the folder and the rounding of each file to blocks, in the estimate of the space needed."""


def save_checkpoint(directory: Path, components: Mapping[str, State], *, meta: Mapping[str, Any]) -> Path:
    """Write a checkpoint to `directory`, which must not exist yet.

    Args:
        directory: The folder to publish; its parents are made.
        components: State by name; each can be loaded without reading the others.
        meta: What else to know, of the same kinds as a state but without tensors. Needs `exact: bool`: whether a
            resumed run repeats the one that was not interrupted.

    Returns:
        `directory`.

    Raises:
        CheckpointError: If `directory` exists, a state holds something that cannot be saved, or the disk cannot hold
            it. Nothing is left behind then.
    """
    directory = Path(directory)
    if directory.exists():
        raise CheckpointError(f"{directory} already exists and is not overwritten: choose another directory")
    publish(stage_checkpoint(directory, components, meta=meta), directory)
    return directory


def stage_checkpoint(directory: Path, components: Mapping[str, State], *, meta: Mapping[str, Any]) -> Path:
    """Write a whole checkpoint beside `directory` and return where; see `save_checkpoint`."""
    if not isinstance(meta.get("exact"), bool):
        raise ValueError("the meta of a checkpoint needs 'exact': True or False")
    for name in components:
        if not COMPONENT_NAME.fullmatch(name):
            raise ValueError(f"a component cannot be called {name!r}: use letters, digits, '_', '-' and '.'")
    structures, tensors = {}, {}
    for name, state in components.items():
        structures[name], tensors[name] = flatten(state, where=name)
    body = {
        "format_version": FORMAT_VERSION,
        "habilis": __version__,
        "meta": _flatten_meta(meta),
        "components": list(components),
    }
    texts = {f"{name}.json": _to_json(structure) for name, structure in structures.items()}
    files = {f"{name}.safetensors": table for name, table in tensors.items() if table}
    needed = _bytes_needed(texts, files)

    staging = directory.with_name(f".staging-{directory.name}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)  # left over from a save that was killed
        _require_space(directory, needed)
        _write(staging, body, texts, files)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise CheckpointError(
                f"the checkpoint {directory} could not be written ({error}): it needs {needed:,} bytes and "
                f"{_free(directory):,} are free; make room, earlier checkpoints are whole"
            ) from error
        raise
    return staging


def publish(staging: Path, directory: Path) -> None:
    """Give a staged checkpoint its name, for certain."""
    os.rename(staging, directory)
    sync_folder(directory.parent)


def load_checkpoint(path: Path, components: Iterable[str] | None = None) -> tuple[dict[str, State], dict[str, Any]]:
    """Read a checkpoint, or some of its components, with every file read checked against its sum.

    Args:
        path: The folder of a checkpoint, or a pointer to one (`last`, `best`) in the folder of a store.
        components: The names of those to load, none for the meta alone; None loads all. The files of the others are
            not touched.

    Returns:
        State by component name, and the meta.

    Raises:
        CheckpointError: If the checkpoint is missing, damaged or of another format version, or lacks a component.
    """
    path = resolve(Path(path))
    manifest = read_manifest(path)
    names = manifest["components"] if components is None else list(components)
    states = {}
    for name in names:
        if name not in manifest["components"]:
            known = ", ".join(manifest["components"])
            raise CheckpointError(
                f"{path} has no component {name!r}{did_you_mean(name, manifest['components'])}; it has: {known}"
            )
        states[name] = _load_component(path, name, manifest["files"])
    return states, unflatten(manifest["meta"], {})


def verify_checkpoint(path: Path, components: Iterable[str] | None = None) -> None:
    """Check the manifest and every file of a checkpoint, or those of some components.

    Raises:
        CheckpointError: If one is missing, truncated or altered, or the format is of another version.
    """
    path = resolve(Path(path))
    wanted = None if components is None else set(components)
    for name, expected in read_manifest(path)["files"].items():
        if wanted is None or name.rpartition(".")[0] in wanted:
            check_fingerprint(path / name, expected)


def resolve(path: Path) -> Path:
    """Return the folder of a checkpoint: `path` itself, or the one beside it that the pointer file `path` names."""
    if not path.is_file():
        return path
    name = path.read_text(encoding="utf-8", errors="replace").strip()
    if not COMPONENT_NAME.fullmatch(name):
        raise CheckpointError(f"the pointer {path} is damaged, it does not name a checkpoint: give a step_* folder")
    return path.with_name(name)


def read_manifest(path: Path) -> dict[str, Any]:
    """Read and check the manifest of the checkpoint in the folder `path`."""
    file = path / MANIFEST
    if not path.is_dir():
        raise CheckpointError(f"there is no checkpoint {path}: give the folder of a run's checkpoint")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the folder is no checkpoint, or it is damaged; load another one")
    text = file.read_bytes()
    try:
        manifest = json.loads(text)
        version, writer = manifest["format_version"], manifest["habilis"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is truncated or altered: load another checkpoint of the run") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version} (written by habilis {writer}), but habilis {__version__} "
            f"reads format {FORMAT_VERSION}: load it with the habilis that wrote it"
        )
    if text != _seal({key: value for key, value in manifest.items() if key != "sha256"}):
        raise CheckpointError(f"{file} does not match its own checksum: load another checkpoint of the run")
    return manifest  # type: ignore[no-any-return]


def _write(
    staging: Path, body: dict[str, Any], texts: Mapping[str, bytes], files: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Write all files, the manifest last, and bring them to the disk."""
    staging.mkdir()
    for name, text in texts.items():
        write_bytes(staging / name, text)
    for name, table in files.items():
        write_tensors(staging / name, table)
    sums = {name: fingerprint(staging / name) for name in (*texts, *files)}
    write_bytes(staging / MANIFEST, _seal({**body, "files": sums}))
    sync_folder(staging)


def _load_component(path: Path, name: str, files: Mapping[str, Any]) -> State:
    structure_file, tensor_file = path / f"{name}.json", path / f"{name}.safetensors"
    check_fingerprint(structure_file, files[structure_file.name])
    tensors: dict[str, Tensor] = {}
    if tensor_file.name in files:
        check_fingerprint(tensor_file, files[tensor_file.name])
        tensors = read_tensors(tensor_file)
    return unflatten(json.loads(structure_file.read_bytes()), tensors)  # type: ignore[no-any-return]


def _flatten_meta(meta: Mapping[str, Any]) -> Any:
    structure, tensors = flatten(meta, where="meta")
    if tensors:
        raise ValueError(
            f"the meta of a checkpoint takes no tensors, got {', '.join(tensors)}: put them in a component"
        )
    return structure


def _seal(body: Mapping[str, Any]) -> bytes:
    """Return the text of a manifest: `body` with its own checksum, so that no byte of it can change unseen."""
    return _to_json({**body, "sha256": hashlib.sha256(_to_json(body)).hexdigest()}, indent=1)


def _to_json(tree: Any, indent: int | None = None) -> bytes:
    return json.dumps(tree, indent=indent, allow_nan=False).encode() + b"\n"


def _bytes_needed(texts: Mapping[str, bytes], files: Mapping[str, Mapping[str, Tensor]]) -> int:
    tensors = [tensor for table in files.values() for tensor in table.values()]
    data = sum(tensor.nbytes + HEADER_BYTES_PER_TENSOR for tensor in tensors) + sum(map(len, texts.values()))
    return data + FOLDER_BYTES


def _free(directory: Path) -> int:
    return shutil.disk_usage(directory.parent).free


def _require_space(directory: Path, needed: int) -> None:
    free = _free(directory)
    if free < needed:
        raise CheckpointError(
            f"the checkpoint {directory} needs {needed:,} bytes but only {free:,} are free: make room on the disk, or "
            "keep fewer checkpoints; earlier ones are whole"
        )
