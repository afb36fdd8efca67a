"""One run of a scenario, with everything that it leaves in its folder."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console

from everloop.envs.data.optional import needed
from everloop.loop import (
    Callback,
    Divergence,
    Pretraining,
    Result,
    Run,
    Strategy,
    TensorBoardLogger,
)
from everloop.loop.callbacks.about import flattened
from everloop.loop.results.result import write_json
from everloop.scenarios.environment import command, environment
from everloop.scenarios.folder import CONFIG, ENVIRONMENT, RESULT, check_free, opened
from everloop.scenarios.names import Factory, factories
from everloop.scenarios.progress import Progress, whole_steps
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.settings import plain
from everloop.scenarios.strategies import (
    JOINT,
    PLAIN,
    check_strategies,
    complete_settings,
    find_strategy,
    make_strategy,
    strategy_key,
)

ENOUGH = 50  # updates a task, with which small networks learn digits (docs/results.md)


class Experiment:
    """A scenario with strategies and a seed, checked and ready to run.

    Args:
        scenario: What is run.
        strategies: Names in their order of application, as a list or comma-separated: of
            `STRATEGIES`, or "package.module:Class" of your own. "none" is plain fine-tuning,
            "joint" trains on all tasks at once.
        seed: Of networks, worlds and strategies, from 0.
        out: The run's folder; None leaves nothing behind.
        settings: Strategy name (of your own: the class's name) -> keyword arguments, which
            override the scenario's.
        overwrite: Replace a run that `out` already holds.
        imports: Modules that a repetition of the run has to import first; they are written into
            config.yaml.

    Raises:
        ValueError, TypeError, FileExistsError, ImportError: In one line, before anything is
            written.
    """

    def __init__(
        self,
        scenario: Scenario,
        strategies: str | Sequence[str] = PLAIN,
        seed: int = 0,
        out: Path | str | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        overwrite: bool = False,
        imports: Sequence[str] = (),
    ) -> None:
        _check_scenario(scenario)
        self.scenario, self.seed, self.out = scenario, seed, None if out is None else Path(out)
        self.names, self.overwrite, self.imports = (
            check_strategies(strategies),
            overwrite,
            list(imports),
        )
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed}, allowed: 0 to {2**31 - 1}")
        self.settings = {
            key: complete_settings(
                find_strategy(name),
                {**scenario.strategy_settings.get(key, {}), **(settings or {}).get(key, {})},
                seed,
            )
            for name in self.names
            if name not in (PLAIN, JOINT)
            for key in [strategy_key(name)]
        }
        methods = [
            make_strategy(name, self.settings[strategy_key(name)])
            for name in self.names
            if name not in (PLAIN, JOINT)
        ]
        self.strategies = [method for method in methods if isinstance(method, Strategy)]
        self.pretraining = _only([m for m in methods if isinstance(m, Pretraining)])
        self.learner, self.plan, self.evaluation, self.consolidation = scenario.build(
            seed, joint=self.names == [JOINT]
        )
        self.learner.check(self.strategies)
        if self.pretraining is not None:
            self.pretraining.check(self.learner)
        if self.out is not None:
            self.move_to(self.out)
        self._fresh = True

    @property
    def title(self) -> str:
        """Scenario and strategies, for people to read."""
        return f"{self.scenario.name} {'+'.join(map(strategy_key, self.names))}"

    @property
    def notes(self) -> list[str]:
        """What should be known before it runs: options that do nothing here, steps rounded up, and
        tasks that are hardly trained.
        """
        before = [] if self.pretraining is None else [self.pretraining.note(self.learner.world)]
        return [*self.learner.notes, *before, *self._rounded(), *self._few_updates()]

    def _rounded(self) -> list[str]:
        """A line where a task's steps are no whole number of rollouts."""
        steps, copies = self.plan.steps[0], self.learner.world.num_envs
        whole, unit = whole_steps(self.learner, steps), whole_steps(self.learner, 1)
        if whole == steps or unit == copies:  # a stream fills its last batch
            return []
        count = "one rollout" if whole == unit else f"{whole // unit} rollouts"
        together = " of all tasks together" if len(self.plan.phases[0]) > 1 else ""
        return [
            f"steps {steps}{together} becomes {whole}, {count} of {copies} copies x "
            f"{unit // copies} steps"
        ]

    def _few_updates(self) -> list[str]:
        """A line where a task gets fewer updates than small networks need."""
        updates = [self.learner.updates(steps) or ENOUGH for steps in self.plan.steps]
        few = min(updates)
        if few >= ENOUGH:
            return []
        tasks = self.plan.phases[updates.index(few)]
        if len(tasks) > 1:
            who = "all tasks together get"
        elif len(updates) > 1 and max(updates) == few:
            who = "each task gets"
        else:
            who = f"task {self.evaluation.tasks[tasks[0]].name} gets"
        advice = f": {self.scenario.more_training}" if self.scenario.more_training else ""
        count = f"{few} update{'' if few == 1 else 's'}"
        return [
            f"{who} only {count}, which may be too few to learn (about {ENOUGH} are needed){advice}"
        ]

    def move_to(self, out: Path) -> None:
        """Let `out` be the run's folder.

        Raises:
            FileExistsError: If it holds a run that is not to be replaced.
            ImportError: Without matplotlib, which draws the pictures of the run.
        """
        check_pictures()
        if not self.overwrite:
            check_free(out)
        self.out = out

    def run(self, callbacks: Sequence[Callback] = (), progress: bool = False) -> Result:
        """Run it, and write config.yaml, environment.json, TensorBoard events and, after each
        phase, result.json.

        Args: callbacks: Told of what happens, after those that write the files. They may act on the
            run. progress: Show a bar in a terminal or a notebook, elsewhere plain lines on the
            standard output.

        Raises:
            NotFiniteError: Where training breaks down; what was logged until then stays.
            RuntimeError: The second time; an experiment runs once.
        """
        if not self._fresh:
            raise RuntimeError("this experiment has run already; make a new one")
        self._fresh = False
        self.learner.seed(self.seed)  # whatever else drew random numbers since this was made
        try:
            if progress:
                with Progress(Console()) as bar:
                    return self._written([*callbacks, bar])
            return self._written(callbacks)
        finally:
            for world in (self.learner.world, self.evaluation, self.consolidation):
                world.close()

    def _written(self, callbacks: Sequence[Callback]) -> Result:
        """Run it, and write what it leaves into its folder, if it has one."""
        if self.out is None:
            return self._run(callbacks)
        files = {
            CONFIG: self.config_text(),
            ENVIRONMENT: json.dumps(environment(), indent=2) + "\n",
        }
        with opened(self.out, files, self.overwrite):
            logger = TensorBoardLogger(self.out, self._shown(), command())
            try:
                return self._run([logger, Record(self.out / RESULT), *callbacks])
            finally:
                logger.close()

    def _shown(self) -> dict[str, Any]:
        """The settings that TensorBoard shows, under the same names for all strategies."""
        strategies = flattened(self.settings).items()
        return {
            **{
                field.name: plain(getattr(self.scenario, field.name))
                for field in fields(self.scenario)
            },
            "strategy_settings": [f"{name}={value}" for name, value in strategies],
        }

    def _run(self, callbacks: Sequence[Callback]) -> Result:
        run = Run(
            self.learner,
            self.plan,
            self.evaluation,
            self.consolidation,
            self.strategies,
            [Divergence(), *callbacks],
            self.pretraining,
        )
        run.result.scenario, run.result.seed = self.scenario.name, self.seed
        run.result.strategies = [strategy_key(name) for name in self.names]
        return run.go()

    def config(self) -> dict[str, Any]:
        """The complete settings, as `everloop run --config` reads them."""
        strategies = {
            key: {
                name: plain(value)
                for name, value in values.items()
                if name != "seed" or value != self.seed
            }
            for key, values in self.settings.items()
        }
        return {
            "scenario": scenario_path(type(self.scenario)),
            **({"import": self.imports} if self.imports else {}),
            "strategies": self.names,
            "seed": self.seed,
            "threads": torch.get_num_threads(),
            **{
                field.name: plain(getattr(self.scenario, field.name))
                for field in fields(self.scenario)
            },
            **strategies,
        }

    def config_text(self) -> str:
        """The content of config.yaml."""
        text: str = yaml.safe_dump(self.config(), sort_keys=False, allow_unicode=True)
        return text

    def folder(self) -> Path:
        """Where a run goes that is not told where: runs/SCENARIO/STRATEGIES-HASH/SEED, the hash of
        all settings but the seed.
        """
        settings = {key: value for key, value in self.config().items() if key != "seed"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return Path(
            "runs",
            self.scenario.name,
            f"{'+'.join(map(strategy_key, self.names))}-{digest}",
            str(self.seed),
        )


class Record(Callback):
    """Writes result.json before training and after each phase."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_run_begin(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())

    def on_phase_end(self, run: Run) -> None:
        write_json(self.path, run.result.to_dict())


def _only(found: list[Pretraining]) -> Pretraining | None:
    """Return the only pre-training in `found`, or None. Raise ValueError if there are several."""
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(part.name for part in found)} are both pre-training; use one of them"
        )
    return found[0] if found else None


def check_pictures() -> None:
    """Raise ImportError without matplotlib, which is needed as a run ends."""
    needed("matplotlib", "", "a run that draws its pictures")


def scenario_path(scenario: type[Scenario]) -> str:
    """The name by which `everloop run` finds the class: a registered one, or its path."""
    from everloop.scenarios import SCENARIOS

    return (
        scenario.name
        if SCENARIOS.get(scenario.name) is scenario
        else f"{scenario.__module__}:{scenario.__qualname__}"
    )


def _check_scenario(scenario: Any) -> None:
    """Raise TypeError, which says what to write, for what is no scenario object, or has other than
    a Factory in the place of one.
    """
    from everloop.scenarios import SCENARIOS

    if isinstance(scenario, str) and scenario in SCENARIOS:
        raise TypeError(f"scenario is {scenario!r}; write {SCENARIOS[scenario].__name__}()")
    if inspect.isclass(scenario) and issubclass(scenario, Scenario):
        raise TypeError(f"scenario is the class {scenario.__name__}; write {scenario.__name__}()")
    if not isinstance(scenario, Scenario):
        raise TypeError(
            f"scenario is {scenario!r}; it must be a scenario object, such as SplitDigits()"
        )
    for name in factories(type(scenario)):
        value = getattr(scenario, name)
        if not isinstance(value, Factory | None):
            path = repr(value) if isinstance(value, str) else "'package.module:Class'"
            raise TypeError(f"{name} is {value!r}; write {name}=Factory({path})")
