"""One run of a scenario, with the files that it writes into its folder."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.console import Console

from everloop.envs.data.optional import needed
from everloop.loop import (
    Callback,
    Checkpoint,
    Checkpoints,
    Divergence,
    Pretraining,
    Result,
    Run,
    Strategy,
    TensorBoardLogger,
)
from everloop.loop.callbacks.about import flattened
from everloop.loop.disk import write_text
from everloop.scenarios.environment import command, environment, versions
from everloop.scenarios.folder import CONFIG, ENVIRONMENT, RESULT, check_free, opened, reopened
from everloop.scenarios.guards import Guards
from everloop.scenarios.initial import initial_weights
from everloop.scenarios.names import Factory, factories
from everloop.scenarios.progress import Progress, filled_up, whole_steps
from everloop.scenarios.record import Record
from everloop.scenarios.scenario import Scenario
from everloop.scenarios.settings import plain
from everloop.scenarios.stopping import Stopping
from everloop.scenarios.strategies import (
    JOINT,
    PLAIN,
    check_strategies,
    complete_settings,
    find_strategy,
    make_strategy,
    strategy_key,
)

ENOUGH = 50  # updates per task, enough for a small network to learn digits (docs/results.md)


class Experiment:
    """A scenario with strategies and a seed, checked and ready to run.

    An experiment always trains. The command `everloop run` shows a complete run with the same
    settings instead; in Python, `Result.load(out)` does that.

    Args:
        scenario: The scenario object, such as `SplitDigits()`.
        strategies: Names in their order of application, as a list or separated by commas: keys of
            `STRATEGIES`, or "package.module:Class" for a class of your own. "none" is plain
            fine-tuning, "joint" trains on all tasks at once.
        seed: Seed for networks, worlds and strategies, 0 to 2147483647.
        out: Folder for the run; None writes nothing.
        settings: Strategy name (the class name for one of your own) -> keyword arguments, which
            override the scenario's.
        overwrite: Replace a run that `out` already holds, complete or not.
        imports: Modules that must be imported before the run can be repeated; config.yaml
            lists them.
        checkpoint_every: World steps between two checkpoints; see `everloop.loop.Checkpoints`.
        keep_best: Measure whose best checkpoint is kept too; see there.
        init_from: Folder of another run, or a safetensors file, with whose weights the network
            starts; None for random ones. Names and shapes must fit, but the last layer of a
            classifier may have more outputs here.
        max_loss: Training loss that counts as divergence; see `everloop.loop.Guard`.
        on_divergence: "stop", or "rollback" to go back with half the learning rate; see there.
        max_rollbacks: The largest number of rollbacks, 1 or more.
        early_stopping: Evaluations without a rise of a phase's score after which it ends, 1 or
            more; see `everloop.loop.EarlyStopping`. None for no early end.
        restore_best: Restore what had been learned at a phase's best evaluation; see there.

    Raises:
        ValueError: In one line, if a name is unknown or a value is out of range.
        TypeError: In one line, if `scenario` or a strategy is an object of the wrong kind.
        FileExistsError: If `out` holds a run, complete or not, and `overwrite` is False.
        ImportError: If a package that is needed is not installed.
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
        checkpoint_every: int | None = None,
        keep_best: str | None = None,
        init_from: Path | str | None = None,
        max_loss: float | None = None,
        on_divergence: Literal["stop", "rollback"] = "stop",
        max_rollbacks: int = 3,
        early_stopping: int | None = None,
        restore_best: bool = False,
    ) -> None:
        _check_scenario(scenario)
        self.scenario = scenario
        self.names = check_strategies(strategies)
        self.seed = seed
        self.out = None if out is None else Path(out)
        self.overwrite = overwrite
        self.imports = list(imports)
        self.saving: dict[str, Any] = {
            "checkpoint_every": checkpoint_every,
            "keep_best": keep_best,
        }
        Checkpoints(Path(), checkpoint_every, keep_best)  # checks them
        self.guards = Guards(max_loss, on_divergence, max_rollbacks, early_stopping, restore_best)
        if not 0 <= seed < 2**31:
            raise ValueError(f"seed is {seed}; it must be 0 to {2**31 - 1}")
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
        self.learner, self.plan, self.evaluation, self.rollouts = scenario.build(
            seed, joint=self.names == [JOINT]
        )
        self.init_from, self._initial_notes = init_from, list[str]()
        if init_from is not None:
            weights = initial_weights(Path(init_from))
            self._initial_notes = self.learner.initialise(weights, str(init_from))
        self.learner.check(self.strategies)
        self.guards.check(self.plan, self.learner)
        if self.pretraining is not None:
            self.pretraining.check(self.learner)
        if self.out is not None:
            self.move_to(self.out)
        self._fresh = True

    @property
    def title(self) -> str:
        """The scenario and the strategies as readable text."""
        return f"{self.scenario.name} {'+'.join(map(strategy_key, self.names))}"

    @property
    def notes(self) -> list[str]:
        """Remarks before the run: options without effect, rounded steps, tasks with few updates."""
        before = [] if self.pretraining is None else [self.pretraining.note(self.learner.world)]
        first = [*self.scenario.world_notes(), *self.learner.notes, *self._initial_notes]
        return [
            *first,
            *before,
            *self._rounded(),
            *self._few_updates(),
            *self.guards.notes(self.scenario),
        ]

    def _rounded(self) -> list[str]:
        """Return a line for each number of steps that is not a whole number of rollouts.

        For a stream, return a line if its last batches are filled up.
        """
        if self.learner.labelled:
            return filled_up(self.learner, self.plan.steps)
        copies, unit = self.learner.world.num_envs, self.learner.unit
        together = " of all tasks together" if len(self.plan.phases[0]) > 1 else ""
        given = {f"steps {steps}{together}": steps for steps in self.plan.steps}
        if self.scenario.eval_every is not None and self.plan.eval_every < max(self.plan.steps):
            given[f"eval_every {self.plan.eval_every}"] = self.plan.eval_every
        lines = []
        for name, steps in given.items():
            whole = whole_steps(self.learner, steps)
            count = "one rollout" if whole == unit else f"{whole // unit} rollouts"
            if whole != steps:
                lines.append(
                    f"{name} is rounded up to {whole}: {count} of {copies} copies x "
                    f"{unit // copies} step{'' if unit == copies else 's'}"
                )
        return lines

    def _few_updates(self) -> list[str]:
        """Return a line if a task gets fewer updates than small networks need."""
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
        return [f"{who} only {count}, but even small networks need about {ENOUGH} to learn{advice}"]

    def move_to(self, out: Path) -> None:
        """Make `out` the folder of the run.

        Raises:
            FileExistsError: If it holds a run and `overwrite` is False.
            ImportError: If matplotlib, which draws the figures of a run, is not installed.
        """
        check_pictures()
        if not self.overwrite:
            check_free(out)
        self.out = out

    def run(self, callbacks: Sequence[Callback] = (), progress: bool = False) -> Result:
        """Run the experiment and return its result.

        With a folder, it writes config.yaml, environment.json, status.json, TensorBoard events,
        checkpoints, the weights at the end and, before training and after each phase, result.json.
        Ctrl-C and SIGTERM then stop it after the present update, when it has been saved.

        Args:
            callbacks: Callbacks of the run, called after those that write the files.
            progress: Show a progress bar in a terminal or a notebook; elsewhere print plain lines
                to the standard output.

        Raises:
            NotFiniteError: If a loss, weight or observation becomes nan or infinite. The files
                written until then stay.
            RuntimeError: If the experiment has run before.
        """
        if self.out is None:
            return self._go(callbacks, progress)
        files = {
            CONFIG: self.config_text(),
            ENVIRONMENT: json.dumps(environment(), indent=2) + "\n",
        }
        with opened(self.out, files, self.overwrite):
            return self._go(callbacks, progress)

    def resume(
        self,
        checkpoint: Checkpoint,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
    ) -> Result:
        """Go on with the run in the experiment's folder, and return its result.

        Args:
            checkpoint: Where to go on.
            callbacks: The callbacks that the run had; those with a state are needed.
            progress: As for `run`.

        Raises:
            FileExistsError: If another process is writing to the folder.
            NotFiniteError: As for `run`.
            RuntimeError: If the experiment has run before.
            ValueError: If the checkpoint belongs to another run.
        """
        assert self.out is not None, "a run that goes on has a folder"
        with reopened(self.out):
            write_text(self.out / CONFIG, self.config_text())  # its guards may have changed
            return self._go(callbacks, progress, checkpoint)

    def _go(
        self, callbacks: Sequence[Callback], progress: bool, checkpoint: Checkpoint | None = None
    ) -> Result:
        """Run it from the beginning or from a checkpoint, once."""
        if not self._fresh:
            raise RuntimeError("this experiment has already run; make a new Experiment")
        self._fresh = False
        self.learner.seed(self.seed)  # other code may have drawn random numbers since __init__
        try:
            if progress:
                with Progress(Console()) as bar:
                    return self._written([*callbacks, bar], checkpoint)
            return self._written(callbacks, checkpoint)
        finally:
            for world in (self.learner.world, self.evaluation, self.rollouts):
                if world is not None:
                    world.close()

    def _written(self, callbacks: Sequence[Callback], checkpoint: Checkpoint | None) -> Result:
        """Run it, with the callbacks that write its files if it has a folder."""
        if self.out is None:
            return self._made(self.guards.around(callbacks)).go()
        checkpoints = Checkpoints(
            self.out,
            self.saving["checkpoint_every"],
            self.saving["keep_best"],
            {"config": self.config(), "packages": versions(), "saving": self.saving},
        )
        logger = TensorBoardLogger(self.out, self._shown(), command())
        with Stopping(checkpoints) as stopping:
            try:
                record = Record(self.out / RESULT)
                written = [logger, record, checkpoints, *callbacks]
                run = self._made([*self.guards.around(written, checkpoints), stopping])
                if checkpoint is not None:
                    run.load(checkpoint)
                return run.go()
            finally:
                logger.close()

    def _made(self, callbacks: Sequence[Callback]) -> Run:
        run = Run(
            self.learner,
            self.plan,
            self.evaluation,
            self.strategies,
            [Divergence(), *callbacks],
            self.pretraining,
            self.rollouts,
        )
        run.result.scenario, run.result.seed = self.scenario.name, self.seed
        run.result.strategies = [strategy_key(name) for name in self.names]
        return run

    def _shown(self) -> dict[str, Any]:
        """Return the settings that TensorBoard shows, with the same keys for all strategies."""
        strategies = flattened(self.settings).items()
        return {
            **{
                field.name: plain(getattr(self.scenario, field.name))
                for field in fields(self.scenario)
            },
            "strategy_settings": [f"{name}={value}" for name, value in strategies],
        }

    def config(self) -> dict[str, Any]:
        """Return the complete settings as `everloop run --config` reads them."""
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
            **self.guards.config(),
            **({} if self.init_from is None else {"init_from": str(self.init_from)}),
            **{
                field.name: plain(getattr(self.scenario, field.name))
                for field in fields(self.scenario)
            },
            **strategies,
        }

    def config_text(self) -> str:
        """Return the content of config.yaml."""
        text: str = yaml.safe_dump(self.config(), sort_keys=False, allow_unicode=True)
        return text

    def folder(self) -> Path:
        """Return the command line's default folder: runs/SCENARIO/STRATEGIES-HASH/SEED.

        HASH is computed from all settings but the seed.
        """
        settings = {key: value for key, value in self.config().items() if key != "seed"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        return Path(
            "runs",
            self.scenario.name,
            f"{'+'.join(map(strategy_key, self.names))}-{digest}",
            str(self.seed),
        )


def _only(found: list[Pretraining]) -> Pretraining | None:
    """Return the only pre-training in `found`, or None. Raise ValueError if there are several."""
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(part.name for part in found)} are both pre-training; use one of them"
        )
    return found[0] if found else None


def check_pictures() -> None:
    """Raise ImportError if matplotlib, which is needed when a run ends, is not installed."""
    needed("matplotlib", "", "a run that draws its pictures")


def scenario_path(scenario: type[Scenario]) -> str:
    """Return the name by which `everloop run` finds the class: registered, or its path."""
    from everloop.scenarios import SCENARIOS

    return (
        scenario.name
        if SCENARIOS.get(scenario.name) is scenario
        else f"{scenario.__module__}:{scenario.__qualname__}"
    )


def _check_scenario(scenario: Any) -> None:
    """Raise TypeError if `scenario` is no scenario object, or a field should be a Factory."""
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
