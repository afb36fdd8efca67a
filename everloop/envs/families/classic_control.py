"""CartPole, Acrobot and MountainCar with physics or observations that change by task.

CartPole's best return is its time limit, 500. The random returns are means over 1,000 episodes, by
`python benchmarks/random_returns.py WORLD`, 2026-11-27 (of the drifting task mostly after its
drift). The best returns of the other two in changed physics are not known, so they have no
references.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everloop.envs.families.family import Family

BEST = 500.0
"""CartPole's best return: its time limit."""


def _cart_pole(about: str, tasks: Mapping[str, tuple[float, Mapping[str, Any]]]) -> Family:
    """Return a family of CartPole.

    Args:
        about: What the tasks are.
        tasks: Name -> mean return of random actions, and what the task sets.
    """
    return Family(
        about,
        {
            "env": "CartPole-v1",
            "tasks": [{"name": name, **sets} for name, (_, sets) in tasks.items()],
            "references": [[random, BEST] for random, _ in tasks.values()],
            "task_cue": True,
        },
    )


CLASSIC_CONTROL: dict[str, Family] = {
    "everloop/CartPole-physics-v0": _cart_pole(
        "CartPole: earth, more gravity, a longer pole, a heavier cart, a weaker force.",
        {
            "earth": (22.3, {}),
            "heavy": (20.4, {"gravity": 20.0}),
            "long": (42.4, {"length": 1.5}),
            "massive": (37.1, {"masscart": 5.0}),
            "weak": (29.2, {"force_mag": 5.0}),
        },
    ),
    "everloop/CartPole-drift-v0": _cart_pole(
        "CartPole: earth, then gravity that grows threefold within the task.",
        {
            "earth": (22.3, {}),
            "drifting": (18.7, {"gravity": {"from": 9.8, "to": 30.0, "steps": 5000}}),
        },
    ),
    "everloop/CartPole-seen-v0": _cart_pole(
        "CartPole: observations as they are, mirrored, shifted, permuted, noisy.",
        {
            "plain": (22.3, {}),
            "mirrored": (22.3, {"observation": {"mirror": True}}),
            "shifted": (22.3, {"observation": {"shift": 1.0}}),
            "permuted": (22.3, {"observation": {"permute": 1}}),
            "noisy": (22.3, {"observation": {"noise": 0.1}}),
        },
    ),
    "everloop/Acrobot-physics-v0": Family(
        "Acrobot: as it is, a longer first link, a heavier second link.",
        {
            "env": "Acrobot-v1",
            "tasks": [
                {"name": "plain"},
                {"name": "long", "LINK_LENGTH_1": 1.3},
                {"name": "massive", "LINK_MASS_2": 1.5},
            ],
            "task_cue": True,
        },
    ),
    "everloop/MountainCar-physics-v0": Family(
        "MountainCar: as it is, more gravity, a stronger engine.",
        {
            "env": "MountainCar-v0",
            "tasks": [
                {"name": "plain"},
                {"name": "heavy", "gravity": 0.003},
                {"name": "strong", "force": 0.0015},
            ],
            "task_cue": True,
        },
    ),
}
"""Registered id -> family."""
