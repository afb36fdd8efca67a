"""Mean returns of random actions: `python benchmarks/random_returns.py WORLD`.

Prints the mean return over 1,000 episodes of each task of a registered world, with its standard
error. The references of ready-made families come from it.
"""

import argparse

import gymnasium as gym
import numpy as np

import everloop.envs  # noqa: F401 - registers the worlds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("world")
    parser.add_argument("--episodes", type=int, default=1000)
    args = parser.parse_args()
    env = gym.make(args.world, disable_env_checker=True)
    for task in env.get_wrapper_attr("tasks"):
        env.action_space.seed(0)
        env.reset(seed=0, options={"task": task.id})
        returns = []
        for _ in range(args.episodes):
            total, ended = 0.0, False
            while not ended:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total += float(reward)
                ended = terminated or truncated
            returns.append(total)
            env.reset()
        error = np.std(returns) / np.sqrt(len(returns))
        print(f"{task.name}: {np.mean(returns):.1f} +- {error:.1f}")


if __name__ == "__main__":
    main()
