"""Reset the state of an optimizer when the tasks change."""

from __future__ import annotations

import torch

from everloop.loop.learners.nested import NestedOptimizer


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Forget the optimizer's state, such as Adam's moments. Its settings stay as they are."""
    optimizer.state.clear()
    if isinstance(optimizer, NestedOptimizer):
        optimizer.restart()


def check_state(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a note if the optimizer has no state that could be reset."""
    plain = isinstance(optimizer, torch.optim.SGD) and not any(
        group["momentum"] for group in optimizer.param_groups
    )
    return ["reset_optimizer does nothing: SGD without momentum has no state"] if plain else []
