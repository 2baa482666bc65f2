"""The environments of the page on environments of one's own are sound, and it says truly what groups they have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env

PAGE = Path(__file__).parents[3] / "docs" / "environments.md"
BLOCKS = {
    code.split("\n", 1)[0].removeprefix("# "): code
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
}


def run(name):
    exec(compile(BLOCKS[name], name, "exec"), {"__name__": name.removesuffix(".py")})


@pytest.mark.parametrize(
    ("name", "id", "groups"),
    [("my_robots.py", "my_robots/Winch-v0", ["critic", "policy"]), ("rail.py", "my_robots/Rail-v0", ["policy"])],
)
def test_the_doctor_finds_nothing_wrong_with_them(name, id, groups):
    run(name)
    env = make_vec_env(id, 3)
    assert sorted(env.spec.obs) == groups
    assert [finding for finding in check_env(env, 200) if finding.level != "ok"] == []
    env.close()


def test_the_groups_are_those_that_the_page_prints(capsys):
    run("groups.py")
    assert f"# {capsys.readouterr().out}" in BLOCKS["groups.py"]


def test_every_example_is_a_program():
    for name, code in BLOCKS.items():
        compile(code, name, "exec")
    assert len(BLOCKS) == 6
