"""A picture of the world of beacons: `python benchmarks/beacons_picture.py --out docs/beacons.png`.

On the left the world as it is rendered for people, while the expert seeks red beacons; on the right
what the agent sees and hears at that moment.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from everloop.envs.beacons import BeaconsVectorEnv
from everloop.envs.beacons_expert import act


def play(seed: int, steps: int) -> tuple[BeaconsVectorEnv, dict[str, Any]]:
    """Return a world in which the expert has played for some steps, and the last observation."""
    world = BeaconsVectorEnv(render_mode="rgb_array")
    obs, _ = world.reset(seed=seed)
    for _ in range(steps):
        obs, *_ = world.step(act(world))
    return world, obs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--steps", type=int, default=58)
    args = parser.parse_args()
    mpl.use("Agg")
    world, obs = play(args.seed, args.steps)
    pictures = world.render()
    assert pictures is not None
    figure = plt.figure(figsize=(7.6, 4.4), layout="constrained")
    axes = figure.subplot_mosaic(
        [["world", "vision"], ["world", "hearing"]], width_ratios=[2.1, 1], height_ratios=[1.3, 1]
    )
    axes["world"].imshow(pictures[0], interpolation="lanczos")
    axes["world"].set_title("everloop/Beacons-v0")
    axes["vision"].imshow(obs["vision"][0], interpolation="nearest")
    axes["vision"].set_title("vision, 16 x 16")
    for name in ("world", "vision"):
        axes[name].set_axis_off()
    left, right = obs["hearing"][0].reshape(2, -1)
    bands = np.arange(len(left))
    axes["hearing"].bar(bands - 0.2, left, 0.38, label="left ear", color="#f2b134")
    axes["hearing"].bar(bands + 0.2, right, 0.38, label="right ear", color="#4a6fa5")
    axes["hearing"].set_title("hearing, by band")
    axes["hearing"].set_xticks(bands)
    axes["hearing"].legend(frameon=False, fontsize=8)
    axes["hearing"].spines[["top", "right"]].set_visible(False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
