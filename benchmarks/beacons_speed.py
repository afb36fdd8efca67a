"""Speed of the world of beacons on one thread: `python benchmarks/beacons_speed.py`.

Prints the steps per CPU second of 256 copies under random actions, with both senses and without.
Wanted: 200,000 with, 2 million without. The best of five rounds counts.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import time
from typing import Any

import everloop
from everloop.envs import make_vec

COPIES, ROUNDS = 256, 5


def steps_per_second(world: Any, steps: int) -> float:
    """Return the steps per CPU second over `steps` vector steps, summed over all copies."""
    world.reset(seed=0)
    world.action_space.seed(0)
    actions = [world.action_space.sample() for _ in range(16)]
    began = time.process_time()
    for step in range(steps):
        world.step(actions[step % 16])
    return COPIES * steps / (time.process_time() - began)


def main() -> None:
    print(f"everloop/Beacons-v0 of everloop {everloop.__version__}, {COPIES} copies, one thread")
    for name, vision, hearing, steps in (
        ("vision and hearing", True, True, 500),
        ("hearing only", False, True, 2000),
        ("neither", False, False, 4000),
    ):
        world = make_vec("everloop/Beacons-v0", COPIES, vision=vision, hearing=hearing)
        best = max(steps_per_second(world, steps) for _ in range(ROUNDS))
        print(f"  {name:20} {best:12,.0f} steps per CPU second")


if __name__ == "__main__":
    main()
