"""A policy on its grid: asked about every cell, kept with the evaluation, and drawn in reports and films."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers the grid world)
from habilis.algorithms.tabular import TabularConfig, make_policy
from habilis.core.types import PolicyStep
from habilis.envs.grid_drawing import HEAT, heat
from habilis.envs.make import make_vec_env
from habilis.evaluation.grid_policy import GridPolicy, policy_on_grid, show_policy
from habilis.evaluation.report import write_report
from habilis.evaluation.report_grid import draw
from habilis.evaluation.runs import read_run
from habilis.evaluation.video import record_video
from habilis.functional.planning import value_iteration

ID = "habilis/GridWorld-v0"


@pytest.fixture
def env():
    return make_vec_env(ID, 1)


@pytest.fixture
def policy(env):
    """The optimal policy, with one cell that it knows nothing of."""
    policy = make_policy(env.spec, TabularConfig(), torch.Generator())
    policy.values[0] = value_iteration(env.dynamics.transitions, env.dynamics.rewards, 1.0)
    policy.values[0, 15] = 0.0
    return policy


def test_a_table_is_asked_about_every_cell(env, policy):
    found = policy_on_grid(policy, env)
    assert found.actions[:3] == [1, 1, 1]
    assert found.actions[3] == found.actions[5] == found.actions[15] == -1  # goal, obstacle, never met
    assert found.values[:3] == pytest.approx([9.8, 9.9, 10.0])
    again = GridPolicy.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    assert again.grid == env.drawing.grid


def test_any_policy_can_be_asked_and_any_environment(env, policy):
    class Right:
        def act(self, obs, memory=None, *, deterministic=False, generator=None):
            action = torch.ones(len(obs["policy"]), dtype=torch.int64)
            return PolicyStep(action, action)

    class Walker(Right):  # what it does depends on the way that led it there
        def act(self, obs, memory=None, **settings):
            acted = super().act(obs, memory, **settings)
            return PolicyStep(acted.action, acted.env_action, None, {"steps": torch.ones(len(obs["policy"]))})

    found = policy_on_grid(Right(), env)
    assert (found.actions, found.values) == ([1] * 16, None)
    assert policy_on_grid(Walker(), env) is None
    other = make_vec_env("probe/Identity-v0", 1)
    assert policy_on_grid(Right(), other) is None
    show_policy(Right(), other)


def test_colours_go_from_the_lowest_value_to_the_highest(env, policy):
    found = policy_on_grid(policy, env)
    colours = heat(found.grid, found.values)
    assert set(colours) == set(found.grid.cells) - {(0, 3), (1, 1)}
    assert colours[3, 3] == HEAT[0]
    assert colours[0, 2] == colours[1, 3] == HEAT[-1]
    # beyond the limits lies the last colour
    assert heat(found.grid, found.values, (5.0, 9.0))[0, 2] == HEAT[-1]
    assert set(heat(found.grid, [1.0] * 16).values()) == {HEAT[0]}


def test_the_drawing_holds_an_arrow_and_a_number_for_every_cell(env, policy):
    found = policy_on_grid(policy, env)
    svg = ElementTree.fromstring(draw(found, (0.0, 10.0), numbered=True))
    arrows = [node for node in svg if node.tag == "path"]
    numbers = [node.text for node in svg if node.tag == "text"]
    assert len(arrows) == 13  # 16 cells without goal, obstacle and the one that is unknown
    assert len(numbers) == 14
    assert numbers[:3] == ["9.80", "9.90", "10.00"]
    assert arrows[1].get("transform") == "translate(150 41) rotate(90)"  # of the second cell of the first row
    bare = GridPolicy(found.grid, [0] * 16, None)
    assert "<text" not in draw(bare, None, numbered=True)


def test_the_report_shows_how_the_policy_came_to_be(tmp_path, write_run, env, policy):
    run = write_run(tmp_path, env=ID, algorithm="q_learning", terms=())
    found = policy_on_grid(policy, env).to_dict()
    for path in sorted((run / "eval").glob("*.json"))[3:]:
        path.write_text(json.dumps({**json.loads(path.read_text()), "grid": found}))
    record = read_run(run)
    assert [evaluation.on_grid is not None for evaluation in record.evaluations] == [False] * 3 + [True] * 7
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "<title>Q Learning on habilis/GridWorld-v0</title>" in text
    assert text.count('<figure class="grid">') == 5  # the last, and four on the way
    assert "after 1,000,000 env steps" in text
    assert "<h2>Policy</h2>" in text
    plain = write_report([write_run(tmp_path, terms=())], tmp_path / "plain.html").read_text()
    assert "<h2>Policy</h2>" not in plain


def test_a_film_shows_the_policy_and_the_end(tmp_path, env, policy):
    path = record_video(policy, env, tmp_path / "film.mp4", seed=0)
    frames = iio.imread(path).astype(int)
    assert frames.shape == (4, 384, 384, 3)  # the start and three steps, the last one on the goal
    assert iio.immeta(path)["fps"] == 2.5
    blue = [(np.abs(frame - (36, 89, 214)).sum(2) < 60) for frame in frames]
    places = [int(np.argwhere(mask)[:, 1].mean() // 96) for mask in blue]
    assert places == [0, 1, 2, 3]
    found = policy_on_grid(policy, env)
    assert np.abs(frames[0][288 + 12, 48] - heat(found.grid, found.values)[3, 0]).sum() < 30
