"""One checkpoint: loaded as saved, and refused by name when anything about it is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import habilis.checkpoint
from habilis.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from habilis.core.errors import CheckpointError

COMPONENTS = {
    "policy": {"weight": torch.arange(6.0).reshape(2, 3), "count": 3},
    "replay": {"obs": np.arange(100, dtype=np.float32), "position": 7},
    "counters": {"env_steps": 2**70, "ratio": float("inf")},
}


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "runs" / "one", COMPONENTS, meta={"exact": True, "score": float("nan")})


def test_everything_and_the_meta_come_back(saved):
    loaded, meta = load_checkpoint(saved)
    assert list(loaded) == ["policy", "replay", "counters"]
    assert torch.equal(loaded["policy"]["weight"], COMPONENTS["policy"]["weight"])
    assert np.array_equal(loaded["replay"]["obs"], COMPONENTS["replay"]["obs"])
    assert loaded["counters"] == COMPONENTS["counters"]
    assert meta["exact"] is True
    assert np.isnan(meta["score"])


def test_the_manifest_vouches_for_every_file(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["format_version"] == habilis.checkpoint.FORMAT_VERSION
    assert manifest["components"] == list(COMPONENTS)
    assert sorted([*manifest["files"], "manifest.json"]) == sorted(os.listdir(saved))
    for name, entry in manifest["files"].items():
        data = (saved / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    assert os.listdir(saved.parent) == ["one"]


def test_every_file_and_every_name_is_brought_to_the_disk(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync
    monkeypatch.setattr("os.fsync", lambda file: synced.add(os.fstat(file).st_ino) or fsync(file))
    saved = save_checkpoint(tmp_path / "one", COMPONENTS, meta={"exact": True})
    assert synced >= {path.stat().st_ino for path in (tmp_path, saved, *saved.iterdir())}


def test_one_component_is_loaded_without_the_files_of_the_others(saved):
    (saved / "replay.safetensors").unlink()
    (saved / "replay.json").write_text("damaged")
    loaded, _ = load_checkpoint(saved, ["policy"])
    assert list(loaded) == ["policy"]
    assert load_checkpoint(saved, [])[0] == {}
    with pytest.raises(CheckpointError, match=r"replay\.json"):
        load_checkpoint(saved)


def test_loaded_tensors_outlive_the_files(saved):
    loaded, _ = load_checkpoint(saved)
    (saved / "policy.safetensors").write_bytes(b"")
    assert loaded["policy"]["weight"].sum() == 15


def test_a_published_checkpoint_is_never_overwritten(saved):
    with pytest.raises(CheckpointError, match="already exists"):
        save_checkpoint(saved, {}, meta={"exact": True})
    verify_checkpoint(saved)


def test_a_pointer_leads_to_its_checkpoint(saved):
    pointer = saved.with_name("last")
    pointer.write_text("one\n")
    assert load_checkpoint(pointer, [])[1]["exact"] is True
    pointer.write_text("../../etc\n")
    with pytest.raises(CheckpointError, match=r"pointer .*last is damaged"):
        load_checkpoint(pointer)


@pytest.mark.parametrize("name", ["../evil", "", "a/b", "manifest", ".hidden"])
def test_component_names_stay_in_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be called"):
        save_checkpoint(tmp_path / "x", {name: {}}, meta={"exact": True})


@pytest.mark.parametrize("meta", [{}, {"exact": 1}, {"exact": True, "t": torch.zeros(1)}])
def test_meta_says_whether_it_is_exact_and_holds_no_tensors(tmp_path, meta):
    with pytest.raises(ValueError, match="meta"):
        save_checkpoint(tmp_path / "x", {}, meta=meta)
    assert os.listdir(tmp_path) == []


def test_an_unknown_component_gets_the_nearest_name(saved):
    with pytest.raises(CheckpointError, match=r"no component 'polcy'.*did you mean 'policy'"):
        load_checkpoint(saved, ["polcy"])


def test_a_state_that_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="agent/net"):
        save_checkpoint(tmp_path / "x", {"agent": {"net": torch.nn.Linear(1, 1)}}, meta={"exact": True})
    assert os.listdir(tmp_path) == []


def all_files():
    return ["manifest.json", *(f"{n}.json" for n in COMPONENTS), "policy.safetensors", "replay.safetensors"]


@pytest.mark.parametrize("name", all_files())
def test_a_truncated_file_is_refused_by_name(saved, name):
    data = (saved / name).read_bytes()
    for size in (0, len(data) // 2, len(data) - 1):
        (saved / name).write_bytes(data[:size])
        for read in (load_checkpoint, verify_checkpoint):
            with pytest.raises(CheckpointError, match=re.escape(name)):
                read(saved)


@pytest.mark.parametrize("name", all_files())
def test_a_flipped_bit_is_refused_by_name(saved, name):
    data = (saved / name).read_bytes()
    for position in range(0, len(data), max(1, len(data) // 40)):
        altered = bytearray(data)
        altered[position] ^= 1
        (saved / name).write_bytes(altered)
        with pytest.raises(CheckpointError, match=re.escape(name) if name != "manifest.json" else "manifest|format"):
            load_checkpoint(saved)


@pytest.mark.parametrize("name", all_files())
def test_a_missing_file_is_refused_by_name(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is missing"):
        load_checkpoint(saved)


def test_another_format_version_is_refused_with_what_to_do(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99, "habilis": "7.5"}))
    with pytest.raises(CheckpointError, match=r"format 99 \(written by habilis 7\.5\).*reads format 1: load it with"):
        load_checkpoint(saved)


def test_no_checkpoint_there(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"manifest\.json is missing"):
        load_checkpoint(tmp_path)


def test_a_leftover_staging_folder_does_not_hinder(tmp_path):
    leftover = tmp_path / ".staging-one"
    leftover.mkdir()
    (leftover / "policy.json").write_text("half")
    save_checkpoint(tmp_path / "one", COMPONENTS, meta={"exact": False})
    verify_checkpoint(tmp_path / "one")
    assert os.listdir(tmp_path) == ["one"]


def test_too_little_space_is_said_before_anything_is_written(tmp_path):
    """The array lies in a file with a hole that is larger than the free disk."""
    size = shutil.disk_usage(tmp_path).free + 2**30
    array = np.memmap(tmp_path / "hole", np.uint8, mode="w+", shape=(size,))
    with pytest.raises(
        CheckpointError, match=r"/one needs [\d,]+ bytes but only [\d,]+ are free: make room"
    ) as refused:
        save_checkpoint(tmp_path / "one", {"replay": {"obs": array}}, meta={"exact": True})
    needed, _ = (int(number.replace(",", "")) for number in re.findall(r"[\d,]{9,}", str(refused.value)))
    assert size < needed < size + 10**6
    assert os.listdir(tmp_path) == ["hole"]


def test_a_full_disk(tmp_path):
    """A file system of 1 MB and few inodes: the first save fits, the second has no inodes and the third no bytes."""
    mounted = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1m,nr_inodes=9 none "$1" && shift && exec "$@"',
        "-",
    ]
    mounted.append(str(tmp_path))
    if subprocess.run([*mounted, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a user mount a small file system")
    script = """
import os, sys, torch
from pathlib import Path
from habilis.checkpoint import CheckpointStore
from habilis.core.errors import CheckpointError
store = CheckpointStore(Path(sys.argv[1]), keep=1)
for step, component in enumerate([{"a": torch.zeros(2)}, {"a": torch.zeros(2)}, {"a": torch.zeros(10**6)}]):
    try:
        store.save(step, {"one": component}, {"exact": True})
    except CheckpointError as error:
        print(error)
print(sorted(os.listdir(store.directory)), store.latest().name)
"""
    done = run_python(script, tmp_path, prefix=mounted)
    no_inodes, no_bytes, left = done.stdout.splitlines()
    assert "could not be written" in no_inodes
    assert "No space left on device" in no_inodes
    assert re.search(r"needs 4,\d+,\d+ bytes but only [\d,]+ are free", no_bytes)
    assert left == "['last', 'step_000000000000'] step_000000000000"


def run_python(script, *arguments, prefix=()):
    return subprocess.run(
        [*prefix, sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(habilis.checkpoint.__file__).parents[2])},
        check=False,
    )


@pytest.mark.parametrize("limit", [100, 3_000, 300_000])
def test_a_write_that_fails_midway_leaves_the_earlier_ones_whole(tmp_path, limit):
    """A file size limit makes the writes fail in the first JSON file, the manifest or in the midst of the tensors."""
    script = """
import resource, sys, torch
from pathlib import Path
from habilis.checkpoint import CheckpointStore
from habilis.core.errors import CheckpointError
store = CheckpointStore(Path(sys.argv[1]), keep=1)
components = {"many": {f"a{i}": i for i in range(30)}, "replay": {"obs": torch.zeros(10**5)}}
store.save(1, components, {"exact": True})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.save(2, components, {"exact": True})
except CheckpointError as error:
    print(error)
"""
    done = run_python(script, tmp_path, limit)
    assert "could not be written" in done.stdout, done
    assert "earlier checkpoints are whole" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["last", "step_000000000001"]
    verify_checkpoint(tmp_path / "step_000000000001")


def test_loading_never_unpickles():
    """Neither the sources nor anything they call to read a checkpoint goes through pickle."""
    for source in Path(habilis.checkpoint.__file__).parent.glob("*.py"):
        assert not re.search(r"pickle\.|import pickle|torch\.(save|load)\b|\beval\(|\bexec\(", source.read_text())
    script = """
import io, pickle, sys, tempfile
from pathlib import Path
import numpy as np, torch
from habilis.checkpoint import load_checkpoint, save_checkpoint
def refuse(*args, **kwargs):
    raise SystemExit("pickle was used")
pickle.load = pickle.loads = pickle.dump = pickle.dumps = pickle.Unpickler = pickle.Pickler = refuse
path = Path(tempfile.mkdtemp()) / "one"
save_checkpoint(path, {"a": {"t": torch.ones(2), "n": np.array(["x"]), "x": (1, None)}}, meta={"exact": True})
assert load_checkpoint(path)[0]["a"]["x"] == (1, None)
print("fine")
"""
    done = run_python(script)
    assert done.stdout == "fine\n", done
