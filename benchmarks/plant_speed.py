"""Speed of the batched plant, beside a SyncVectorEnv: `python benchmarks/plant_speed.py`.

Compares the batched plant with Gymnasium's SyncVectorEnv of the single plant, in steps per second.
Wanted: at least 3 million steps/s with 1,024 copies, and 40 times SyncVectorEnv. Both take turns in
this process on one thread; the best of five rounds counts.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import time
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import everloop  # noqa: F401  registers the worlds

COPIES, ROUNDS = 1024, 5


def steps_per_second(world: Any, steps: int) -> float:
    """Return the steps per second over `steps` vector steps, summed over all copies."""
    world.reset(seed=0)
    actions = world.action_space.sample()
    began = time.perf_counter()
    for _ in range(steps):
        world.step(actions)
    return COPIES * steps / (time.perf_counter() - began)


def main() -> None:
    batched = gym.make_vec("everloop/Plant-v0", COPIES)
    single = SyncVectorEnv(
        [lambda: gym.make("everloop/Plant-v0")] * COPIES, autoreset_mode=AutoresetMode.SAME_STEP
    )
    rounds = [(steps_per_second(batched, 500), steps_per_second(single, 5)) for _ in range(ROUNDS)]
    fast, slow = (max(column) for column in zip(*rounds, strict=True))
    print(f"everloop/Plant-v0, {COPIES} copies, one thread, best of {ROUNDS}")
    print(f"  batched        {fast:12,.0f} steps/s")
    print(f"  SyncVectorEnv  {slow:12,.0f} steps/s")
    print(f"  ratio          {fast / slow:12.1f}")


if __name__ == "__main__":
    main()
