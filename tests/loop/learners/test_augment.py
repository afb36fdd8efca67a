"""Augmentation changes the images of training, but not those stored or evaluated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FlatNet, mlp, stream
from stub_helpers import Recorder
from torch import Tensor, nn

from everloop.envs import Examples, TextStreamVectorEnv
from everloop.loop import (
    AGEM,
    DER,
    GEM,
    Batch,
    LwF,
    Replay,
    SupervisedLearner,
    Training,
)
from everloop.loop.learners.augment import PADDING, crop_flip

VIEWS = 2 * (2 * PADDING + 1) ** 2


def views(image: Tensor) -> Tensor:
    """All possible augmentations of an image (H, W, C), as (VIEWS, H, W, C)."""
    height, width, channels = image.shape
    padded = torch.zeros(height + 2 * PADDING, width + 2 * PADDING, channels, dtype=image.dtype)
    padded[PADDING : PADDING + height, PADDING : PADDING + width] = image
    moves = [(i, j) for i in range(2 * PADDING + 1) for j in range(2 * PADDING + 1)]
    crops = torch.stack([padded[i : i + height, j : j + width] for i, j in moves])
    return torch.cat([crops, crops.flip(2)])


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=20)
def test_augmented_images_are_shifted_or_mirrored_originals(
    height: int, width: int, channels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    images = torch.randint(1, 256, (2, 3, height, width, channels), dtype=torch.uint8)
    augmented = crop_flip(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == torch.uint8
    for image, view in zip(images.flatten(0, 1), augmented.flatten(0, 1), strict=True):
        assert (views(image) == view).flatten(1).all(1).any()


def test_all_shifts_and_mirrorings_are_equally_likely() -> None:
    """A chi-square test at a level of about 1e-4.

    The mean of the statistic is VIEWS - 1, and its variance is twice that.
    """
    torch.manual_seed(0)
    image = torch.randint(1, 256, (9, 9, 1), dtype=torch.uint8)
    found = {bytes(view.flatten().tolist()): i for i, view in enumerate(views(image))}
    assert len(found) == VIEWS
    draws = 100 * VIEWS
    counts = Counter(
        found[bytes(view.flatten().tolist())] for view in crop_flip(image.expand(draws, -1, -1, -1))
    )
    chi_square = sum((counts[i] - 100) ** 2 / 100 for i in range(VIEWS))
    assert chi_square < VIEWS - 1 + 4 * (2 * (VIEWS - 1)) ** 0.5


class RecordingNet(FlatNet):
    """A network that records the images it gets."""

    def __init__(self) -> None:
        super().__init__(mlp().layers)
        self.images: list[Tensor] = []

    def forward(self, obs: Any, state: Tensor, start: Tensor) -> Any:
        self.images.append(obs["image"])
        return super().forward(obs, state, start)


def unchanged(batch: Batch, images: set[bytes]) -> list[bool]:
    """True for each example of the batch that is one of `images`."""
    return [bytes(image.flatten().tolist()) in images for image in batch.obs["image"][0]]


def test_strategies_observe_originals_of_augmented_images() -> None:
    learner = SupervisedLearner(mlp(), stream(), Training(augment="crop_flip", updates_per_batch=2))
    recorder = Recorder()
    learner.attach([recorder])
    learner.learn([0], 32)
    plain = SupervisedLearner(mlp(), stream(), Training())
    plain_recorder = Recorder()
    plain.attach([plain_recorder])
    plain.learn([0], 32)
    for observed, original in zip(recorder.observed, plain_recorder.observed, strict=True):
        assert torch.equal(observed.obs["image"], original.obs["image"])
    for i, batch in enumerate(recorder.updates):
        for image, view in zip(
            recorder.observed[i // 2].obs["image"][0], batch.obs["image"][0], strict=True
        ):
            assert (views(image) == view).flatten(1).all(1).any()
        assert not torch.equal(batch.obs["image"], recorder.observed[i // 2].obs["image"])
    assert not torch.equal(recorder.updates[0].obs["image"], recorder.updates[1].obs["image"])


REHEARSING: dict[str, Callable[[], Any]] = {
    "replay": lambda: Replay(capacity=16, batch_size=16, current=True),
    "der": lambda: DER(capacity=16, batch_size=16),
    "agem": lambda: AGEM(capacity=16, batch_size=16),
    "gem": lambda: GEM(capacity=16, batch_size=16),
}


@pytest.mark.parametrize("name", REHEARSING)
def test_memories_store_originals_and_augment_each_draw(name: str) -> None:
    learner = SupervisedLearner(mlp(), stream(), Training(augment="crop_flip"))
    strategy = REHEARSING[name]()
    recorder = Recorder()
    learner.attach([strategy, recorder])
    learner.learn([0], 64)
    original = {
        bytes(image.flatten().tolist())
        for batch in recorder.observed
        for image in batch.obs["image"][0]
    }
    rows = torch.arange(16).numpy()
    assert all(unchanged(strategy.read(rows, learner), original))
    drawn = [strategy.draw(learner) for _ in range(2)]
    assert sum(unchanged(drawn[0], original)) < 8
    assert not torch.equal(drawn[0].obs["image"], drawn[1].obs["image"])


def test_distillation_gives_both_networks_the_same_image() -> None:
    module = RecordingNet()
    learner, lwf = SupervisedLearner(module, stream(), Training(augment="crop_flip")), LwF()
    learner.attach([lwf])
    learner.learn([0], 8)
    lwf.end_task(learner.world.tasks[0], [learner.rollout(stream(), [0], 8, 0)], learner)
    assert lwf.teacher.module is not None
    lwf.teacher.module.images = module.images = []  # type: ignore[assignment]
    learner.learn([1], 8)
    fresh, old = module.images
    assert torch.equal(fresh, old)


def test_evaluation_uses_the_original_images() -> None:
    module = RecordingNet()
    learner = SupervisedLearner(module, stream(), Training(augment="crop_flip"))
    obs, _ = learner.world.reset(seed=0)
    learner.act(obs, torch.zeros(8, 1), torch.ones(8, dtype=torch.bool).numpy())
    assert torch.equal(module.images[-1][0], torch.from_numpy(obs["image"]))


def test_augmentation_without_images_only_adds_a_note() -> None:
    tokens = torch.arange(40, dtype=torch.int32).reshape(20, 2).numpy()
    examples = Examples(tokens, torch.arange(20).numpy() % 4, ("a", "b", "c", "d"))
    world = TextStreamVectorEnv(4, data=(examples, examples))
    world.reset(seed=0)
    learner = SupervisedLearner(
        FlatNet(nn.Linear(2, 4), "tokens").double(), world, Training(augment="crop_flip")
    )
    assert learner.notes == ["augment crop_flip does nothing: the world shows no images"]
    learner.learn([0], 8)
    assert not SupervisedLearner(mlp(), stream(), Training(augment="crop_flip")).notes
