"""The reference returns of the world of beacons: `python benchmarks/beacons_reference.py`.

Prints the mean episode returns of a uniformly random agent and of the scripted expert, with their
standard errors, over `--episodes` episodes of the default world. Neither agent uses the senses, so
the tasks "deaf", "blind" and "noisy" have the returns of "red".
"""

import argparse
import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.envs.beacons import BeaconsVectorEnv
from everloop.envs.beacons_expert import act
from everloop.envs.beacons_tasks import Axis

COPIES = 1000


def returns(
    world: BeaconsVectorEnv,
    task: str,
    policy: Callable[[BeaconsVectorEnv], npt.NDArray[Any]],
    episodes: int,
) -> npt.NDArray[np.float64]:
    """Return the returns, (episodes,), rounded up to whole rounds of all copies."""
    world.reset(seed=0, options={"task": task})
    rounds = []
    for _ in range(-(-episodes // world.num_envs)):
        total = np.zeros(world.num_envs)
        for _ in range(world.horizon):
            total += world.step(policy(world))[1]
        rounds.append(total)
    return np.concatenate(rounds)


def worlds_and_tasks() -> Iterator[tuple[BeaconsVectorEnv, str]]:
    """Yield each task that differs in more than the senses, and a world that has it."""
    axes: tuple[tuple[Axis, int], ...] = (("reward", 0), ("dynamics", 1))  # both have "red"
    for axis, skip in axes:
        world = BeaconsVectorEnv(COPIES, axis=axis, vision=False, hearing=False)
        for task in world.tasks[skip:]:
            yield world, task.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=20_000)
    episodes = parser.parse_args().episodes
    rng = np.random.default_rng(1)
    for world, task in worlds_and_tasks():
        means = []
        for policy in (lambda w: rng.uniform(-1.0, 1.0, (w.num_envs, 2)), act):
            found = returns(world, task, policy, episodes)
            means += [found.mean(), found.std() / np.sqrt(len(found))]
        print(
            f'    "{task}": ({means[0]:.3f}, {means[2]:.3f}),'
            f"  # standard errors {means[1]:.3f} and {means[3]:.3f}"
        )


if __name__ == "__main__":
    main()
