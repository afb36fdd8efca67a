"""Settings that cannot be are refused by name and value."""

from __future__ import annotations

from typing import Any

import pytest
from loop_helpers import (
    keyword_grid,
)

from everloop.loop import (
    CLEAR,
    DER,
    ERACE,
    MIR,
    DERPlusPlus,
    GDumb,
    ICaRL,
    Replay,
    Strategy,
)
from everloop.loop.strategies import EWC, L2, MAS, SI, KroneckerEWC, L2Init, RWalk

STRENGTHS: Any = [-0.5, float("nan"), float("inf")]
MEMORY: dict[str, Any] = {"capacity": [0, -3], "batch_size": [0, -2]}
REHEARSAL: dict[str, Any] = MEMORY | {"strength": STRENGTHS, "memory": ["all", ""]}
BAD: dict[type[Strategy], dict[str, Any]] = {
    L2: {"strength": STRENGTHS},
    L2Init: {"strength": STRENGTHS},
    EWC: {"strength": STRENGTHS, "examples": [0, -3]},
    KroneckerEWC: {"strength": STRENGTHS, "examples": [0, -3]},
    SI: {"strength": STRENGTHS, "damping": [0.0, -1.0, float("nan")]},
    MAS: {"strength": STRENGTHS, "examples": [0, -3]},
    RWalk: {"strength": STRENGTHS, "interval": [0, -2], "alpha": [-0.1, 1.5, float("nan")]},
    Replay: REHEARSAL,
    DER: REHEARSAL,
    DERPlusPlus: REHEARSAL | {"label_strength": STRENGTHS},
    ERACE: REHEARSAL,
    MIR: REHEARSAL | {"candidates": [63, 0, -1], "lookahead": STRENGTHS},
    CLEAR: REHEARSAL | {"value_strength": STRENGTHS},
    GDumb: MEMORY
    | {
        "memory": ["all", ""],
        "epochs": [-1],
        "learning_rate": [0.0, -0.1, float("nan"), float("inf")],
    },
    ICaRL: MEMORY | {"strength": [*STRENGTHS, 1.1]},
}
CASES = [(strategy, bad) for strategy, values in BAD.items() for bad in keyword_grid(**values)]


@pytest.mark.parametrize(("strategy", "bad"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_settings_that_cannot_be_are_refused_by_name_and_value(
    strategy: Any, bad: dict[str, Any]
) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}, allowed: "):
        strategy(**bad)
