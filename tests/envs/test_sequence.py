"""Any Gymnasium environments as one world with tasks."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from everloop.envs import EnvSequence, check_task_env, make_vec
from everloop.envs.variant import drifted

GRAVITIES = [{"gravity": 9.8}, {"gravity": 20.0}, {"masscart": 3.0}]
WORLDS: dict[str, dict[str, Any]] = {
    "physics": {"env": "CartPole-v1", "tasks": GRAVITIES},
    "cue": {"env": "CartPole-v1", "tasks": GRAVITIES, "task_cue": True},
    "drift": {
        "env": "Pendulum-v1",
        "tasks": [{"g": {"from": 5.0, "to": 15.0, "steps": 30}}, {}],
        "max_episode_steps": 20,
    },
    "changes": {
        "env": "Pendulum-v1",
        "tasks": [{}, {"observation": {"noise": 0.1}}, {"action": {"mirror": True}}],
        "max_episode_steps": 20,
    },
    "arguments": {
        "env": "FrozenLake-v1",
        "tasks": [{"is_slippery": False}, {"is_slippery": True}],
    },
    "ids": {"tasks": [{"id": "CartPole-v1"}, {"id": "Acrobot-v1"}], "pad": True},
}
every_world = pytest.mark.parametrize("name", WORLDS)


def trajectory(env: Any, actions: list[Any], **reset: Any) -> list[Any]:
    """Everything that an environment shows, as lists."""
    seen = [env.reset(**reset)[0]]
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        seen += [observation, float(reward), terminated, truncated]
        if terminated or truncated:
            seen.append(env.reset()[0])
    return [
        {name: x.tolist() for name, x in value.items()} if isinstance(value, dict) else value
        for value in seen
    ]


def actions_of(env: Any, count: int = 40, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(count)]


@every_world
def test_a_sequence_keeps_the_contract_of_worlds(name: str) -> None:
    check_task_env(gym.make("everloop/Sequence-v0", **WORLDS[name]))


@every_world
def test_a_sequence_is_made_again_from_the_json_of_its_spec(name: str) -> None:
    env = gym.make("everloop/Sequence-v0", **WORLDS[name])
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    actions = actions_of(env)
    for task in range(len(WORLDS[name]["tasks"])):
        reset = {"seed": 3, "options": {"task": task}}
        assert trajectory(env, actions, **reset) == trajectory(again, actions, **reset)


def test_a_task_without_changes_is_the_environment_itself() -> None:
    """Each episode has a seed of its own, drawn from the world's generator."""
    env = EnvSequence("CartPole-v1")
    plain = gym.make("CartPole-v1")
    seeds = np.random.default_rng(5)
    env.np_random = seeds
    observation, _ = env.reset()
    expected, _ = plain.reset(seed=int(np.random.default_rng(5).integers(2**31)))
    assert observation["observation"].tolist() == expected.tolist()
    for action in actions_of(plain, 8):
        ours, theirs = env.step(action), plain.step(action)
        assert ours[0]["observation"].tolist() == theirs[0].tolist()
        assert ours[1:4] == theirs[1:4]


def test_attributes_change_what_happens_and_are_set_back() -> None:
    env = EnvSequence("CartPole-v1", GRAVITIES)
    inner: Any = env._variants[0].env.unwrapped
    for task, (gravity, mass) in enumerate([(9.8, 1.0), (20.0, 1.0), (9.8, 3.0), (9.8, 1.0)]):
        env.reset(options={"task": task % 3})
        assert (inner.gravity, inner.masscart) == (gravity, mass)
        assert inner.total_mass == pytest.approx(mass + inner.masspole), "what follows from it"
    actions = actions_of(env, 8)
    seen = [trajectory(env, actions, seed=1, options={"task": k}) for k in range(3)]
    assert seen[0] != seen[1] != seen[2] != seen[0]


def test_attributes_that_change_nothing_are_found() -> None:
    """CartPole computes the force of gravity anew in each step, but its tau only matters in it."""
    tasks: list[Any] = [
        {"gravity": 9.8},
        {"gravity": 20.0},
        {"masscart": 3.0},
        {"kinematics_integrator": "euler", "name": "same"},
        {"x_threshold": 1e6},
        {},
    ]
    names = EnvSequence("CartPole-v1", tasks).without_effect()
    assert names == ["gravity=9.8", "same", "x_threshold=1000000.0"]


def test_a_parameter_drifts_with_the_steps_of_its_task() -> None:
    drift = {"from": 5.0, "to": 15.0, "steps": 30}
    assert [drifted(drift, n) for n in (0, 15, 30, 99)] == [5, 10, 15, 15]
    env = EnvSequence("Pendulum-v1", [{"g": drift}, {}], max_episode_steps=20)
    inner: Any = env._variants[0].env.unwrapped
    env.reset(seed=0)
    seen = []
    for step in range(50):
        if step == 25:  # another task in between counts nothing
            env.reset(options={"task": 1})
            assert inner.g == 10.0, "the environment's own"
            for _ in range(7):
                env.step(np.zeros(1, np.float32))
            env.reset(options={"task": 0})
        _, _, _, truncated, _ = env.step(np.zeros(1, np.float32))
        seen.append(inner.g)
        if truncated:
            env.reset()
    assert seen == pytest.approx([drifted(drift, step) for step in range(50)])
    env.reset(seed=0)
    assert inner.g == 5.0, "a seed begins anew"


@every_world
@pytest.mark.parametrize("copies", [1, 3])
def test_a_vector_continues_from_its_state(name: str, copies: int) -> None:
    def made() -> Any:
        return make_vec("everloop/Sequence-v0", copies, **WORLDS[name])

    first, second = made(), made()
    first.reset(seed=1)
    first.reset(options={"task": 1})
    first.action_space.seed(0)
    for _ in range(23):
        first.step(first.action_space.sample())
    state = copy.deepcopy(first.state_dict())
    second.reset(seed=9)
    second.load_state_dict(state)
    for _ in range(30):
        action = first.action_space.sample()
        ours, theirs = first.step(action), second.step(action)
        for key in ours[0]:
            assert np.array_equal(ours[0][key], theirs[0][key])
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:4], theirs[1:4], strict=True))
    assert str(first.state_dict()) == str(second.state_dict())


class Moody(gym.Env[Any, Any]):
    """Shows the process's own random numbers, so the same seed does not give the same."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.random.default_rng().random(1, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.random.default_rng().random(1, np.float32), 0.0, False, False, {}


def test_an_environment_that_ignores_its_seed_is_not_restored_silently() -> None:
    if "Moody-v0" not in gym.registry:
        gym.register("Moody-v0", Moody)
    env = EnvSequence("Moody-v0")
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ValueError, match="shows something else after the same seed"):
        env.load_state_dict(env.state_dict())


class Doubled(gym.RewardWrapper[Any, Any]):
    """Doubles every reward."""

    def reward(self, reward: Any) -> Any:
        return 2 * reward


def test_wrappers_are_functions_or_paths_the_first_one_innermost() -> None:
    tasks: list[Any] = [
        {"name": "plain"},
        {"name": "twice", "wrappers": [Doubled, Doubled]},
        {"name": "path", "wrappers": ["test_sequence:Doubled"]},
    ]
    env = EnvSequence("CartPole-v1", tasks)
    rewards = []
    for task in range(3):
        env.reset(seed=0, options={"task": task})
        rewards.append(env.step(0)[1])
    assert rewards == [1.0, 4.0, 2.0]


def test_names_say_what_distinguishes_the_tasks() -> None:
    tasks = [
        {},
        {"gravity": 20},
        {"gravity": {"from": 1.0, "to": 2.0, "steps": 9}, "length": 1.0},
        {"observation": {"shift": 0.5}},
        {"id": "CartPole-v1", "force_mag": 5.0},
        {"name": "mine", "gravity": 1.0},
    ]
    names = [task.name for task in EnvSequence("CartPole-v1", tasks).tasks]
    assert names[:4] == [
        "CartPole-v1",
        "gravity=20",
        "gravity=1.0..2.0 length=1.0",
        "observation={shift:0.5}",
    ]
    assert names[4].endswith(" force_mag=5.0")
    assert names[5] == "mine"


def test_references_scale_the_returns() -> None:
    env = EnvSequence("CartPole-v1", GRAVITIES, references=[(20.0, 500.0), None, (10.0, 400.0)])
    assert env.reference(0) == (20.0, 500.0)
    assert np.isnan(env.reference(1)).all()
    for wrong in ([(1.0, 2.0)], [(2.0, 1.0)] * 3):
        with pytest.raises(ValueError, match=r"references? (are of 1 tasks|is \(2)"):
            EnvSequence("CartPole-v1", GRAVITIES, references=wrong)


def test_a_rendered_sequence_shows_the_environment_of_the_task() -> None:
    pytest.importorskip("pygame", reason="pygame, with which Gymnasium draws, is not installed")
    env = EnvSequence("CartPole-v1", GRAVITIES, render_mode="rgb_array")
    env.reset()
    assert env.render().shape[2] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"env": "CartPol-v1"}, "unknown environment 'CartPol-v1': did you mean CartPole-v1"),
        ({"env": "no_such_module:X-v0"}, "No module named"),
        ({"env": "CartPole-v1", "tasks": [{"gravty": 3}]}, "attribute 'gravty'; did you mean 'gra"),
        ({"env": "CartPole-v1", "tasks": [{"zzz": 3}]}, "attribute 'zzz'; it has "),
        ({"env": "CartPole-v1", "tasks": [{"gravity": "x"}]}, "gravity of CartPoleEnv is 9.8, wh"),
        ({"env": "CartPole-v1", "tasks": []}, "tasks is \\[\\]; give a list of at least one"),
        ({"env": "CartPole-v1", "tasks": "gravity"}, "tasks is 'gravity'; give a list"),
        ({"env": "CartPole-v1", "tasks": ["gravity"]}, "task 'gravity' is no mapping"),
        ({"env": "CartPole-v1", "tasks": [{}, {}]}, "2 tasks have the name 'CartPole-v1'"),
        ({"tasks": [{"gravity": 3}]}, "has no id; name its environment"),
        ({"env": "FrozenLake-v1", "tasks": [{"map_name": "5x5"}]}, "FrozenLake-v1 can't be made"),
        ({"env": "CartPole-v1", "tasks": [{"wrappers": ["x"]}]}, "write it as package.module:Name"),
        ({"env": "CartPole-v1", "tasks": [{"wrappers": ["no_such:X"]}]}, "can't be imported"),
        (
            {"env": "CartPole-v1", "tasks": [{"gravity": {"from": 1, "to": "x", "steps": 3}}]},
            "can't be set to 'x'",
        ),
    ],
)
def test_what_is_unknown_or_wrong_is_named_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EnvSequence(**given)
    assert "\n" not in str(error.value)
