"""A run logged to TensorBoard, shared by several test files."""

from __future__ import annotations

import pytest
from tensorboard_helpers import Case, logged_run


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return logged_run(tmp_path_factory.mktemp("logged"))
