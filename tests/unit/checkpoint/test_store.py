"""The checkpoints of a run: rotation, pointers, falling back from damage, and a process killed at any moment."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import habilis.checkpoint
from habilis.checkpoint import CheckpointStore, load_checkpoint, verify_checkpoint
from habilis.core.errors import CheckpointError, ConfigError


def save(store, step, value=None, **settings):
    value = step if value is None else value
    components = {"policy": {"w": torch.full((50,), float(value))}, "counters": {"value": value}}
    return store.save(step, components, {"exact": True}, **settings)


def value_of(path):
    states, _ = load_checkpoint(path)
    assert (states["policy"]["w"] == states["counters"]["value"]).all(), "components of two checkpoints are mixed"
    return states["counters"]["value"]


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def test_an_empty_store_touches_nothing(store):
    assert (store.latest(), store.best(), store.steps()) == (None, None, [])
    assert not store.directory.exists()


def test_rotation_keeps_the_newest_and_the_best(store):
    for step in (100, 200, 300):
        save(store, step)
        if step == 100:
            store.mark_best(100)
    for step in (400, 500):
        save(store, step)
    assert store.steps() == [100, 400, 500]
    assert sorted(os.listdir(store.directory)) == [
        "best", "last", "step_000000000100", "step_000000000400", "step_000000000500",
    ]  # fmt: skip
    assert value_of(store.latest()) == 500
    assert value_of(store.best()) == 100
    assert load_checkpoint(store.directory / "last")[1] == {"step": 500, "exact": True}
    store.mark_best(500)
    save(store, 600)
    assert store.steps() == [500, 600]


def test_a_copy_of_the_run_keeps_its_pointers(store, tmp_path):
    save(store, 1)
    save(store, 2)
    store.mark_best(1)
    copy = CheckpointStore(shutil.copytree(store.directory, tmp_path / "elsewhere"), keep=2)
    shutil.rmtree(store.directory)
    assert copy.latest() == tmp_path / "elsewhere" / "step_000000000002"
    assert value_of(copy.best()) == 1


def test_who_wants_the_policy_does_not_read_the_rest(store):
    save(store, 1)
    save(store, 2)
    store.mark_best(2)
    (store.path(2) / "counters.json").write_text("damaged")
    assert store.latest(["policy"]) == store.best(["policy"]) == store.path(2)
    assert store.latest() == store.path(1)
    with pytest.raises(CheckpointError, match=r"counters\.json"):
        store.best()


def test_the_best_must_exist(store):
    with pytest.raises(CheckpointError, match=r"no checkpoint .*step_000000000007 to mark"):
        store.mark_best(7)


def test_keep_is_at_least_one(tmp_path):
    with pytest.raises(ConfigError, match="got 0"):
        CheckpointStore(tmp_path, keep=0)


def damage_tensor(store):
    file = store.path(2) / "policy.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "policy.safetensors"


def damage_pointer(store):
    (store.directory / "last").write_bytes(b"\x00\xff")
    (store.path(2) / "manifest.json").unlink()
    return "pointer"


def remove_folder(store):
    shutil.rmtree(store.path(2))
    return "step_000000000002"


@pytest.mark.parametrize("damage", [damage_tensor, damage_pointer, remove_folder])
def test_a_damaged_last_falls_back_and_says_so(store, caplog, damage):
    save(store, 1)
    save(store, 2)
    named = damage(store)
    with caplog.at_level(logging.WARNING):
        assert value_of(store.latest()) == 1
    assert named in caplog.text
    assert "going back to" in caplog.text
    save(store, 2)  # the run comes by here again
    caplog.clear()
    assert value_of(store.latest()) == 2
    assert caplog.text == ""


def test_a_store_where_all_is_damaged_says_what(store):
    save(store, 1)
    save(store, 2)
    (store.path(1) / "policy.json").unlink()
    (store.path(2) / "counters.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is whole.*counters\.json.*policy\.json"):
        store.latest()


def test_the_pointer_rules_over_a_future_that_the_run_has_left(store):
    for step in (100, 200, 300):
        save(store, step)
    save(store, 250, value=-1)  # resumed from 200
    assert store.steps() == [200, 250]
    assert value_of(store.latest()) == -1
    # also where a kill has left the one that it points to set aside, and the future holds the best
    store.mark_best(250)
    save(store, 200)
    store.path(200).rename(store.directory / ".replaced-step_000000000200")
    assert value_of(store.latest()) == 200


def test_a_step_is_replaced_whole(store):
    save(store, 1)
    save(store, 1, value=5)
    assert value_of(store.latest()) == 5
    assert sorted(os.listdir(store.directory)) == ["last", "step_000000000001"]


def test_a_damaged_best_pointer_stops_rotation_not_the_run(store, caplog):
    for step in (1, 2):
        save(store, step)
    (store.directory / "best").write_text("???")
    save(store, 3)
    assert store.steps() == [1, 2, 3]
    assert "best" in caplog.text
    with pytest.raises(CheckpointError, match="pointer"):
        store.best()


KILLS = """
import os, random, signal, sys, time, torch
from pathlib import Path
from habilis.checkpoint import CheckpointStore, load_checkpoint, verify_checkpoint

os.fsync = lambda descriptor: None  # a kill, unlike a power cut, needs no waiting for the disk

def components(step):
    return {"policy": {"w": torch.full((3000,), float(step))}, "counters": {"value": step}}

def save(store, step, value=None):
    store.save(step, components(step if value is None else value), {"exact": True})

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def die_at_call(count):
    '''Kill this process at its count-th call that changes the disk.'''
    calls = 0
    def wrap(module, name):
        real = getattr(module, name)
        def wrapped(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == count:
                die()
            return real(*args, **kwargs)
        setattr(module, name, wrapped)
    for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
        wrap(os, name)

def child(work):
    '''Run work in a child process that may be killed; return whether it came to its end.'''
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def check(store, at_least, at_most, where):
    path = store.latest()
    assert path is not None, where
    states, meta = load_checkpoint(path)
    value = states["counters"]["value"]
    assert (states["policy"]["w"] == value).all(), where
    assert at_least <= value <= at_most, (where, value)
    for step in store.steps():
        verify_checkpoint(store.path(step))
    return value
"""

AT_EVERY_CALL = (
    KILLS
    + """
for keep in (1, 2):
    for second in (2, 1):  # a new step, and the same step once more
        for count in range(1, 1000):
            store = CheckpointStore(Path(sys.argv[1]) / f"{keep}_{second}_{count}", keep=keep)
            save(store, 0)
            save(store, 1)
            store.mark_best(1)
            def work():
                die_at_call(count)
                save(store, second, value=2)
                store.mark_best(second)
            _, status = os.waitpid(child(work), 0)
            check(store, 1, 2, (keep, second, count))
            save(store, 3)  # the next run goes on and leaves no litter
            check(store, 3, 3, (keep, second, count))
            load_checkpoint(store.best())
            names = sorted(n for n in os.listdir(store.directory) if not n.startswith("step_"))
            assert names == ["best", "last"], names
            if status == 0:
                break
        assert os.WIFEXITED(status) and count > 12, count
        print(count)
"""
)

AT_RANDOM = (
    KILLS
    + """
draw = random.Random(0)
store = CheckpointStore(Path(sys.argv[1]) / "store", keep=2)
save(store, 0)
step = 0
for trial in range(40):
    reader, writer = os.pipe()
    def work():
        for s in range(step + 1, step + 10_000):
            save(store, s)
            os.write(writer, b".")
    pid = child(work)
    published = len(os.read(reader, 1))
    time.sleep(draw.uniform(0.0, 0.02))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(writer)
    while data := os.read(reader, 65536):
        published += len(data)
    os.close(reader)
    step = check(store, step + published, step + published + 1, trial)
print(step)
"""
)


@pytest.mark.parametrize("script", [AT_EVERY_CALL, AT_RANDOM], ids=["at every call", "at random moments"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, script):
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(habilis.checkpoint.__file__).parents[2])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 12


def test_a_reader_does_not_disturb_the_writer(store):
    """Another process may look at a run while it saves: what looks like litter is work in progress."""
    save(store, 1)
    staging = store.directory / ".staging-step_000000000002"
    staging.mkdir()
    reader = CheckpointStore(store.directory, keep=2)
    assert value_of(reader.latest()) == 1
    assert staging.is_dir()
    verify_checkpoint(store.path(1))


def test_the_best_is_pointed_to_before_the_last(store, monkeypatch):
    """Who is killed between the two goes on from the last before, and finds the better one again."""
    save(store, 1, best=True)

    def killed(path, text):
        if path.name == "last":
            raise KeyboardInterrupt
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr("habilis.checkpoint.store.replace_text", killed)
        with pytest.raises(KeyboardInterrupt):
            save(store, 2, best=True)
    assert store.latest() == store.path(1)
    assert store.best() == store.path(2)
    save(store, 2, best=True)
    assert store.latest() == store.best() == store.path(2)
