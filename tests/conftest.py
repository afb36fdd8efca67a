"""Settings of all tests: threads, hypothesis profile and the marker `fast`.

Tests use one thread: small networks gain nothing from more, and slow down if other processes run.
Property tests try the same examples each time, so that a test run is reproducible; `pytest
--hypothesis-profile=default` looks for new ones. Every test is marked fast unless it is marked slow
or its file is in `LONG_IN`.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

HERE = Path(__file__).parent
LONG_IN = {
    ".": "docs imports",
    "loop/callbacks": "tensorboard tensorboard_pages",
    "loop/importance": "per_example",
    "loop/learners": "attached",
    "loop/memory": "grouped",
    "loop/results": "figures",
    "agents": "text",
    "envs": "checkers stream_state",
    "envs/data": "images texts",
    "loop": "guard run run_callbacks run_state token_classification two_learners",
    "loop/sb3": "off_policy off_policy_strategies on_policy_strategies",
    "loop/strategies": "companions hat replay strategy_contract",
    "loop/strategies/parts": "per_task",
    "scenarios": "advise arguments check_strategy cli compare compare_command compare_output "
    "folder_troubles guards help leaks many_runs names pretrain progress reproduce run_folder "
    "scenarios settings streams texts",
}
LONG = {
    HERE / folder / f"test_{name}.py" for folder, names in LONG_IN.items() for name in names.split()
}
"""Files with long tests, which train or start processes; `pytest -m fast` leaves them out."""
assert all(path.is_file() for path in LONG), (
    f"no such file: {[path.name for path in LONG if not path.is_file()]}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, so that no process is left with a long test at the end."""
    items.sort(key=lambda item: (item.path.name != "test_docs.py", item.path not in LONG))
    for item in items:
        if item.path not in LONG and item.get_closest_marker("slow") is None:
            item.add_marker("fast")
