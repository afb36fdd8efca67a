"""PPO and the supervised learner give the same weights if their losses are the same.

PPO makes one pass over one step per copy, without discount, value loss, entropy bonus or normalised
advantages. The world rewards every action with 1, so the advantage is 1 and PPO's gradient is that
of -log pi(a|s). This is the cross-entropy of the action, which is the supervised learner's label.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from loop_helpers import LateReplay, Output, distance, weights
from stable_baselines3 import PPO
from torch import Tensor, nn

from everloop.envs import Task
from everloop.loop import STRATEGIES, Batch, Learner, Strategy
from everloop.loop.sb3.on_policy import SB3Learner

COPIES = 32
SIZE = 5
CLASSES = 3
STEPS = 15
RATE = 0.03
SETTINGS: dict[str, dict[str, Any]] = {
    "l2": {"strength": 1.0},
    "ewc": {"strength": 50.0, "fisher": "exact"},
    "ewc_kfac": {"strength": 50.0},
    "si": {"strength": 5.0},
    "mas": {"strength": 5.0},
    "rwalk": {"strength": 5.0, "interval": 3},
    "lwf": {},
    "replay": {},
    "der": {"strength": 1.0},
    "derpp": {"strength": 1.0},
    "mir": {},
    "gem": {},
    "agem": {},
    "packnet": {"share": 0.5, "retrain_steps": 5},
    "continual_backprop": {"replacement_rate": 0.05, "maturity": 4, "interval": 2},
    "l2_init": {"strength": 0.1},
    "shrink_and_perturb": {"shrink": 0.99},
}


class GuessingWorld(VectorEnv):
    """Random points around a centre for each task; the reward of every action is 1.

    The world records the actions. If labels are given, each step puts them in `info`.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    tasks = tuple(Task(k, f"place {k}", {}) for k in range(3))
    reward_range = (1.0, 1.0)

    def __init__(self, labels: dict[int, list[Any]] | None = None) -> None:
        self.num_envs, self.labels = COPIES, labels
        cue = spaces.Box(0, 1, (len(self.tasks),), np.float32)
        self.single_observation_space = spaces.Dict(
            {"cue": cue, "x": spaces.Box(-np.inf, np.inf, (SIZE,), np.float32)}
        )
        self.single_action_space = spaces.Discrete(CLASSES)
        self.actions: dict[int, list[Any]] = {task.id: [] for task in self.tasks}
        self.task = 0

    def reference(self, task: int) -> tuple[float, float]:
        return 0.0, 1.0

    def show(self, task: int, rows: Any) -> None:
        """The points can't be shown again."""

    def state_dict(self) -> None:
        """The world can't give its state."""

    def _observe(self) -> dict[str, Any]:
        centre = np.random.default_rng(self.task).normal(size=SIZE)
        x = centre + np.random.default_rng([self.task, self.count]).normal(size=(COPIES, SIZE))
        return {
            "cue": np.eye(len(self.tasks), dtype=np.float32)[[self.task] * COPIES],
            "x": x.astype(np.float32),
        }

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.task, self.count = (options or {}).get("task", self.task), 0
        return self._observe(), {"task": np.full(COPIES, self.task)}

    def step(self, actions: Any) -> Any:
        self.actions[self.task].append(np.array(actions))
        info = {"task": np.full(COPIES, self.task)}
        if self.labels is not None:
            info["label"] = self.labels[self.task][self.count]
        self.count += 1
        never = np.zeros(COPIES, dtype=bool)
        return self._observe(), np.ones(COPIES), never, never, info


class Net(nn.Module):
    """Two layers; the value is always 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(SIZE, 12), nn.ReLU(), nn.Linear(12, CLASSES))

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(
        self, obs: dict[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[Output, Tensor]:
        prediction = self.layers(obs["x"])
        return Output(prediction, prediction[..., 0] * 0.0), state


def train_ppo(
    strategies: list[Strategy], monkeypatch: pytest.MonkeyPatch
) -> tuple[Learner, dict[int, list[Any]]]:
    parameters = {
        "n_steps": 1,
        "batch_size": COPIES,
        "n_epochs": 1,
        "learning_rate": RATE,
        "gamma": 0.0,
        "vf_coef": 0.0,
    }
    world = GuessingWorld()
    learner = SB3Learner(
        world,
        lambda *_: Net(),
        PPO,
        parameters | {"ent_coef": 0.0, "normalize_advantage": False},
        device="cpu",
    )

    def certain_targets(batch: Batch) -> Tensor:
        """Outputs of a policy that is certain of the action, so KL is the cross-entropy."""
        return (
            batch.target if batch.action is None else 1e3 * F.one_hot(batch.action, CLASSES).float()
        )

    monkeypatch.setattr(learner, "targets", certain_targets)
    # a rollout is one minibatch, in its original order
    monkeypatch.setattr(np.random, "permutation", np.arange)
    train(learner, strategies)
    return learner, world.actions


def train_supervised(strategies: list[Strategy], labels: dict[int, list[Any]]) -> Learner:
    module = Net()
    optimizer = torch.optim.Adam(module.parameters(), lr=RATE, eps=1e-5, fused=True)
    learner = LateReplay(module, GuessingWorld(labels), optimizer=optimizer, max_grad_norm=0.5)
    train(learner, strategies)
    return learner


def train(learner: Learner, strategies: list[Strategy]) -> None:
    learner.attach(strategies)
    for task in GuessingWorld.tasks:
        for strategy in strategies:
            strategy.begin_task(task, learner)
        learner.learn([task.id], STEPS * COPIES)
        x = torch.randn(1, 40, SIZE, generator=torch.Generator().manual_seed(task.id))
        labels = torch.arange(40)[None] % CLASSES
        batch = Batch(
            {"x": x},
            torch.ones(1, 40, dtype=torch.bool),
            action=labels,
            task=torch.full((40,), task.id),
        )
        batch = (
            batch
            if not learner.labelled
            else Batch(batch.obs, batch.start, target=labels, task=batch.task)
        )
        for strategy in strategies:
            strategy.end_task(task, [batch], learner)


def make_strategies(name: str) -> list[Strategy]:
    return [] if name == "none" else [STRATEGIES[name](**SETTINGS[name])]


@pytest.mark.parametrize("name", ["none", *SETTINGS])
def test_ppo_and_the_supervised_learner_give_the_same_weights(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ppo, actions = train_ppo(make_strategies(name), monkeypatch)
    supervised = train_supervised(make_strategies(name), actions)
    assert [len(steps) for steps in actions.values()] == [STEPS] * 3
    assert distance(weights(ppo.module), weights(supervised.module)) < 1e-5
    if name != "none":
        assert (
            distance(weights(supervised.module), weights(train_supervised([], actions).module))
            > 1e-2
        ), "the strategy did nothing"
