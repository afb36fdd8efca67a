"""A learner never sees the test split, later tasks, or labels and task IDs in an observation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import class_label, write_data_set

from everloop.envs import ByColumn, Examples, ImageStreamVectorEnv, SplitClasses, TaskSplit
from everloop.envs.data import load_text
from everloop.scenarios import ImageScenario
from everloop.scenarios.texts import TextScenario


def drawn(rows: int, seed: int, classes: int = 4) -> Examples:
    images = np.random.default_rng(seed).integers(0, 256, (rows, 8, 8, 1), np.uint8)
    return Examples(images, np.arange(rows) % classes, tuple("abcd"[:classes]))


def with_inputs(examples: Examples, rows: Any, inputs: Any) -> Examples:
    changed = np.array(examples.inputs)
    changed[rows] = inputs
    return Examples(
        changed, examples.labels, examples.classes, examples.columns, examples.vocabulary_size
    )


@dataclass
class Given(ImageScenario):
    """A scenario with the images of the test."""

    name = "given"
    summary = "images of a test"
    batch_size: int = 4
    width: int | None = 4
    source: Any = None

    def examples(self) -> tuple[Examples, Examples]:
        pair: tuple[Examples, Examples] = self.source
        return pair

    def task_split(self) -> TaskSplit:
        return SplitClasses(2)


def trained(scenario: Any, tasks: list[int], evaluated: bool = False) -> dict[str, torch.Tensor]:
    """Return the network's state, buffers included, after learning `tasks` one after another."""
    learner, _, test, _ = scenario.build(seed=0)
    for task in tasks:
        learner.learn([task], 24)
        if evaluated:
            with learner.evaluating():
                learner.rollout(test, [task], 2, seed=0)
    return {name: value.clone() for name, value in learner.module.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "reduced-resnet18", "nested"])
def test_test_images_change_no_bit_of_what_is_learned(architecture: Any) -> None:
    """Neither through statistics nor through evaluations during training."""
    train, one, other = drawn(40, 0), drawn(16, 1), with_inputs(drawn(16, 2), slice(0, 8), 255)
    plain = trained(Given(source=(train, one), architecture=architecture), [0, 1])
    assert equal(
        plain,
        trained(Given(source=(train, other), architecture=architecture), [0, 1], evaluated=True),
    )
    assert not equal(
        plain, trained(Given(source=(drawn(40, 3), one), architecture=architecture), [0, 1])
    )


@pytest.mark.parametrize("architecture", ["mlp", "convnet", "reduced-resnet18", "nested"])
def test_later_tasks_change_no_bit_of_earlier_learning(architecture: Any) -> None:
    train, test = drawn(40, 0), drawn(16, 1)
    later = with_inputs(train, train.labels >= 2, 255)
    first, changed = (
        Given(source=(data, test), architecture=architecture) for data in (train, later)
    )
    assert equal(trained(first, [0]), trained(changed, [0]))
    assert not equal(trained(first, [0, 1]), trained(changed, [0, 1]))


@dataclass
class GivenTexts(TextScenario):
    """A scenario with the texts of the test."""

    name = "given-texts"
    summary = "texts of a test"
    batch_size: int = 4
    size: int = 4

    def texts(self, tokenizer: Any) -> tuple[Examples, Examples]:
        assert self.data is not None
        return load_text(self.data, tokenizer=tokenizer, length=6, columns=["domain"])

    def task_split(self) -> TaskSplit:
        return ByColumn("domain")


def test_later_texts_and_test_texts_change_no_bit_of_earlier_learning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary fitted to all texts would fail here."""
    monkeypatch.setenv("EVERLOOP_CACHE", str(tmp_path / "cache"))
    domains = [["news", "social"][i // 12] for i in range(24)]
    for name, later in (("one", "word"), ("other", "altogether different aardvark")):
        text = [
            f"the {i % 5} is {'word' if domain == 'news' else later}"
            for i, domain in enumerate(domains)
        ]
        train = {"text": text, "label": [i % 2 for i in range(24)], "domain": domains}
        write_data_set(
            tmp_path / name,
            {"train": train, "test": train | {"text": [later] * 24}},
            {"label": class_label("no", "yes")},
        )
    one, other = (
        GivenTexts(data=str(tmp_path / name), scenario_type="domain") for name in ("one", "other")
    )
    assert equal(trained(one, [0]), trained(other, [0]))
    assert not equal(trained(one, [0, 1]), trained(other, [0, 1]))


@pytest.mark.parametrize("label_space", ["global", "within_task"])
def test_an_observation_is_the_example_and_knows_no_label(label_space: Any) -> None:
    """With other labels in each task, the same images come in the same order, and nothing else."""
    train, test = drawn(40, 0), drawn(16, 1)
    swapped = [Examples(part.inputs, part.labels ^ 1, part.classes) for part in (train, test)]
    for split in ("train", "test"):
        shown = []
        for data in ((train, test), tuple(swapped)):
            env: Any = ImageStreamVectorEnv(
                3, data, SplitClasses(2), split=split, label_space=label_space
            )
            obs, _ = env.reset(seed=0, options={"task": 1})
            assert list(obs) == ["image"]
            shown.append(
                [obs["image"], *[env.step(np.zeros(3, int))[0]["image"] for _ in range(12)]]
            )
        np.testing.assert_array_equal(*shown)


def test_an_image_looks_the_same_in_either_split_and_in_any_task() -> None:
    same = Examples(np.full((8, 8, 8, 1), 77, np.uint8), np.arange(8) % 4, tuple("abcd"))
    for split in ("train", "test"):
        for task in (0, 1):
            env: Any = ImageStreamVectorEnv(2, (same, same), SplitClasses(2), split=split)
            obs, _ = env.reset(seed=0, options={"task": task})
            assert {image.tobytes() for image in obs["image"]} == {same.inputs[0].tobytes()}
