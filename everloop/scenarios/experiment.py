"""One run of a scenario, with everything that it leaves in its folder."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import yaml

import everloop
from everloop.loop import STRATEGIES, Board, Listener, Result, Strategy, run
from everloop.loop.result import write_json
from everloop.scenarios.scenario import Scenario

PLAIN, JOINT = "none", "joint"
CONFIG, RESULT, EVENTS = "config.yaml", "result.json", "events.out.tfevents.*"
PACKAGES = (
    *("everloop", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib", "einops", "scipy", "scikit-learn"),
    *("tensorboard", "matplotlib", "jsonargparse", "rich", "pyyaml"),
)


class Experiment:
    """A scenario with strategies and a seed, checked and ready to run.

    strategies: names in their order of application; ["none"] is plain fine-tuning, ["joint"] trains on all
        tasks at once.
    settings: strategy name -> keyword arguments, over the scenario's own.
    out: the run's folder; None leaves nothing behind.
    overwrite: replace a run that `out` already holds.
    Raises ValueError or FileExistsError, in one clear line, before anything is written.
    """

    def __init__(
        self,
        scenario: Scenario,
        strategies: Sequence[str] = (PLAIN,),
        seed: int = 0,
        out: Path | str | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.scenario, self.seed, self.out = scenario, seed, None if out is None else Path(out)
        self.names = check_strategies(strategies)
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed}, allowed: 0 to {2**31 - 1}")
        self.settings = {
            name: complete_settings(STRATEGIES[name], {**scenario.strategy_settings.get(name, {}), **(settings or {}).get(name, {})}, seed)
            for name in self.names
            if name in STRATEGIES
        }
        self.strategies: list[Strategy] = [STRATEGIES[name](**values) for name, values in self.settings.items()]
        self.learner, self.plan, self.evaluation, self.consolidation = scenario.build(seed, joint=self.names == [JOINT])
        self.learner.check(self.strategies)
        if self.out is not None and holds_run(self.out) and not overwrite:
            raise FileExistsError(f"{out} already holds a run, allowed: an empty folder, or --overwrite")
        self._fresh = True

    def run(self, listeners: Sequence[Listener] = ()) -> Result:
        """Run it, and write config.yaml, TensorBoard events and, at the end, result.json.

        Raises NotFiniteError where training breaks down; what was logged until then stays. An experiment runs
        once: RuntimeError the second time.
        """
        if not self._fresh:
            raise RuntimeError("this experiment has run already, make a new one")
        self._fresh = False
        self.learner.seed(self.seed)  # whatever else drew random numbers since this was made
        if self.out is None:
            return self._run(listeners)
        _clear(self.out)
        (self.out / CONFIG).write_text(yaml.safe_dump(self.config(), sort_keys=False))
        board = Board(self.out)
        try:
            return self._run([board, Record(self.out / RESULT), *listeners])
        finally:
            board.close()

    def _run(self, listeners: Sequence[Listener]) -> Result:
        named = Named(self.scenario.name, self.names, self.seed)
        return run(self.learner, self.plan, self.evaluation, self.consolidation, self.strategies, [named, *listeners])

    def config(self) -> dict[str, Any]:
        """The complete settings, and what they were run with."""
        return {
            "scenario": self.scenario.name,
            "seed": self.seed,
            "strategies": self.names,
            "strategy_settings": self.settings,
            "scenario_settings": {**asdict(self.scenario), "num_envs": self.scenario.num_envs, "eval_envs": self.scenario.eval_envs},
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "git_revision": _git_revision(),
            "python": platform.python_version(),
            "machine": platform.platform(),
            "threads": torch.get_num_threads(),
            "packages": {name: version(name) for name in PACKAGES},
        }


class Named(Listener):
    """Writes into the result what was run."""

    def __init__(self, scenario: str, strategies: list[str], seed: int) -> None:
        self.scenario, self.strategies, self.seed = scenario, strategies, seed

    def on_begin(self, result: Result, total_steps: int) -> None:
        result.scenario, result.strategies, result.seed = self.scenario, self.strategies, self.seed


class Record(Listener):
    """Writes result.json before training and after each phase."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_begin(self, result: Result, total_steps: int) -> None:
        write_json(self.path, result.to_dict())

    def on_evaluation(self, result: Result, divergence: dict[str, float]) -> None:
        if result.evaluations[-1].ends_phase:
            write_json(self.path, result.to_dict())


def complete_settings(strategy: type[Strategy], given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """All constructor arguments of `strategy`: those given, the run's seed if it takes one, and its defaults."""
    parameters = signature(strategy).parameters
    bound = signature(strategy).bind(**({"seed": seed} if "seed" in parameters else {}) | dict(given))
    bound.apply_defaults()
    return dict(bound.arguments)


def check_strategies(names: Sequence[str]) -> list[str]:
    """`names` if each is known, once, and "none" and "joint" stand alone; else ValueError that names the culprit."""
    allowed = [PLAIN, JOINT, *STRATEGIES]
    if not names:
        raise ValueError(f"strategies are empty, allowed: {', '.join(allowed)}")
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown strategy {name!r}: choose from {', '.join(allowed)}")
        if name in (PLAIN, JOINT) and len(names) > 1:
            raise ValueError(f"strategy {name!r} cannot be combined with others, got {','.join(names)}")
        if list(names).count(name) > 1:
            raise ValueError(f"strategy {name!r} is named twice, allowed: once")
    return list(names)


def holds_run(folder: Path) -> bool:
    """Whether `folder` has the files of a run, finished or not. Raises ValueError if it, or where it lies, is a file."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"{place} is a file, allowed: a folder")
    return (folder / CONFIG).exists() or (folder / RESULT).exists() or any(folder.glob(EVENTS))


def _clear(folder: Path) -> None:
    """Make the folder; take away the files of an earlier run, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / CONFIG, folder / RESULT, *folder.glob(EVENTS)]:
        old.unlink(missing_ok=True)


def _git_revision() -> str | None:
    """The revision of everloop's source, "-dirty" if it was changed; None outside a checkout of it."""

    def git(*words: str) -> str:
        here = Path(everloop.__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else the repository around is somebody else's
        return git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None
