"""The sorting arm: its kinematics and servos, what the suction can and cannot do, rewards, endings, saved state.

A plain controller sorts everything, which proves the task solvable from what the policy sees.
"""

import copy

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

import habilis.tasks  # noqa: F401  (registers)
from habilis.core.errors import EnvError
from habilis.core.specs import DiscreteAction
from habilis.envs.checker import check_env
from habilis.envs.make import make_vec_env
from habilis.tasks import object_sorting as sorting
from habilis.tasks.object_sorting import ACTIONS, Arm, ObjectSorting, Scene, work_left

ID, CAMERA_ID = "habilis/ObjectSorting-v0", "habilis/ObjectSortingCamera-v0"
FORWARD, BACK, LEFT, RIGHT, UP, DOWN, GRIP, RELEASE = range(8)
LOWEST, CARRYING = sorting.REACH[0, 2], 0.08


def make(num_envs=1, seed=0):
    env = make_vec_env(ID, num_envs, seed=seed, threads=1)
    env.reset()
    return env


def act(env, *actions):
    """Give every environment each of the actions in turn; return the last step."""
    for action in actions:
        step = env.step(torch.full((env.num_envs,), action))
    return step


def place(env, name, position, row=0):
    """Put an object somewhere, at rest and upright."""
    column = 4 + 7 * sorting.OBJECTS.index(name)
    env.simulation.qpos[row, column : column + 7] = [*position, 1, 0, 0, 0]
    velocity = 4 + 6 * sorting.OBJECTS.index(name)
    env.simulation.qvel[row, velocity : velocity + 6] = 0


def put_tool(env, position, row=0):
    """Put the lip somewhere, its target too."""
    env._target[row] = position
    env.simulation.qpos[row, :4] = Arm().angles(np.array([position]))[0]
    env.simulation.qvel[row, :4] = 0


def height(env, name):
    return env.simulation.qpos[:, 4 + 7 * sorting.OBJECTS.index(name) + 2]


def way_over(lip, goal):
    """The action that brings the lip a step nearer to being over `goal`, or None where no step does."""
    gap = goal[:2] - lip[:2]
    axis = int(np.abs(gap).argmax())
    if abs(gap[axis]) <= sorting.STEP / 2 + 1e-6:
        return None
    return [(BACK, FORWARD), (RIGHT, LEFT)][axis][int(gap[axis] > 0)]


def expert(observation):
    """Choose an action from the observation `[31]` alone: over the nearest object, down, grip, up, over its bin, go."""
    centre, half = sorting.REACH.mean(0), np.ptp(sorting.REACH, axis=0) / 2
    lip = observation[:3] * half + centre
    target = lip + observation[3:6] * sorting.STEP
    objects = observation[7:].reshape(3, 8)
    place = lip + objects[:, :3] * 0.1
    held, done = objects[:, 5] > 0, objects[:, 6] > 0
    if held.any():
        bin = (place[:, :2] + objects[:, 3:5] * 0.1)[held][0]
        move = way_over(target, bin)
        return UP if target[2] < CARRYING else RELEASE if move is None else move
    if done.all():
        return RELEASE
    nearest = np.where(done, np.inf, np.linalg.norm(place[:, :2] - lip[:2], axis=1)).argmin()
    move = way_over(target, place[nearest])
    if move is not None:
        return UP if target[2] < CARRYING - sorting.STEP else move
    return DOWN if target[2] > LOWEST + 1e-6 else GRIP


def test_the_arm_reaches_every_place_with_the_tool_upright_as_mujoco_has_it():
    arm, generator = Arm(), np.random.default_rng(0)
    lips = generator.uniform(*sorting.REACH, (200, 3))
    angles = arm.angles(lips)
    assert arm.lip(angles) == pytest.approx(lips, abs=1e-12)
    assert angles[:, 1:].sum(1) == pytest.approx(np.zeros(200), abs=1e-12)
    env = make()
    model = env.simulation.model
    low, high = model.actuator_ctrlrange.T
    assert ((angles > low) & (angles < high)).all()
    data, tool = mujoco.MjData(model), model.body("tool").id
    for row in generator.uniform(-0.3, 0.3, (20, 4)) + angles[:20]:  # also where the tool is not upright
        data.qpos[:4] = row
        mujoco.mj_kinematics(model, data)
        lip = data.xpos[tool] + data.xmat[tool].reshape(3, 3) @ [0, 0, -arm.tool]
        assert arm.lip(row[None])[0] == pytest.approx(lip, abs=1e-9)


def test_an_action_moves_the_target_by_its_step_within_reach_and_the_servos_follow():
    env = make()
    for k, name in enumerate(sorting.OBJECTS):
        place(env, name, (0.12, 0.07 * (k - 1), 0.0215))  # out of the way
    put_tool(env, (0.27, 0, 0.09))
    start = env._target[0].copy()
    for action, axis, sign in ((FORWARD, 0, 1), (BACK, 0, -1), (LEFT, 1, 1), (RIGHT, 1, -1), (UP, 2, 1), (DOWN, 2, -1)):
        act(env, action)
        assert env._target[0] - start == pytest.approx(sign * sorting.STEP * np.eye(3)[axis])
        start = env._target[0].copy()
    act(env, *[RIGHT, FORWARD] * 12, *[RELEASE] * 12)
    assert env._target[0, :2] == pytest.approx([0.42, -0.18])
    assert env._arm.lip(env.simulation.qpos[:, :4])[0] == pytest.approx(env._target[0], abs=1e-3)


def test_the_servos_keep_to_their_torques():
    env = make(8)
    force = env.simulation.bind("actuator_force")
    generator = torch.Generator().manual_seed(0)
    largest = np.zeros(4)
    for _ in range(100):
        env.step(torch.randint(8, (8,), generator=generator))
        largest = np.maximum(largest, np.abs(force).max(0))
    assert (largest <= [12, 12, 8, 2]).all()
    assert (largest[:3] > 1).all()


def test_episodes_start_at_rest_with_objects_apart_and_none_in_a_bin():
    env = make(64)
    objects = env._look(slice(None)).objects
    assert ((objects[:, :, :2] >= sorting.FIELD[0]) & (objects[:, :, :2] <= sorting.FIELD[1])).all()
    gaps = np.linalg.norm(objects[:, [0, 0, 1], :2] - objects[:, [1, 2, 2], :2], axis=2)
    assert gaps.min() >= sorting.SPACING
    assert gaps.min() < sorting.SPACING + 0.005
    assert np.ptp(objects[:, :, :2], axis=0).min() > 0.12  # anywhere in the field
    w, z = env.simulation.qpos[:, 4:].reshape(64, 3, 7)[:, :, [3, 6]].T
    assert np.ptp(2 * np.arctan2(z, w), axis=1).min() > 2.5  # turned anyhow, and the cup anywhere above
    assert (np.ptp(env._target, axis=0) > 0.8 * np.ptp(sorting.START, axis=0)).all()
    assert ((env._target >= sorting.START[0]) & (env._target <= sorting.START[1])).all()
    step = act(env, *[RELEASE] * 5)
    assert np.abs(env._look(slice(None)).objects - objects).max() < 1e-3
    assert not step.info["success/sorted"].any()
    assert step.reward.numpy() == pytest.approx(np.full(64, sorting.STEP_COST), abs=2e-3)


@pytest.mark.parametrize("name", sorting.OBJECTS)
def test_the_suction_lifts_what_it_touches_and_lets_go(name):
    env = make(2)
    for row in range(2):
        for k, other in enumerate(sorting.OBJECTS):
            place(env, other, (0.2, 0.12 * (k - 1), 0.0205), row)
        where = (0.21, 0.12 * (sorting.OBJECTS.index(name) - 1) - 0.008, LOWEST)  # one and a half centimetres off
        put_tool(env, where, row)
    env.step(torch.tensor([GRIP, RELEASE]))
    for _ in range(4):
        step = env.step(torch.tensor([UP, UP]))
    assert height(env, name)[0] > 0.1
    assert height(env, name)[1] < 0.025
    held = step.obs["policy"][:, 7:].reshape(2, 3, 8)[:, sorting.OBJECTS.index(name), 5]
    assert held.tolist() == [1, 0]
    assert (env.simulation.qpos[0, 4:].reshape(3, 7)[:, 2] > 0.05).sum() == 1
    act(env, RELEASE, *[RELEASE] * 8)
    assert height(env, name)[0] < 0.03


def test_the_suction_does_not_hold_more_than_its_pull():
    env = make(2)
    simulation, cube = env.simulation, env.simulation.model.body("cube").id
    simulation.expand("body_mass")[:, cube] = [0.5, 2.5]  # 5 N and 25 N under a cup of 18 N
    simulation.expand("body_inertia")[:, cube] *= np.array([[11.0], [56.0]])
    simulation.set_const()
    for row in range(2):
        place(env, "puck", (0.15, 0.15, 0.0205), row), place(env, "ball", (0.15, -0.15, 0.0215), row)
        place(env, "cube", (0.22, 0, 0.0205), row), put_tool(env, (0.22, 0, LOWEST), row)
    act(env, GRIP, GRIP, UP, UP, GRIP, GRIP, GRIP, GRIP)
    assert height(env, "cube")[0] > 0.05
    assert height(env, "cube")[1] < 0.025


def test_the_expert_sorts_everything_and_the_rewards_add_up():
    env = make(24, seed=3)
    obs = env.reset()["policy"]
    start = work_left(env._look(slice(None)))
    total, length, done = np.zeros(24), np.zeros(24, dtype=int), np.zeros(24, dtype=bool)
    while not done.all():
        step = env.step(torch.tensor([expert(row) for row in obs.numpy()]))
        total += np.where(done, 0, step.reward.numpy())
        length += ~done
        ended = step.done.numpy() & ~done
        assert step.terminated.numpy()[ended].all()
        assert step.info["success"].numpy()[ended].all()
        assert (step.info["success/sorted"].numpy()[ended] == 1).all()
        done |= ended
        obs = step.obs["policy"]
    # three objects, and the progress telescopes: whatever the way, it pays what was left to do at the start
    assert total == pytest.approx(3 + sorting.PROGRESS * start + sorting.STEP_COST * length, abs=1e-4)
    assert 60 < length.mean() < 100


def test_work_left_by_hand():
    def scene(lip, objects, held=(0, 0, 0), done=(0, 0, 0)):
        flags = np.array([held], dtype=bool), np.array([done], dtype=bool), np.zeros((1, 3), dtype=bool)
        return Scene(np.array([lip]), np.array([objects]), *flags, np.zeros(1, dtype=bool))

    objects = [[0.28, -0.1395, 0.02], [0.38, -0.1, 0.02], [0.38, 0.2395, 0.07]]
    handling, lift = sorting.HANDLING, sorting.CARRY - 0.02
    ways = handling + 0.1 + lift, handling + 0.1 + lift, handling + 0.1
    lip = [0.28, -0.1395, 0.09]
    assert work_left(scene(lip, objects)) == pytest.approx(sum(ways) + 0.05)
    assert work_left(scene(lip, objects, held=(1, 0, 0))) == pytest.approx(sum(ways))
    assert work_left(scene(lip, objects, done=(0, 1, 1))) == pytest.approx(ways[0] + 0.05)
    assert work_left(scene(lip, objects, done=(1, 1, 1))) == 0
    over = [[0.33, -0.1395, 0.02], *objects[1:]]  # over its bin an object need not be lifted any more
    assert work_left(scene(lip, over, held=(1, 0, 0))) == pytest.approx(sum(ways) - 0.05 - lift)


def test_bins_pay_and_cost_and_cannot_be_milked():
    env = make()
    put_tool(env, (0.15, 0, 0.14))
    own, other, field = (0.38, -0.14, 0.021), (0.38, 0.0, 0.021), (0.2, 0.0, 0.021)
    place(env, "puck", (0.15, 0.15, 0.021)), place(env, "ball", (0.15, -0.15, 0.022))
    expected = ((own, 1, 0), (field, -1, 0), (other, 0, -1), (other, 0, 0), (own, 1, 0), (other, -1, -1), (field, 0, 0))
    for where, right, wrong in expected:
        place(env, "cube", where)
        step = act(env, RELEASE)
        assert step.info["reward/sorted"].item() == right, where
        assert step.info["reward/wrong"].item() == wrong, where
        assert step.info["success/sorted"].item() == pytest.approx(1 / 3 if where == own else 0)
        assert step.obs["policy"][0, 13:15].tolist() == [where == own, where == other]
        terms = [value for name, value in step.info.items() if name.startswith("reward/")]
        assert torch.stack(terms).sum().item() == pytest.approx(step.reward.item(), abs=1e-6)
    for where in ((0.314, -0.14, 0.051), (0.38, -0.14, 0.14)):  # on the wall or above the bin is not in it
        place(env, "cube", where)
        assert act(env, RELEASE).info["success/sorted"].item() == 0


def test_what_is_held_in_a_bin_is_not_sorted_before_it_is_let_go():
    env = make()
    place(env, "cube", (0.38, -0.14, 0.0205)), put_tool(env, (0.38, -0.14, LOWEST))
    assert act(env, GRIP, GRIP).info["success/sorted"].item() == 0
    assert act(env, RELEASE).info["success/sorted"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("where", [(0.2, -0.3), (0.2, 0.3), (0.04, 0.15), (0.5, 0.0)])
def test_an_object_that_leaves_the_tray_ends_the_episode(where):
    env = make(2)
    place(env, "ball", (*where, 0.05))
    step = act(env, RELEASE)
    assert step.terminated.tolist() == step.info["termination/lost"].tolist() == [True, False]
    assert step.info["reward/lost"].tolist() == [-1, 0]
    assert not step.info["success"].any()
    assert not torch.equal(step.obs["policy"][0], step.next_obs["policy"][0])
    assert torch.equal(step.obs["policy"][1], step.next_obs["policy"][1])


def test_the_time_limit_truncates():
    env = make(2)
    for count in range(1, sorting.EPISODE_STEPS + 1):
        step = act(env, UP)
        assert step.truncated.tolist() == [count == sorting.EPISODE_STEPS] * 2
    assert not step.terminated.any()
    assert not act(env, UP).truncated.any()
    env._elapsed[:] = sorting.EPISODE_STEPS - 1
    place(env, "ball", (0.2, -0.3, 0.05))  # lost at the last moment
    step = act(env, RELEASE)
    assert step.terminated.tolist() == [True, False]
    assert step.truncated.tolist() == [False, True]


def test_an_episode_knows_nothing_of_the_one_before():
    env = make()
    for _ in range(2):
        place(env, "cube", (0.38, -0.14, 0.021)), place(env, "puck", (0.38, 0.14, 0.021))
        step = act(env, GRIP)
        assert (step.info["reward/sorted"].item(), step.info["reward/wrong"].item()) == (1, -1)
        place(env, "ball", (0.2, -0.3, 0.05))
        step = act(env, GRIP)
        assert step.terminated.all()
        assert (step.next_obs["policy"][0, 6].item(), step.obs["policy"][0, 6].item()) == (1, 0)  # the suction
        assert not env._adhesion[0, env._lips].any()
        assert act(env, UP).reward.item() == pytest.approx(sorting.STEP_COST, abs=0.1)


def rollout(env, steps, seed):
    """Random actions, mostly grips and downs, so that something is touched and held."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor([*range(8), DOWN, DOWN, GRIP, GRIP])
    return [env.step(choices[torch.randint(12, (env.num_envs,), generator=generator)]) for _ in range(steps)]


def same(one, two):
    parts = ((getattr(step, name) for name in ("reward", "terminated", "truncated", "valid")) for step in (one, two))
    dicts = ((*step.obs.values(), *step.next_obs.values(), *step.info.values()) for step in (one, two))
    return all(map(torch.equal, *parts)) and all(map(torch.equal, *dicts))


def test_saved_and_restored_it_goes_on_bit_for_bit():
    env = make(6, seed=1)
    rollout(env, 150, seed=0)
    assert env._suction.any()
    saved = copy.deepcopy(env.state_dict())
    expected = rollout(env, 100, seed=1)
    assert any(step.done.any() for step in expected)
    other = make_vec_env(ID, 6, seed=77, threads=1)
    other.load_state_dict(saved)
    assert all(same(a, b) for a, b in zip(rollout(other, 100, seed=1), expected, strict=True))


def test_a_diverged_simulation_starts_anew_and_the_others_do_not_notice():
    env, twin = make(3, seed=2), make(3, seed=2)
    act(env, UP), act(twin, UP)
    env.simulation.qvel[1, 8] = np.nan
    step, expected = act(env, FORWARD), act(twin, FORWARD)
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated.tolist() == step.info["diverged"].tolist() == [False, True, False]
    assert step.reward[1] == 0
    assert env._elapsed.tolist() == [2, 0, 2]
    assert env._arm.lip(env.simulation.qpos[:, :4])[1] == pytest.approx(env._target[1], abs=1e-9)
    for values in (step.reward, *step.obs.values(), *step.next_obs.values(), *step.info.values()):
        assert torch.isfinite(values.float()).all()
    assert torch.equal(step.obs["policy"][[0, 2]], expected.obs["policy"][[0, 2]])
    assert act(env, FORWARD).valid.all()


def test_the_checker_finds_nothing_and_shapes_are_asked_for():
    env = make_vec_env(ID, 3, threads=1)
    assert isinstance(env, ObjectSorting)
    assert env.spec.action == DiscreteAction(8)
    assert env.spec.action_names == ACTIONS
    assert env.spec.control_dt == pytest.approx(0.05)
    assert {finding.level for finding in check_env(env, 210)} == {"ok"}
    with pytest.raises(EnvError, match=r"got the shape \[3, 4\]"):
        env.step(torch.zeros(3, 4))
    with pytest.raises(EnvError, match=r"from 0 to 7 .*got 8"):
        env.step(torch.tensor([0, 8, 1]))


def test_the_camera_sees_the_same_tray_and_the_lamp_of_the_suction():
    env, twin = make_vec_env(CAMERA_ID, 2, seed=5, threads=1), make_vec_env(ID, 2, seed=5, threads=1)
    first, state = env.reset(), twin.reset()
    assert first["policy"].shape == (2, 64, 64, 3)
    assert env.spec.obs["policy"].is_image
    assert torch.equal(first["critic"], state["policy"])
    assert not torch.equal(first["policy"][0], first["policy"][1])
    for step, plain in zip(rollout(env, 20, seed=3), rollout(twin, 20, seed=3), strict=True):
        assert torch.equal(step.reward, plain.reward)
        assert torch.equal(step.obs["critic"], plain.obs["policy"])
    act(env, *[RELEASE] * 10)
    dark = act(env, RELEASE).obs["policy"].int()
    lit = act(env, GRIP).obs["policy"].int()
    changed = (lit - dark).abs().amax(3) > 30
    assert 1 <= changed[0].sum() <= 40
    env.simulation.qpos[0, 0] += 0.5
    assert not torch.equal(env._groups(first["critic"].numpy())["policy"][0], lit[0].to(torch.uint8))
    env.close()


def test_a_camera_shows_a_new_episode_after_the_last_picture_of_the_old():
    env = make_vec_env(CAMERA_ID, 2, seed=5, threads=1)
    before = env.reset()["policy"]
    place(env, "ball", (0.2, -0.3, 0.05))
    step = act(env, RELEASE)
    old, new = step.next_obs["policy"].int(), step.obs["policy"].int()
    assert ((new[0] - old[0]).abs() > 30).any()
    assert torch.equal(new[1], old[1])
    assert ((before[1].int() - old[1]).abs().amax(2) > 30).sum() <= 40  # a twentieth of a second passed
    assert torch.equal(new[0].to(torch.uint8), torch.from_numpy(env._renderer.frame(0).copy()))
    env.close()


@pytest.mark.filterwarnings("ignore:.*Box observation space m.*imum value")
def test_gymnasium_gets_an_ordinary_environment():
    from gymnasium.utils.env_checker import check_env as check

    env = gymnasium.make(ID)
    assert env.action_space == gymnasium.spaces.Discrete(8)
    check(env.unwrapped, skip_render_check=True)
    env.close()
