"""The plant's dynamics, targets, sensors and reference returns are as documented."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs import LinearQuadratic, PlantEnv, PlantVectorEnv

AMPLITUDE = 0.8
sizes = st.fixed_dictionaries(
    {
        "world_seed": st.integers(0, 10**6),
        "num_tasks": st.integers(1, 7),
        "latent_dim": st.integers(3, 8),
        "action_dim": st.integers(1, 3),
        "num_modalities": st.integers(1, 4),
        "observation_dim": st.integers(1, 4),
    }
)


def noiseless(**parameters: Any) -> PlantVectorEnv:
    """Return a plant without randomness, which starts at zero."""
    return PlantVectorEnv(noise=0.0, initial_std=0.0, **parameters)


def holding_actions(plant: PlantVectorEnv) -> Any:
    """Return the actions a_k, (tasks, m), that hold the targets: (I - A_k) x*_k = B_k a_k."""
    A, B, targets = (v.astype(float) for v in (plant.A, plant.B, plant.targets))
    actions = []
    for A_k, B_k, target in zip(A, B, targets, strict=True):
        action, *_ = np.linalg.lstsq(B_k, target - A_k @ target)
        np.testing.assert_allclose(
            np.linalg.solve(np.eye(len(A_k)) - A_k, B_k @ action), target, atol=1e-5
        )
        actions.append(action)
    return np.array(actions)


@given(sizes)
@settings(deadline=None, max_examples=30)
def test_every_plant_is_stable_and_can_be_held_at_its_targets(parameters: dict[str, Any]) -> None:
    """A_k is a rotation times a radius in [0.6, 0.8]. Targets of length 1 need actions of 0.8."""
    plant = PlantVectorEnv(**parameters)
    n, m = parameters["latent_dim"], parameters["action_dim"]
    for A in plant.A.astype(float):
        radius = np.linalg.norm(A, 2)
        assert 0.6 - 1e-6 <= radius <= 0.8 + 1e-6
        np.testing.assert_allclose(A @ A.T, radius**2 * np.eye(n), atol=1e-6)
        assert np.linalg.det(A) > 0
        assert np.abs(np.angle(np.linalg.eigvals(A))).max() == pytest.approx(0.3, abs=1e-4)
    np.testing.assert_allclose(np.linalg.norm(plant.targets, axis=1), 1.0, atol=1e-6)
    directions = holding_actions(plant) / AMPLITUDE
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, atol=1e-5)
    cosines = directions @ directions.T
    np.testing.assert_allclose(cosines[:m, :m], np.eye(len(cosines[:m])), atol=1e-5)
    assert cosines.min() > -0.35, "no two tasks may be opposed"
    if m > 1:
        assert (cosines - np.eye(len(cosines))).max() < np.cos(np.radians(8)), (
            "no two tasks may be the same"
        )


@pytest.mark.parametrize("world_seed", range(3))
def test_a_constant_action_settles_at_the_target(world_seed: int) -> None:
    """The only cost is then that of the action, 0.01 * 0.8^2."""
    plant = noiseless(num_envs=3, horizon=400, world_seed=world_seed)
    for k, action in enumerate(holding_actions(plant)):
        plant.reset(seed=0, options={"task": k})
        for _ in range(200):
            _, reward, *_ = plant.step(np.tile(action, (3, 1)))
        np.testing.assert_allclose(reward, -0.01 * AMPLITUDE**2, rtol=1e-3)


@pytest.mark.parametrize("world_seed", range(10))
def test_the_optimal_policy_scores_1_and_others_average_below_0(world_seed: int) -> None:
    """0 is the score of a random agent; other tasks' optimal policies average about -0.5."""
    plant = PlantVectorEnv(world_seed=world_seed)
    problems = [plant.linear_quadratic(task.id) for task in plant.tasks]
    other_scores = []
    for i, problem in enumerate(problems):
        random, best = plant.reference(i)
        for j, other in enumerate(problems):
            returns = problem.simulate(other.act, 300, np.random.default_rng(0))
            score = (returns.mean() - random) / (best - random)
            if i == j:
                assert score == pytest.approx(1.0, abs=0.02)
            else:
                other_scores.append(score)
    assert min(other_scores) > -1.3
    assert -1.0 < np.mean(other_scores) < 0.0


def test_the_reference_is_the_same_by_id_and_by_name() -> None:
    """And a random agent's return is below the best one's, which is negative."""
    plant = PlantVectorEnv()
    for task in plant.tasks:
        random, best = plant.reference(task.id)
        assert plant.reference(task.name) == (random, best)
        assert best == plant.linear_quadratic(task.name).best_return
        assert random < best < 0
    with pytest.raises(ValueError, match="unknown task 3"):
        plant.reference(3)


def returns_of(plant: PlantVectorEnv, task: int, policy: Any) -> Any:
    plant.reset(seed=4, options={"task": task})
    total = np.zeros(plant.num_envs)
    for t in range(plant.horizon):
        _, reward, *_ = plant.step(policy(t, plant._x.astype(float)))
        total += reward
    return total


@pytest.mark.parametrize("task", [0, 1, 2])
def test_simulated_returns_agree_with_the_worlds(task: int) -> None:
    """Means of the random and the optimal policy, within 4 standard errors of the difference."""
    plant = PlantVectorEnv(2000, world_seed=3)
    problem: LinearQuadratic = plant.linear_quadratic(task)
    rng = np.random.default_rng(5)

    def random(t: int, x: Any) -> Any:
        return rng.uniform(-1, 1, (len(x), 3))

    for policy in (random, problem.act):
        world = returns_of(plant, task, policy)
        simulated = problem.simulate(policy, 4000, np.random.default_rng(6))
        error = np.sqrt(world.var() / len(world) + simulated.var() / len(simulated))
        assert abs(world.mean() - simulated.mean()) < 4 * error
        assert world.std() == pytest.approx(simulated.std(), rel=0.1)


@given(sizes)
@settings(deadline=None, max_examples=30)
def test_each_sensor_sees_only_its_own_coordinates(parameters: dict[str, Any]) -> None:
    """Sensor m sees coordinate i through tanh of a linear map if i % num_modalities == m."""
    n, M = parameters["latent_dim"], parameters["num_modalities"]
    plant = PlantVectorEnv(n, **parameters)
    plant.reset(seed=0)
    plant._x[:] = 0.5 * np.eye(n)  # copy i has only coordinate i
    shown = plant._observe()
    plant._x[:] = 0.25 * np.eye(n)
    shown_half = plant._observe()
    for m in range(M):
        sensor = shown[f"sensor_{m}"]
        sees = np.arange(n) % M == m
        assert not sensor[~sees].any()
        assert (sensor[sees] != 0).all()
        np.testing.assert_allclose(
            np.arctanh(sensor.astype(float)),
            2 * np.arctanh(shown_half[f"sensor_{m}"].astype(float)),
            rtol=1e-2,
        )


@given(sizes, st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_copies_of_different_tasks_evolve_as_if_alone(
    parameters: dict[str, Any], seed: int
) -> None:
    """Up to the precision of float32."""
    rng = np.random.default_rng(seed)
    copies = 6
    played = rng.integers(0, parameters["num_tasks"], copies)
    actions = rng.uniform(-1, 1, (8, copies, parameters["action_dim"]))
    mixed = noiseless(num_envs=copies, **parameters)
    mixed.reset(seed=0)
    for k in np.unique(played):
        mixed.reset(options={"task": int(k), "reset_mask": played == k})
    alone = [noiseless(num_envs=1, **parameters) for _ in range(copies)]
    for env, k in zip(alone, played, strict=True):
        env.reset(seed=0, options={"task": int(k)})
    for now in actions:
        obs, rewards, *_ = mixed.step(now)
        for i, env in enumerate(alone):
            expected, reward, *_ = env.step(now[i : i + 1])
            np.testing.assert_allclose(rewards[i], reward[0], rtol=1e-5, atol=1e-6)
            for name, value in expected.items():
                np.testing.assert_allclose(obs[name][i], value[0], rtol=1e-4, atol=1e-5)


@given(
    sizes,
    st.integers(0, 99),
    st.floats(0, 0.5),
    st.floats(0, 3),
    st.floats(0.01, 1),
    st.floats(0.01, 1),
)
@settings(deadline=None, max_examples=30)
def test_rewards_stay_in_their_range(
    parameters: dict[str, Any],
    seed: int,
    noise: float,
    initial_std: float,
    state_cost: float,
    action_cost: float,
) -> None:
    """Also under actions that drive the state outwards."""
    costs = {
        "noise": noise,
        "initial_std": initial_std,
        "state_cost": state_cost,
        "action_cost": action_cost,
    }
    plant = PlantVectorEnv(16, horizon=30, **parameters, **costs)
    plant.reset(seed=seed, options={"task": 0})
    low, high = plant.reward_range
    assert high == 0.0
    for t in range(30):
        outwards = np.sign(plant._x @ plant.B[0])
        _, rewards, *_ = plant.step(
            outwards if t % 2 else np.random.default_rng(t).uniform(-9, 9, outwards.shape)
        )
        assert (rewards >= low).all()
        assert (rewards <= high).all()


def test_actions_are_clipped_to_1() -> None:
    plant = PlantVectorEnv(4)
    steps = []
    for scale in (1.0, 50.0):
        plant.reset(seed=0)
        steps.append(
            plant.step(scale * np.array([[1, -1, 1], [1, 1, -1], [-1, -1, -1], [1, 1, 1]]))[:2]
        )
    assert steps[0][1].tobytes() == steps[1][1].tobytes()
    assert steps[0][0]["sensor_0"].tobytes() == steps[1][0]["sensor_0"].tobytes()


def test_first_states_have_the_given_standard_deviation() -> None:
    plant = PlantVectorEnv(20000, initial_std=0.7)
    plant.reset(seed=0)
    np.testing.assert_allclose(plant._x.std(0), 0.7, rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(plant._x.T), np.eye(4), atol=0.04)


def test_autoreset_starts_an_episode_in_an_initial_state() -> None:
    """Without noise that state and its observation are zero; the final observation is not."""
    plant = noiseless(num_envs=3, horizon=4)
    plant.reset(seed=0, options={"reset_mask": np.array([True, True, False])})
    plant.step(np.ones((3, 3)))
    plant.reset(options={"reset_mask": np.array([False, False, True])})
    for step in range(1, 5):
        obs, *_, truncated, info = plant.step(np.ones((3, 3)))
        ended = [step == 3, step == 3, step == 4]
        assert truncated.tolist() == ended
        assert [not sensor.any() for sensor in obs["sensor_0"]] == ended
        for i in np.flatnonzero(ended):
            assert info["final_obs"][i]["sensor_0"].all()


def test_the_world_depends_only_on_the_world_seed() -> None:
    """Neither on the seeds of resets nor on the number of copies."""
    first, second = PlantVectorEnv(world_seed=3), PlantVectorEnv(7, world_seed=3)
    other = PlantVectorEnv(world_seed=4)
    first.reset(seed=99)
    for name in ("A", "B", "targets", "_C"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
        assert not np.allclose(getattr(first, name), getattr(other, name))
    assert first.tasks == second.tasks != other.tasks
    assert len({PlantVectorEnv(world_seed=seed).A.tobytes() for seed in range(8)}) == 8
    assert PlantEnv(world_seed=3).tasks == first.tasks


def test_tasks_differ_in_dynamics_and_target() -> None:
    plant = PlantVectorEnv(num_tasks=4)
    for i in range(4):
        for j in range(i):
            assert not np.allclose(plant.A[i], plant.A[j], atol=0.01)
            assert not np.allclose(plant.B[i], plant.B[j], atol=0.01)
            assert not np.allclose(plant.targets[i], plant.targets[j], atol=0.1)


@pytest.mark.parametrize(
    "name", ["num_envs", "num_tasks", "num_modalities", "observation_dim", "horizon"]
)
@pytest.mark.parametrize("size", [0, -2])
def test_a_size_below_one_is_refused_by_name(name: str, size: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {size}; it must be 1 or more$"):
        PlantVectorEnv(**{name: size})


@pytest.mark.parametrize("action_dim", [0, -2, 5])
def test_an_action_dimension_outside_1_to_latent_dim_is_refused(action_dim: int) -> None:
    line = f"^action_dim is {action_dim}; it must be from 1 to latent_dim, 4$"
    with pytest.raises(ValueError, match=line):
        PlantVectorEnv(action_dim=action_dim)


@pytest.mark.parametrize("latent_dim", [0, -2])
def test_a_latent_dimension_below_one_is_refused(latent_dim: int) -> None:
    line = f"^latent_dim is {latent_dim}; it must be 1 or more$"
    with pytest.raises(ValueError, match=line):
        PlantVectorEnv(latent_dim=latent_dim)


@pytest.mark.parametrize("number", [-0.1, np.nan, np.inf])
@pytest.mark.parametrize("name", ["noise", "initial_std"])
def test_noise_must_be_finite_and_not_negative(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {number}; it must be finite and 0 or more$"):
        PlantVectorEnv(**{name: number})


@pytest.mark.parametrize("number", [-0.1, 0.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["state_cost", "action_cost"])
def test_costs_must_be_finite_and_positive(name: str, number: float) -> None:
    """Without positive costs the best policy is not defined."""
    line = f"^{name} is {number}; it must be finite and more than 0$"
    with pytest.raises(ValueError, match=line):
        PlantVectorEnv(**{name: number})


@pytest.mark.parametrize("shape", [(3,), (4, 3), (3, 4), (1, 3), (3, 1)])
def test_actions_of_the_wrong_shape_are_refused_and_take_no_step(shape: tuple[int, ...]) -> None:
    plant, other = PlantVectorEnv(3), PlantVectorEnv(3)
    for env in (plant, other):
        env.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"^actions have shape \(.*\); they must have shape \(3, 3\)$"
    ):
        plant.step(np.zeros(shape, np.float32))
    now, then = (env.step(np.zeros((3, 3), np.float32)) for env in (plant, other))
    assert now[1].tobytes() == then[1].tobytes()
