"""`check_task_env` accepts a minimal world and rejects each way to break the contract."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from user_world import Walk

from everloop.contract import Observation
from everloop.envs import Feedback, Task, check_task_env, find_task

Reset = tuple[Observation, dict[str, Any]]
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


def test_a_minimal_user_world_is_accepted() -> None:
    check_task_env(Walk())
    check_task_env(Feedback(Walk()))


def test_an_unknown_reference_is_nan() -> None:
    assert np.isnan(Walk().reference(0)).all()
    assert np.isnan(Walk().reference("to-0")).all()


class ForgetsTask(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        return super().reset(seed=seed, options={"task": 0, **(options or {})})


class KnowsNoNames(Walk):
    """Takes every name for the first task."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        options = dict(options or {})
        if options.get("task") in [task.name for task in self.tasks]:
            options["task"] = 0
        return super().reset(seed=seed, options=options)


class SilentReset(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        return super().reset(seed=seed, options=options)[0], {}


class SilentStep(Walk):
    def step(self, action: Any) -> Step:
        return *super().step(action)[:4], {}


class OffByOne(Walk):
    def step(self, action: Any) -> Step:
        return *super().step(action)[:4], {"task": self.task.id + 1}


class ReusesStepArray(Walk):
    """Returns the same array from every step."""

    def __init__(self) -> None:
        self.buffer = np.zeros(1, np.float32)

    def step(self, action: Any) -> Step:
        observation, *rest = super().step(action)
        self.buffer[:] = observation["place"]
        return {"place": self.buffer}, *rest


class ReusesResetArray(ReusesStepArray):
    """Returns the same array from every reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        observation, info = super().reset(seed=seed, options=options)
        self.buffer[:] = observation["place"]
        return {"place": self.buffer}, info

    def step(self, action: Any) -> Step:
        return Walk.step(self, action)


class ReturnsViews(ReusesStepArray):
    """Returns a new view of the same memory from every step."""

    def step(self, action: Any) -> Step:
        observation, *rest = super().step(action)
        return {"place": observation["place"][:]}, *rest


class AcceptsAnyTask(Walk):
    """Plays the first task when the task is unknown."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        try:
            return super().reset(seed=seed, options=options)
        except ValueError:
            return super().reset(seed=seed)


class NamesNoTask(Walk):
    """Refuses an unknown task without naming it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        try:
            return super().reset(seed=seed, options=options)
        except ValueError:
            raise ValueError("no") from None


class RefusesButSwitches(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        try:
            return super().reset(seed=seed, options=options)
        except ValueError:
            self.task = self.tasks[-1]
            raise


class UnseededStates(Walk):
    """Draws from a generator that no seed reaches."""

    dice = np.random.default_rng()

    def step(self, action: Any) -> Step:
        self.place += self.dice.normal()
        return super().step(action)


class UnseededRewards(Walk):
    """Draws only its rewards from such a generator."""

    reward_range = (-np.inf, np.inf)
    dice = np.random.default_rng()

    def step(self, action: Any) -> Step:
        observation, _, *rest = super().step(action)
        return observation, float(self.dice.normal()), *rest


class LeavesTheSpace(Walk):
    def step(self, action: Any) -> Step:
        observation, *rest = super().step(action)
        return {"place": observation["place"] + 1000.0}, *rest


class DoublePrecision(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        observation, info = super().reset(seed=seed, options=options)
        return {"place": observation["place"].astype(np.float64)}, info


class ReversedReference(Walk):
    def reference(self, task: int | str) -> tuple[float, float]:
        return 1.0, 0.0


class EqualReference(Walk):
    def reference(self, task: int | str) -> tuple[float, float]:
        return 1.0, 1.0


class EqualNames(Walk):
    tasks = (Task(0, "same", {"goal": 0}), Task(1, "same", {"goal": 1}))


class CountsFromOne(Walk):
    tasks = (Task(1, "a", {"goal": 0}), Task(2, "b", {"goal": 1}))


class NoTasks(Walk):
    tasks = ()


class NotTasks(Walk):
    tasks = ("a", "b")  # type: ignore[assignment]


class NotADict(Walk):
    observation_space = spaces.Box(-1.0, 1.0, (1,))


class NotABox(Walk):
    observation_space = spaces.Dict({"place": spaces.Discrete(3)})


class FloatImage(Walk):
    observation_space = spaces.Dict({"place": spaces.Box(0.0, 1.0, (8, 8, 1), np.float32)})


class FlatImage(Walk):
    observation_space = spaces.Dict({"place": spaces.Box(0, 255, (64,), np.uint8)})


class ChannelsFirst(Walk):
    observation_space = spaces.Dict({"place": spaces.Box(0, 255, (3, 8, 8), np.uint8)})


class ObservationsFollowTheTask(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        found = super().reset(seed=seed, options=options)
        bound = 100.0 + self.task.id
        self.observation_space = spaces.Dict({"place": spaces.Box(-bound, bound, (1,))})
        return found


class ActionsFollowTheTask(Walk):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        found = super().reset(seed=seed, options=options)
        self.action_space = spaces.Discrete(3 + self.task.id, start=-1)
        return found


class OwnCue(Walk):
    observation_space = spaces.Dict({**Walk.observation_space, "cue": spaces.Box(0.0, 1.0, (2,))})


class OwnPresence(Walk):
    observation_space = spaces.Dict(
        {**Walk.observation_space, "presence": spaces.Box(0.0, 1.0, (2,))}
    )


class OwnFeedback(Walk):
    observation_space = spaces.Dict(
        {**Walk.observation_space, "feedback": spaces.Box(0.0, 1.0, (2,))}
    )


class Endless(Walk):
    def step(self, action: Any) -> Step:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, False, False, info


class WrongRange(Walk):
    reward_range = (-1.0, 0.0)


@pytest.mark.parametrize(
    ("world", "line"),
    [
        (ForgetsTask, "a reset without options changed the task from 1 to 0"),
        (KnowsNoNames, r"""^info\["task"\] is 0 after a reset to task 'to-3'; it must be 1$"""),
        (SilentReset, r'^info\["task"\] is None after a reset to task 0; it must be 0$'),
        (SilentStep, r'^info\["task"\] is None after a step; it must be 0$'),
        (OffByOne, r'^info\["task"\] is 1 after a step; it must be 0$'),
        (ReusesStepArray, "'place' shares memory between two calls"),
        (ReusesResetArray, "'place' shares memory between two calls"),
        (ReturnsViews, "'place' shares memory between two calls"),
        (AcceptsAnyTask, "^a reset to the unknown task 3 succeeded; it must raise ValueError$"),
        (NamesNoTask, "^the error for the unknown task 3 is 'no'; it must name the task$"),
        (RefusesButSwitches, "a refused task switch changed the task"),
        (UnseededStates, "two runs of task 'to--3' with seed 0 and the same actions differ"),
        (UnseededRewards, "two runs of task 'to--3' with seed 0 and the same actions differ"),
        (LeavesTheSpace, "an observation of task 'to--3' is outside the observation space"),
        (DoublePrecision, "the observation of task 0 is outside the observation space"),
        (
            ReversedReference,
            (
                r"^reference\('to--3'\) is \(1\.0, 0\.0\); the random agent's return must be below "
                "the best one's, or one of them nan$"
            ),
        ),
        (
            EqualReference,
            (
                r"^reference\('to--3'\) is \(1\.0, 1\.0\); the random agent's return must be below "
                "the best one's, or one of them nan$"
            ),
        ),
        (EqualNames, r"^the tasks' names are \['same', 'same'\]; they must be unique$"),
        (CountsFromOne, r"^the tasks' ids are \[1, 2\]; they must be 0 to 1 in order$"),
        (NoTasks, r"^`tasks` is \(\); it must be a tuple of at least one Task$"),
        (NotTasks, r"^`tasks` is \('a', 'b'\); it must hold Task objects only$"),
        (
            NotADict,
            (
                r"^the observation space is Box\(-1\.0, 1\.0, \(1,\), float32\); it must be a Dict "
                "with one Box per modality$"
            ),
        ),
        (NotABox, r"^modality 'place' is Discrete\(3\); it must be a Box$"),
        (
            FloatImage,
            r"^modality 'place' is float32 of shape \(8, 8, 1\), but a picture is uint8 of shape",
        ),
        (
            FlatImage,
            r"^modality 'place' is uint8 of shape \(64,\), but a picture is uint8",
        ),
        (ChannelsFirst, r"^modality 'place' is uint8 of shape \(3, 8, 8\), but a picture is uint8"),
        (
            ObservationsFollowTheTask,
            (
                r"^the observation space of task 'to-3' is Dict\('place': Box\(-101.*instead of "
                r"Dict\('place': Box\(-100.*; use one space for all tasks, large enough for each$"
            ),
        ),
        (
            ActionsFollowTheTask,
            r"^the action space of task 'to-3' is Discrete\(4, start=-1\) instead of Discrete\(3, ",
        ),
        (
            OwnCue,
            (
                r"^modality 'cue' is Box\(.*\(2,\), float32\), but this name is reserved for the "
                r"one-hot task, float32 \(3,\); rename the modality$"
            ),
        ),
        (OwnPresence, r"^modality 'presence' is .* for 1 or 0 for each other modality.* \(1,\);"),
        (OwnFeedback, r"^modality 'feedback' is .* for the previous action and reward.* \(4,\);"),
        (
            Endless,
            (
                "^an episode of task 'to--3' has not ended after 300 steps; truncate it, for "
                "example with gymnasium.wrappers.TimeLimit$"
            ),
        ),
        (
            WrongRange,
            (
                r"^a reward of task 'to--3' is -\d.*, outside reward_range, \(-1\.0, 0\.0\); "
                "correct the range$"
            ),
        ),
    ],
)
def test_a_world_that_breaks_the_contract_is_rejected(world: Callable[[], Walk], line: str) -> None:
    with pytest.raises(AssertionError, match=line) as caught:
        check_task_env(world(), longest=300)
    assert "\n" not in str(caught.value)


def test_a_world_without_tasks_is_rejected() -> None:
    with pytest.raises(AssertionError, match="has no attribute `tasks`"):
        check_task_env(gym.make("CartPole-v1"))


def test_a_reference_may_have_one_known_bound() -> None:
    class HalfKnown(Walk):
        def reference(self, task: int | str) -> tuple[float, float]:
            return find_task(self.tasks, task).id * 1.0, float("nan")

    check_task_env(HalfKnown())


def test_tasks_are_immutable_hashable_values() -> None:
    """Tasks are equal if all fields are, and hashable even if their parameters are not."""
    same, other = Task(0, "a", {"goal": [1.0]}), Task(0, "a", {"goal": [2.0]})
    assert Task(0, "a", {"goal": [1.0]}) == same != other
    assert {same: "here"}[Task(0, "a", {"goal": [1.0]})] == "here"
    assert other not in {same: "here"}
    with pytest.raises(AttributeError):
        same.id = 1  # type: ignore[misc]


@pytest.mark.parametrize("key", [1, np.int64(1), "to-3"])
def test_a_task_is_found_by_id_or_name(key: Any) -> None:
    assert find_task(Walk.tasks, key) is Walk.tasks[1]


@pytest.mark.parametrize(
    "key", [3, -1, "1", "", None, True, np.True_, 0.5, [0, 1], (1,), np.array([0, 1])]
)
def test_an_unknown_task_is_refused_with_the_known_ones(key: Any) -> None:
    """Bools and several ids are refused as well."""
    with pytest.raises(
        ValueError, match=r"unknown task .*: choose an id from 0 to 2 or one of to--3, to-3, to-0"
    ):
        find_task(Walk.tasks, key)
