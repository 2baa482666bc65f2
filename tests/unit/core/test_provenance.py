"""What a run says it was computed by."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import habilis
from habilis.core.provenance import commit_of, versions


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    return subprocess.run(["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    """A repository with a package in `src`, and one that was installed into it."""
    for name in ("src/ours", "venv/site-packages/ours"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "code.py").write_text("x = 1\n")
    git(tmp_path, "init", "-q")
    commit_of.cache_clear()
    return tmp_path


def test_the_commit_is_told_and_whether_the_code_has_changed_since(repository):
    assert commit_of(repository / "src") is None, "nothing is committed yet"
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "first")
    (repository / "notes").write_text("not code")
    commit_of.cache_clear()
    commit = git(repository, "rev-parse", "HEAD").strip()
    assert commit_of(repository / "src") == commit
    (repository / "src/ours/new.py").write_text("x = 2\n")
    commit_of.cache_clear()
    assert commit_of(repository / "src") == f"{commit}+changed"


def test_the_commit_of_a_users_repository_is_not_ours(repository):
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "first")
    assert commit_of(repository / "venv/site-packages") is None


def test_without_git_or_a_repository_there_is_no_commit(repository, tmp_path_factory, monkeypatch):
    assert commit_of(tmp_path_factory.mktemp("plain")) is None
    monkeypatch.setenv("PATH", "")
    commit_of.cache_clear()
    assert commit_of(repository / "src") is None


def test_runs_tell_it():
    ours = commit_of(Path(habilis.__file__).parents[1])
    told = versions()
    assert told.get("commit") == ours
    assert {"python", "platform", "habilis", "processor", "torch"} <= set(told)
