"""Settings outside their range are refused."""

from __future__ import annotations

from typing import Any

import pytest
from loop_helpers import control_learner, keyword_grid, off_policy_learner

from everloop.loop import CLEAR, PRETRAINING, STRATEGIES, DERPlusPlus, Growth, LaMAML, LwF

NAN, INF = float("nan"), float("inf")
STRENGTH: Any = {"strength": [-0.5, NAN, INF]}
SHARE: Any = {"strength": [-0.1, 1.1, NAN]}
EXAMPLES: Any = {"examples": [0, -3]}
MEMORY: Any = {"capacity": [0, -3], "batch_size": [0, -2], "memory": ["all", ""]}
META: Any = {"inner_lr": [-1.0], "outer_lr": [-1.0], "adaptation_steps": [0], "iterations": [-1]}
BAD: dict[str, dict[str, Any]] = {
    "l2": STRENGTH,
    "l2_init": STRENGTH,
    "ewc": STRENGTH
    | EXAMPLES
    | {"anchors": ["both"], "fisher": ["precise"], "decay": [-0.1, 1.1, NAN]},
    "ewc_kfac": STRENGTH | EXAMPLES,
    "si": STRENGTH | {"damping": [0.0, -1.0, NAN]},
    "mas": STRENGTH | EXAMPLES,
    "rwalk": STRENGTH | {"interval": [0, -2], "alpha": [-0.1, 1.5, NAN]},
    "lwf": STRENGTH | {"temperature": [0.0, -1.0, NAN, INF], "outputs": ["new"]},
    "replay": MEMORY | STRENGTH,
    "der": MEMORY | STRENGTH,
    "derpp": MEMORY | STRENGTH | {"label_strength": [-0.5, NAN, INF]},
    "er_ace": MEMORY | STRENGTH,
    "mir": MEMORY | STRENGTH | {"candidates": [63, 0, -1], "lookahead": [-0.5, NAN, INF]},
    "clear": MEMORY | STRENGTH | {"value_strength": [-0.5, NAN, INF]},
    "gdumb": MEMORY | {"epochs": [-1], "learning_rate": [0.0, -0.1, NAN, INF]},
    "icarl": SHARE | {"capacity": [0, -3], "batch_size": [0, -2]},
    "agem": MEMORY | STRENGTH,
    "gem": MEMORY | STRENGTH | {"margin": [-0.1, NAN, INF]},
    "packnet": {"share": [-0.1, 1.1], "retrain_steps": [-1], "batch_size": [0]},
    "hat": {"s_max": [0.5], "sparsity": [-0.1], "rate": [0.0], "period": [0]},
    "lora": {"rank": [-1], "alpha": [0.0, -2.0], "adapters": ["many"]},
    "growth": {"units": [-1], "threshold": [-0.5], "patience": [0], "limit": [-2]},
    "reptile": META,
    "maml": META,
    "la_maml": MEMORY | SHARE | {"alpha": [-1.0], "alpha_lr": [-1.0], "parts": [0]},
    "continual_backprop": {
        "replacement_rate": [-0.1, 1.5],
        "maturity": [-1],
        "decay": [-0.1, 1.0, 1.1],
        "interval": [0],
    },
    "shrink_and_perturb": {"shrink": [-0.1, 1.1], "noise": [-1.0]},
}
CASES = [(name, bad) for name, values in BAD.items() for bad in keyword_grid(**values)]


def test_every_strategy_with_settings_to_check_is_listed() -> None:
    assert {*STRATEGIES, *PRETRAINING} - set(BAD) == {"progressive"}


@pytest.mark.parametrize(("name", "bad"), CASES, ids=str)
def test_a_setting_outside_its_range_is_refused(name: str, bad: dict[str, Any]) -> None:
    ((setting, value),) = bad.items()
    with pytest.raises(ValueError, match=f"^{setting} is {value!r}[;,] "):
        {**STRATEGIES, **PRETRAINING}[name](**bad)


def test_a_setting_that_would_do_nothing_is_refused_before_training() -> None:
    """A value head under SAC, a temperature of a Gaussian policy, rates that stay at 0."""
    message = r"^value_strength is 0.5, but the network has no value head; leave it out$"
    with pytest.raises(ValueError, match=message):
        off_policy_learner(sac=True).attach([CLEAR(value_strength=0.5)])
    off_policy_learner(sac=True).attach([CLEAR()])
    control_learner().attach([CLEAR(value_strength=0.5)])
    with pytest.raises(ValueError, match=r"^temperature is 3.0, but only classes and discrete "):
        control_learner().attach([LwF(temperature=3.0)])
    off_policy_learner(sac=False).attach([LwF(temperature=3.0)])
    with pytest.raises(ValueError, match=r"^outputs is 'all', but without classes all outputs"):
        control_learner().attach([LwF(outputs="all")])
    with pytest.raises(ValueError, match=r"^alpha and alpha_lr are 0, so nothing would be learned"):
        LaMAML(alpha=0.0, alpha_lr=0.0)


def test_a_strategy_is_active_if_one_of_its_weights_is() -> None:
    assert DERPlusPlus(strength=0.0, label_strength=1.0).active
    assert not DERPlusPlus(strength=0.0, label_strength=0.0).active
    assert CLEAR(strength=0.0, value_strength=1.0).active
    assert not CLEAR(strength=0.0).active
    assert not CLEAR(strength=0.0, value_strength=0.0).active
    assert not Growth(limit=0).active
