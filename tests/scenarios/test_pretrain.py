"""Convolutions that are pre-trained on another data set."""

from pathlib import Path
from typing import Any

import pytest

from everloop.loop import SupervisedLearner
from everloop.scenarios import Experiment, SplitCIFAR10
from everloop.scenarios.pretrain import pretrained_convolutions

pytestmark = pytest.mark.usefixtures("surroundings")


def test_pretrained_convolutions_are_frozen_and_cached(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: Any = {
        "architecture": "convnet",
        "width": 8,
        "pretrain": str(data / "cifar10"),
        "pretrain_epochs": 2,
        "batch_size": 8,
    }
    first = Experiment(SplitCIFAR10(**options), ["none"], seed=0)
    before = {name: value.clone() for name, value in first.learner.module.state_dict().items()}
    first.run()
    after = first.learner.module.state_dict()
    same = {name: bool((before[name] == after[name]).all()) for name in before}
    assert all(kept == name.startswith("backbone.convolutions") for name, kept in same.items())
    loaded = SplitCIFAR10(data=str(data / "cifar10")).examples()
    with pytest.raises(ValueError, match=r"^pretrain_epochs is 0; it must be 1 or more$"):
        pretrained_convolutions(loaded, 0)
    monkeypatch.setattr(SupervisedLearner, "learn", lambda *args: pytest.fail("trained again"))
    for name, value in pretrained_convolutions(loaded, 2).items():
        assert bool((value == after[f"backbone.convolutions.{name}"]).all())
