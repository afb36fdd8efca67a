"""Does a change leave all results the same? `python benchmarks/same_results.py REVISION`.

Runs a list of short experiments with the code of REVISION, in a separate git worktree, and with the
code of this working tree. Both run on this machine, because hashes may differ between processors.
Compares the scores at the ends of phases, all evaluations, and a hash of the final weights and of
the optimizer's state. Prints one line for each case that differs in any bit, and exits with status
1 if any does.

`--cases WORD` runs the cases whose name contains WORD.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import nn

from everloop import loop
from everloop.agents import Agent, Classifier, GrowingMLP, ProgressiveMLP
from everloop.envs import Examples
from everloop.loop import STRATEGIES, DQNLearner, Training, attach, likelihood_for
from everloop.scenarios import SplitDigits, SwitchingPlant
from everloop.scenarios.experiment import Experiment
from everloop.scenarios.texts import TextScenario

Outcome = dict[str, Any]
Case = Callable[[], Outcome]
SEED, GROUPS = 0, 8

METHODS = list({**STRATEGIES, **getattr(loop, "PRETRAINING", {})})
"""What a list of strategies may name, in this revision or an older one."""

STREAM_SETTINGS: dict[str, dict[str, Any]] = {
    "rwalk": {"interval": 3},
    "packnet": {"retrain_steps": 5, "batch_size": 16},
    "hat": {"period": 4, "rate": 0.5},
    "continual_backprop": {"replacement_rate": 0.05, "maturity": 4, "interval": 2},
    "gdumb": {"epochs": 2},
    "reptile": {"iterations": 3, "tasks": [0, 1]},
    "maml": {"iterations": 3, "tasks": [0, 1]},
    "growth": {"units": 3, "threshold": 0.0, "patience": 5},
}
"""Settings with which a strategy uses all of its parts within a few steps."""

CONTROL_SETTINGS: dict[str, dict[str, Any]] = {
    **STREAM_SETTINGS,
    **{
        name: {"capacity": 64, "batch_size": 16}
        for name in ("replay", "der", "derpp", "clear", "gem", "agem")
    },
    "mir": {"capacity": 64, "batch_size": 16, "candidates": 24},
}
CONTROL = [
    name
    for name in STRATEGIES
    if STRATEGIES[name].traits.control and name not in ("progressive", "growth")
]


@dataclass
class Columns(SplitDigits):
    """Digits with the networks that progressive networks and growth require."""

    def module(self, world: Any, heads: int) -> nn.Module:
        backbone = ProgressiveMLP if heads > 1 else GrowingMLP
        outputs = likelihood_for(world.single_action_space).size()
        return Classifier(backbone((8, 8, 1), (16, 16)), outputs, tasks=heads)


@dataclass
class DigitsByPPO(SplitDigits):
    """Digits under PPO, for the path of images in control."""

    recurrent: bool = False

    def make_learner(self, world: Any, seed: int) -> Any:
        from sb3_contrib import RecurrentPPO
        from stable_baselines3 import PPO

        from everloop.loop import SB3Learner

        def network(space: Any, actions: Any) -> Agent:
            size = likelihood_for(actions).size()
            return Agent(
                space,
                size,
                token_size=16,
                attention_heads=2,
                hidden_size=16,
                value_head=True,
                recurrent=self.recurrent,
            )

        algorithm = RecurrentPPO if self.recurrent else PPO
        parameters = {"n_steps": 16, "batch_size": 64, "n_epochs": 2}
        length = 4 if self.recurrent else 1
        return SB3Learner(
            world, network, algorithm, parameters, sequence_length=length, seed=seed, device="cpu"
        )


class Dial(VectorWrapper[Any, Any, Any, Any, Any]):
    """A plant with discrete actions: -1 or 1 for one of the controls, or 0 for all."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        controls = env.single_action_space.shape[0]
        self.settings = np.concatenate(
            [np.eye(controls), -np.eye(controls), np.zeros((1, controls))]
        ).astype(np.float32)
        self.single_action_space = spaces.Discrete(len(self.settings))
        self.action_space = batch_space(self.single_action_space, env.num_envs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: Any) -> Any:
        return self.env.step(self.settings[actions])


@dataclass
class PlantByDQN(SwitchingPlant):
    """The plant with discrete actions, under DQN."""

    def make_world(self, split: Any, num_envs: int, seed: int) -> Any:
        return Dial(super().make_world(split, num_envs, seed))

    def make_learner(self, world: Any, seed: int) -> Any:
        def network(space: Any, actions: Any) -> Agent:
            return Agent(
                space,
                int(actions.n),
                recurrent=False,
                token_size=16,
                attention_heads=2,
                hidden_size=16,
            )

        parameters = {
            "buffer_size": 2000,
            "learning_starts": 64,
            "batch_size": 32,
            "train_freq": 2,
            "target_update_interval": 64,
        }
        return DQNLearner(world, network, parameters, seed=seed, device="cpu")


def sentences(seed: int, tags: bool, rows: int = 96, length: int = 6, words: int = 20) -> Examples:
    """Return random sentences of two domains, x and y.

    The first word determines the class. Words 4 and 5 (6 and 7 in domain y) are names.

    Args:
        seed: Seed of the sentences.
        tags: Label every token with a tag instead of every sentence with a class.
        rows: Number of sentences, even.
        length: Number of words of a sentence.
        words: Size of the vocabulary.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, words, (rows, length)).astype(np.int32)
    domain = np.array(["x", "y"] * (rows // 2))
    if not tags:
        return Examples(
            ids, (ids[:, 0] + (domain == "y")) % 2, ("even", "odd"), {"domain": domain}, words
        )
    ids[:, -1] *= rng.integers(0, 2, rows, dtype=np.int32)
    name = np.where(domain == "y", 6, 4)[:, None]
    labels = np.where(ids == name, 1, np.where(ids == name + 1, 2, 0))
    return Examples(
        ids, np.where(ids > 0, labels, -1), ("O", "B-name", "I-name"), {"domain": domain}, words
    )


@dataclass
class Sentences(TextScenario):
    """Generated texts, so that the case needs no data."""

    name = "sentences"
    tags: bool = False

    @property
    def eval_envs(self) -> int:
        return 24

    def examples(self) -> tuple[Examples, Examples]:
        return sentences(0, self.tags), sentences(1, self.tags)


def digest(*states: Any) -> str:
    """Return a hash of every tensor and number in `states`, which may be nested."""
    found = hashlib.sha256()

    def walk(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(
                value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
            )
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                found.update(str(key).encode())
                walk(value[key])
        elif isinstance(value, (list, tuple)):
            for part in value:
                walk(part)
        elif isinstance(value, (bool, int, float)):
            found.update(repr(value).encode())

    walk(states)
    return found.hexdigest()[:16]


def outcome(scenario: Any, strategies: str, settings: dict[str, dict[str, Any]]) -> Outcome:
    """Run a scenario and return its result, the ends of phases and a hash of its weights."""
    chosen = {name: settings[name] for name in strategies.split(",") if name in settings}
    try:
        experiment = Experiment(scenario, strategies, SEED, settings=chosen)
    except ValueError:
        return {"refused": True}
    content = experiment.run().to_dict()
    content.pop("wall_seconds")
    learner: Any = experiment.learner
    algorithm = getattr(learner, "model", None)
    everything = learner.module.state_dict() if algorithm is None else algorithm.policy.state_dict()
    return {
        "weights": digest(everything, learner.optimizer.state_dict()),
        "ends": [row for row in content["evaluations"] if row["ends_phase"]],
        "result": content,
    }


def attached(how: str, strategies: list[str]) -> Outcome:
    """Run a hand-written loop on random vectors with strategies attached to it.

    Args:
        how: "steps" steps the optimizer plainly, "closure" passes it a closure, and "labels" calls
            the module with its labels.
        strategies: Names of the strategies.
    """

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

        def forward(self, input: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            logits: torch.Tensor = self.net(input)
            return logits

    torch.manual_seed(SEED)
    module = Labelled()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    made = [STRATEGIES[name](**STREAM_SETTINGS.get(name, {})) for name in strategies]
    by_module = how == "labels"
    try:
        loop = attach(
            made, module, optimizer, label_name="labels" if by_module else None, max_grad_norm=5.0
        )
    except ValueError:
        return {"refused": True}
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    for task in range(2):
        rows = torch.nonzero(y // 2 == task)[:, 0]
        loop.begin_task(task)
        for begin in range(0, 3 * 32, 16):
            own = rows[(torch.arange(16) + begin) % len(rows)]

            def loss(own: torch.Tensor = own) -> torch.Tensor:
                if not by_module:
                    loop.observe(x[own], y[own])
                optimizer.zero_grad()
                logits = module(input=x[own], labels=y[own]) if by_module else module(x[own])
                value = nn.functional.cross_entropy(logits, y[own])
                value.backward()  # type: ignore[no-untyped-call]
                return value

            if how == "closure":
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()
        loop.end_task([({"input": x[rows]} if by_module else x[rows], y[rows])])
    scores = []
    for task in range(2):
        with loop.view(task), torch.no_grad():
            scores.append(float((module(x).argmax(1) == y).float().mean()))
    return {"weights": digest(module.state_dict(), optimizer.state_dict()), "ends": scores}


def cases() -> dict[str, Case]:
    """Return every case by its name."""
    found: dict[str, Case] = {}

    def add(
        name: str, scenario: Any, strategies: str, settings: dict[str, dict[str, Any]] | None = None
    ) -> None:
        found[f"{name} {strategies}"] = lambda: outcome(scenario, strategies, settings or {})

    pairs = [
        "none",
        "joint",
        "ewc,replay",
        "packnet,replay",
        "hat,replay",
        "lora,replay",
        "er_ace,ewc",
        "si,derpp",
        "agem,lwf",
    ]
    for kind in ("class", "domain", "task"):
        digits = SplitDigits(scenario_type=kind, iterations=12)
        for name in [*pairs, *METHODS]:
            add(f"digits {kind}", digits, name, STREAM_SETTINGS)
    for name in ("none", "progressive", "growth"):
        kind = "class" if name == "growth" else "task"
        add(
            f"columns {kind}",
            Columns(scenario_type=kind, iterations=12),  # type: ignore[arg-type]
            name,
            STREAM_SETTINGS,
        )
    small = SplitDigits(iterations=12)
    options = {
        "accumulate": Training(accumulate=3),
        "repeats": Training(updates_per_batch=2),
        "augment": Training(augment="crop_flip"),
        "bfloat16": Training(precision="bfloat16"),
        "balanced": Training(balanced=True),
        "cosine": Training(rate="cosine"),
        "plateau": Training(rate="plateau"),
        "checkpointing": Training(checkpointing=True),
    }
    for name, training in options.items():
        for strategies in ("none", "ewc,replay", "icarl", "lora", "gdumb", "la_maml"):
            kind = "task" if strategies == "lora" else "class"
            add(
                f"digits {name}",
                replace(small, training=training, scenario_type=kind),  # type: ignore[arg-type]
                strategies,
                STREAM_SETTINGS,
            )
    add("digits seen", replace(small, eval_tasks="seen"), "ewc,replay")
    add(
        "digits leaks",
        replace(small, iterations=None, epochs=1, preset="hard", gradual=0.2),
        "ewc,replay",
    )
    add("digits nested", replace(small, periods=[1, 2, 4]), "ewc,replay")
    for tags in (False, True):
        for name in ["none", *STRATEGIES, "ewc,replay"]:
            add(
                "tags" if tags else "text",
                Sentences(scenario_type="domain", iterations=12, size=16, tags=tags),
                name,
                STREAM_SETTINGS,
            )
    plant = SwitchingPlant(
        num_tasks=2,
        steps=2048,
        n_steps=32,
        n_epochs=2,
        batch_size=256,
        token_size=16,
        hidden_size=16,
    )
    algorithms = {
        "recurrent ppo": plant,
        "ppo": replace(plant, recurrent=False),
        "sac": replace(plant, algorithm="sac", steps=1600),
        "dqn": PlantByDQN(num_tasks=2, steps=1600),
    }
    for name, scenario in algorithms.items():
        # evaluations within a phase have a case of their own, "curve"
        scenario = replace(scenario, eval_every=100_000)
        for strategies in ("none", "joint", "ewc,replay", "packnet,replay", *CONTROL):
            add(f"plant {name}", scenario, strategies, CONTROL_SETTINGS)
        add(
            f"plant {name} curve", replace(scenario, eval_every=512), "ewc,replay", CONTROL_SETTINGS
        )
    for recurrent in (False, True):
        pictures = DigitsByPPO(
            scenario_type="task",
            iterations=24,
            recurrent=recurrent,
            eval_every=100_000,
        )
        for strategies in ("none", "ewc,replay", "der", "agem", "packnet", "hat", "ewc_kfac"):
            add(
                f"pictures {'recurrent ppo' if recurrent else 'ppo'}",
                pictures,
                strategies,
                CONTROL_SETTINGS,
            )
    for how in ("steps", "closure", "labels"):
        for name in [*STRATEGIES, "ewc,replay"]:
            found[f"attach {how} {name}"] = lambda how=how, name=name: attached(
                how, name.split(",")
            )  # type: ignore[misc]
    return found


def work(words: list[str]) -> None:
    """Run the cases with these names, and print the outcome of each as a line of JSON."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = cases()
    for name in words:
        print(json.dumps([name, known[name]()]), flush=True)


def outcomes(source: Path, names: list[str], jobs: int) -> dict[str, Outcome]:
    """Return the outcomes of the cases with the code in `source`, `jobs` processes at a time."""

    def part(own: list[str]) -> Iterator[tuple[str, Outcome]]:
        command = [sys.executable, __file__, "--work", *own]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(source)}
        )
        if done.returncode:
            raise SystemExit(f"under {source}:\n{done.stderr}")
        return ((name, found) for name, found in map(json.loads, done.stdout.splitlines()))

    with ThreadPoolExecutor(jobs) as pool:
        parts = [part for part in (names[i::GROUPS] for i in range(GROUPS)) if part]
        return {name: found for done in pool.map(part, parts) for name, found in done}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("revision", nargs="?", default="HEAD")
    parser.add_argument("--cases", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", nargs="+", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work)
        return
    names = [name for name in cases() if args.cases in name]
    here = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", old, args.revision],
            cwd=here,
            check=True,
        )
        try:
            before = outcomes(old, names, args.jobs)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=here, check=True)
    after = outcomes(here, names, args.jobs)
    differing = [name for name in names if before[name] != after[name]]
    for name in differing:
        parts = [
            key
            for key in {**before[name], **after[name]}
            if before[name].get(key) != after[name].get(key)
        ]
        print(f"differs: {name}: {', '.join(parts)}")
    refused = sum("refused" in found for found in after.values())
    print(
        f"{len(names) - len(differing)} of {len(names)} cases are the same as under "
        f"{args.revision}; {refused} are refused"
    )
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
