"""`everloop check-env`: what three checkers find in an environment, in one line each."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from everloop.envs import EnvSequence, check_task_env
from everloop.scenarios.arguments import GENERAL
from everloop.scenarios.control import has_tasks
from everloop.scenarios.names import import_module
from everloop.scenarios.settings import Schema, schema_of
from everloop.scenarios.stdout import stdout


@dataclass(frozen=True)
class CheckEnv:
    """The settings of `everloop check-env`.

    Args:
        env: ID of the environment.
        modules: Python modules to import first.
        tasks: Tasks as for everloop run control, if the environment has none of its own.
        pad: Fill up the spaces of the tasks to one that holds them all, where they differ.
    """

    env: str
    modules: Sequence[str] = ()
    tasks: list[Any] | None = None
    pad: bool = False


def check_env_schema() -> Schema:
    """Return the settings of the command."""
    return schema_of(CheckEnv, skip={"env", "modules"}) | {"import": GENERAL["import"]}


@dataclass(frozen=True)
class Finding:
    """One thing that a checker has found.

    Args:
        checker: Its name.
        wrong: True if the environment can't be used so; False for a warning.
        text: What the rule is, and what to do, in one line.
    """

    checker: str
    wrong: bool
    text: str


def check_env(asked: CheckEnv) -> list[Finding]:
    """Return what the checkers of Gymnasium, Stable-Baselines3 and everloop find.

    Gymnasium checks the environment itself, the other two the world that everloop makes of it.

    Raises:
        ValueError: In one line, if the environment or a task is unknown or can't be made.
    """
    for module in asked.modules:
        import_module(module)

    def world() -> gym.Env[Any, Any]:
        if has_tasks(asked.env):
            return gym.make(asked.env)
        return EnvSequence(asked.env, asked.tasks or [{}], asked.pad)

    with closing(world()):
        pass  # what can't be made is the only error

    def gymnasium_checks() -> None:
        from gymnasium.utils.env_checker import check_env as check

        with closing(gym.make(asked.env)) as env:
            check(env.unwrapped, skip_render_check=True)

    def sb3_checks() -> None:
        from stable_baselines3.common.env_checker import check_env as check

        with closing(world()) as env:
            check(env)

    def our_checks() -> None:
        with closing(world()) as env:
            check_task_env(env)

    checks: dict[str, Callable[[], None]] = {
        "gymnasium": gymnasium_checks,
        "stable-baselines3": sb3_checks,
        "everloop": our_checks,
    }
    return [finding for name, check in checks.items() for finding in _found(name, check)]


def _found(checker: str, check: Callable[[], None]) -> Iterator[Finding]:
    """Yield a finding for each warning and for the error of a checker."""
    failed = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        try:
            check()
        except Exception as error:  # a checker calls the user's own code
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            failed = f"{kind}{error}"
    seen = {_line(str(warning.message)) for warning in caught}
    yield from (Finding(checker, False, text) for text in sorted(seen))
    if failed is not None:
        yield Finding(checker, True, _line(failed))


def _line(text: str) -> str:
    """Return a message in one line, without colours and the prefix of Gymnasium's warnings."""
    plain = re.sub(r"\x1b\[\d+m", "", text)
    return " ".join(plain.removeprefix("WARN: ").split())


def show_findings(asked: CheckEnv) -> int:
    """Print the findings and return the exit status: 2 if something is wrong."""
    findings = check_env(asked)
    with stdout() as console:
        for finding in findings:
            kind = "wrong" if finding.wrong else "warning"
            console.print(
                f"{finding.checker}: {kind}: {finding.text}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        wrong = sum(finding.wrong for finding in findings)
        counts = f"{wrong} wrong, {len(findings) - wrong} warnings"
        console.print(
            f"{asked.env}: {counts if findings else 'nothing found; it can be used'}",
            highlight=False,
            soft_wrap=True,
        )
    return 2 if wrong else 0
