"""Runs that are killed and go on end as if they had never been: `python benchmarks/kill_test.py`.

Each setting runs once to its end. Then it runs again, is killed by SIGKILL at a random moment, goes
on by `everloop resume` in a new process, is killed there as well, and goes on to its end. The two
ends are compared bit for bit: result.json but for the time, the weights, the whole state of the
learner with optimizer, memories and buffers, every generator, and the curves of TensorBoard. Prints
the table of docs/results.md.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from everloop.loop import Checkpoint
from everloop.loop.checkpoint import checkpoints
from everloop.scenarios.cli import main as everloop
from everloop.scenarios.folder import complete

DIGITS = ["split-digits", "--iterations", "40", "--eval-every", "640", "--checkpoint-every", "96"]
PLANT = ["--steps", "512", "--num-tasks", "2", "--n-steps", "16", "--batch-size", "128"]
PLANT += ["--token-size", "16", "--hidden-size", "16", "--checkpoint-every", "64"]
SAC = ["switching-plant", "--algorithm", "sac", "--steps", "2048", "--num-tasks", "2"]
SAC += ["--token-size", "16", "--checkpoint-every", "64", "--gradient-steps", "2"]
NETWORKS = ["kill_worlds:Digits", *DIGITS[1:], "--batch-size", "32", "--scenario-type", "task"]
NETWORKS += ["--tasks", "0-1,2-3,4-5"]
TASKS = ["--tasks", "0-1,2-3,4-5"]
GRADUAL = ["--gradual", "0.5"]
KEPT = ["--strategies", "ewc,replay"]

IN_STREAMS = [
    *("none", "agem", "der", "derpp", "er_ace", "ewc", "ewc_kfac", "gdumb"),
    *("gem", "icarl", "l2", "l2_init", "la_maml", "lwf", "mas", "mir", "replay", "rwalk"),
    *("shrink_and_perturb", "si"),
]
BY_TASK = ["hat", "lora", "packnet"]

SETTINGS: dict[str, list[str]] = {
    **{f"stream, {name}": [*DIGITS, *TASKS, "--strategies", name] for name in IN_STREAMS},
    **{
        f"stream, {name}": [*NETWORKS, "--architecture", architecture, "--strategies", name]
        for name, architecture in (
            ("continual_backprop", "mlp"),
            ("progressive", "progressive"),
            ("growth", "growing"),
        )
    },
    **{
        f"stream, {name}": [*DIGITS, *TASKS, "--scenario-type", "task", "--strategies", name]
        for name in BY_TASK
    },
    "stream, joint": [*DIGITS, "--strategies", "joint"],
    "stream, reptile": [*DIGITS, *TASKS, "--strategies", "reptile", "--reptile.tasks", "[3,4]"],
    "blurred stream": [*DIGITS, *TASKS, *KEPT, "--preset", "hard"],
    "gradual stream": ["split-digits", "--epochs", "1", *DIGITS[3:], *TASKS, *KEPT, *GRADUAL],
    "bfloat16": [*DIGITS, *TASKS, *KEPT, "--training.precision", "bfloat16"],
    "accumulation": [*DIGITS, *TASKS, *KEPT, "--training.accumulate", "5"],
    "threads that prepare batches": [*DIGITS, *TASKS, *KEPT, "--workers", "2"],
    "cosine rate, augmentation": [
        *DIGITS, *TASKS, *KEPT, "--training.rate", "cosine", "--training.augment", "crop_flip",
    ],
    "PPO": ["switching-plant", *PLANT, *KEPT, "--recurrent", "false"],
    "PPO, clear": ["switching-plant", *PLANT, "--strategies", "clear", "--recurrent", "false"],
    "PPO, fresh rollouts": [
        *("switching-plant", *PLANT, *KEPT, "--recurrent", "false", "--fresh-rollouts", "16"),
    ],
    "RecurrentPPO": ["switching-plant", *PLANT, *KEPT],
    "RecurrentPPO, si": ["switching-plant", *PLANT, "--strategies", "si"],
    "SAC": [*SAC, *KEPT],
    "SAC, packnet": [*SAC, "--strategies", "packnet"],
    "DQN": ["kill_worlds:DQNPlant", *PLANT, *KEPT],
    "DQN, mas": ["kill_worlds:DQNPlant", *PLANT, "--strategies", "mas"],
    "PPO, a world that can't give its state": [
        *("kill_worlds:ClosedPlant", *PLANT, *KEPT, "--recurrent", "false"),
        *("--reset-every", "1024"),
    ],
}  # fmt: skip


def start(words: list[str]) -> int:
    """Run `everloop *words` in a new process and return its number.

    The process is forked from this one, which has trained nothing, so it starts at once.
    """
    process = os.fork()
    if process:
        return process
    status = 1
    with contextlib.suppress(BaseException):
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = everloop(words)
        if status:
            print(f"everloop {' '.join(words)}: {errors.getvalue()}", file=sys.__stderr__)
    os._exit(status)


def finish(words: list[str]) -> None:
    """Run `everloop *words` in a new process to its end."""
    _, status = os.waitpid(start(words), 0)
    if status:
        raise RuntimeError(f"everloop {' '.join(words)} failed")


def kill(words: list[str], out: Path, seconds: float) -> None:
    """Run `everloop *words` in a new process, and kill it at a random moment.

    Args:
        words: The command.
        out: Folder of the run. It is killed after it has a checkpoint.
        seconds: Seconds that the whole run takes.
    """
    process, began = start(words), time.monotonic()
    while not checkpoints(out / "checkpoints") and time.monotonic() - began < seconds:
        time.sleep(0.005)
    left = seconds - (time.monotonic() - began)
    time.sleep(random.uniform(0, max(left, 0.2)))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def go_on(words: list[str], out: Path) -> list[str]:
    """Return the words that go on with the run in `out`, or start it over."""
    if checkpoints(out / "checkpoints"):
        return ["resume", str(out), "--quiet"]
    return [*words, "--overwrite"]


def bits(value: Any) -> Any:
    """Return a state as nested lists that are equal only if they are equal to the bit."""
    if isinstance(value, Mapping):
        return [[str(key), bits(part)] for key, part in value.items()]
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    if isinstance(value, torch.Tensor):
        value = value.contiguous().reshape(-1).view(torch.uint8).numpy()
    return value.tobytes() if isinstance(value, np.ndarray | np.generic) else repr(value)


def outcome(out: Path) -> dict[str, Any]:
    """Return all that a run leaves, but for its time."""
    result = json.loads((out / "result.json").read_text())
    del result["wall_seconds"]
    state = Checkpoint.open(checkpoints(out / "checkpoints")[-1]).state()
    events = EventAccumulator(str(out), {"scalars": 0}).Reload()
    curves = {
        tag: [point for point, _ in groupby((p.step, p.value) for p in events.Scalars(tag))]
        for tag in events.Tags()["scalars"]
        if not tag.startswith("time/")
    }
    return {
        "result": result,
        "weights": (out / "weights.safetensors").read_bytes(),
        "state": bits([state["learner"], state["generators"], state["phase"]]),
        "curves": curves,
    }


def trial(words: list[str], whole: dict[str, Any], seconds: float, out: Path) -> tuple[str, str]:
    """Kill a run twice, let it end, and return where it went on and what differs."""
    shutil.rmtree(out, ignore_errors=True)
    words = [*words, "--out", str(out)]
    places = []
    for attempt in range(2):
        command = words if attempt == 0 else go_on(words, out)
        kill(command, out, seconds)
        found = checkpoints(out / "checkpoints")
        places.append(found[-1].name.removeprefix("step-") if found else "the start")
    if not complete(out):
        finish(go_on(words, out))
    elif not (out / "weights.safetensors").exists():
        finish(["resume", str(out), "--quiet"])
    here = outcome(out)
    return " and ".join(places), ", ".join(key for key in whole if here[key] != whole[key])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=1, help="Trials for each setting.")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    failed = 0
    print("| setting | seconds | went on from step | differs |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.settings:
            words = ["run", *SETTINGS[name], "--quiet"]
            began = time.monotonic()
            finish([*words, "--out", f"{folder}/whole", "--overwrite"])
            seconds = time.monotonic() - began
            whole = outcome(Path(folder, "whole"))
            for _ in range(args.points):
                places, differs = trial(words, whole, seconds, Path(folder, "killed"))
                failed += bool(differs)
                print(f"| {name} | {seconds:.1f} | {places} | {differs or 'nothing'} |", flush=True)
    print(f"\n{failed} differences")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
