"""The supervised learner: its updates, batches, rollouts, likelihood and errors."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from loop_helpers import ConstantLogits, FlatNet, agent, mlp, plant, same, stream, weights
from stub_helpers import Recorder
from torch import Tensor, nn

from everloop.envs import SyncTaskVectorEnv
from everloop.envs.data import digits
from everloop.loop import (
    Batch,
    NotFiniteError,
    SupervisedLearner,
    Training,
)


def agent_learner(**kwargs: object) -> SupervisedLearner:
    world = stream()
    torch.manual_seed(0)
    return SupervisedLearner(
        agent(world.single_observation_space, world.single_action_space, value_head=False),
        world,
        **kwargs,
    )  # type: ignore[arg-type]


def test_the_same_seed_gives_the_same_weights_bit_for_bit() -> None:
    a, b = agent_learner(), agent_learner()
    start = weights(a.module)
    for learner in (a, b):
        for task in (0, 1):
            learner.learn([task], 64)
    assert same(weights(a.module), weights(b.module))
    assert not same(weights(a.module), start)


def test_training_equals_a_plain_loop_of_adam_bit_for_bit() -> None:
    """Each batch gives one step on its cross-entropy."""
    learner, plain = agent_learner(training=Training(3e-3)), agent_learner()
    optimizer = torch.optim.Adam(plain.module.parameters(), lr=3e-3, fused=True)
    learner.learn([2], 80)
    obs, _ = plain.world.reset(options={"task": 2})
    for _ in range(10):
        logits = plain.module(
            {"image": torch.from_numpy(obs["image"])[None]},
            torch.zeros(8, 6),
            torch.ones(1, 8, dtype=torch.bool),
        )[0].prediction
        obs, _, _, _, info = plain.world.step(logits[0].argmax(-1).numpy())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits[0], torch.from_numpy(info["label"])).backward()
        optimizer.step()
    assert same(weights(learner.module), weights(plain.module))


def test_a_step_makes_one_forward_pass_for_guess_and_update() -> None:
    """The action is the most probable label of the forward pass that is trained on."""
    learner = agent_learner()
    guesses = []
    outputs = []
    step, forward = learner.world.step, learner.module.forward
    learner.world.step = lambda actions: (guesses.append(actions.copy()), step(actions))[1]  # type: ignore[method-assign, func-returns-value]

    def recording_forward(*args: object) -> tuple[object, Tensor]:
        output, state = forward(*args)
        outputs.append(output.prediction[0].detach().argmax(-1).numpy())
        return output, state

    learner.module.forward = recording_forward  # type: ignore[method-assign, assignment]
    learner.learn([0], 40)
    assert len(outputs) == len(guesses) == 5
    np.testing.assert_array_equal(np.stack(guesses), np.stack(outputs))


def labels_of_digits() -> dict[bytes, int]:
    """Return the label of each training image, by its bytes."""
    train, _ = digits()
    return {
        image.tobytes(): int(label) for image, label in zip(train.inputs, train.labels, strict=True)
    }


def test_each_batch_pairs_an_image_with_its_own_label_and_task() -> None:
    learner, seen = agent_learner(), Recorder()
    learner.attach([seen])
    learner.learn([1, 3], 80)
    truth = labels_of_digits()
    assert len(seen.observed) == 10
    for batch in seen.observed:
        assert (batch.length, len(batch)) == (1, 8)
        assert batch.obs["image"].dtype == torch.uint8
        assert bool(batch.start.all())
        assert batch.task is not None
        assert set(batch.task.tolist()) <= {1, 3}
        assert batch.target is not None
        for image, label, task in zip(
            batch.obs["image"][0], batch.target[0], batch.task, strict=True
        ):
            assert truth[image.numpy().tobytes()] == int(label)
            assert int(label) // 2 == int(task)


def test_labels_are_correct_at_the_end_of_an_episode() -> None:
    """Gymnasium's vector environments move the label to info["final_info"] if they reset."""
    lengths = (3, 4)
    world = SyncTaskVectorEnv(
        [lambda n=n: gym.make("everloop/ImageStream-v0", episode_length=n) for n in lengths]
    )  # type: ignore[misc]
    world.reset(seed=0)
    learner, seen = SupervisedLearner(mlp(), world), Recorder()
    learner.attach([seen])
    learner.learn([4], 24)  # a task without the label 0
    truth = labels_of_digits()
    for batch in seen.observed:
        assert batch.target is not None
        assert batch.target[0].tolist() == [
            truth[image.numpy().tobytes()] for image in batch.obs["image"][0]
        ]


@pytest.mark.parametrize(("steps", "updates"), [(1, 1), (8, 1), (9, 2), (40, 5)])
def test_a_learner_trains_for_at_least_the_requested_steps(steps: int, updates: int) -> None:
    learner = agent_learner()
    learner.begin([0], steps)
    assert [learner.advance() for _ in range(updates + 1)] == [*[8] * updates, 0]
    assert learner.steps == 8 * updates


def test_a_world_without_labels_is_refused() -> None:
    world = plant()
    world.reset(seed=0)
    learner = SupervisedLearner(
        agent(world.single_observation_space, world.single_action_space), world
    )
    with pytest.raises(ValueError, match='no "label"'):
        learner.learn([0], 8)


def test_a_nan_observation_is_refused_with_its_name_and_step() -> None:
    world = plant()
    world.reset(seed=0)
    learner = SupervisedLearner(
        agent(world.single_observation_space, world.single_action_space), world
    )
    learner.steps = 77
    reset = world.reset

    def broken(**kwargs: object) -> tuple[dict[str, np.ndarray], object]:
        obs, info = reset(**kwargs)
        return obs | {"sensor_1": obs["sensor_1"] * np.nan}, info

    world.reset = broken
    with pytest.raises(NotFiniteError, match="'sensor_1' holds nan at step 77"):
        learner.learn([0], 8)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_learning_rate_must_be_finite_and_above_0(rate: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate is {rate}; it must be finite and above 0"):
        Training(learning_rate=rate)


def test_the_loss_is_the_mean_negative_log_likelihood() -> None:
    """Computing it changes neither weights nor gradients."""
    learner = agent_learner()
    batch = learner.rollout(stream(), [0], 3, seed=0)
    before = weights(learner.module)
    loss = learner.loss(batch)
    assert batch.target is not None
    torch.testing.assert_close(
        loss, nn.functional.cross_entropy(learner.outputs(batch)[0], batch.target[0])
    )
    torch.testing.assert_close(loss, -learner.log_likelihood(batch).mean())
    assert same(weights(learner.module), before)
    assert all(p.grad is None for p in learner.module.parameters())
    assert torch.equal(learner.targets(batch), batch.target)


def test_training_does_not_change_a_frozen_copy() -> None:
    learner = agent_learner()
    frozen, before = learner.frozen_copy(), weights(learner.module)
    learner.learn([0], 40)
    assert same(list(frozen.parameters()), before)
    assert not same(weights(learner.module), before)
    assert not any(p.requires_grad for p in frozen.parameters())


def test_rollouts_sample_actions_without_global_generators() -> None:
    learner, world = agent_learner(), stream()
    torch_state = torch.get_rng_state()
    a, b, c = (learner.rollout(world, [1], 40, seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert a.action is not None
    assert b.action is not None
    assert c.action is not None
    assert torch.equal(a.action, b.action)
    assert not torch.equal(a.action, c.action)
    assert (a.length, len(a)) == (1, 320)
    assert a.task is not None
    assert set(a.task.tolist()) == {1}
    # the frequencies of the sampled labels agree with the probabilities
    p = torch.softmax(learner.outputs(a)[0].detach(), -1)
    error = (p * (1 - p)).sum(0).sqrt()
    assert bool(((torch.bincount(a.action[0], minlength=10) - p.sum(0)).abs() < 5 * error).all())


def test_a_likelihood_needs_labels_actions_or_a_generator() -> None:
    learner = SupervisedLearner(mlp(), stream())
    batch = Batch(
        {"image": torch.zeros(1, 2, 8, 8, 1, dtype=torch.uint8)}, torch.ones(1, 2, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="neither labels nor actions"):
        learner.log_likelihood(batch)
    assert learner.log_likelihood(batch, torch.Generator().manual_seed(0)).shape == (2,)


def test_guesses_do_not_depend_on_the_recurrent_state() -> None:
    """As in training, every image is processed from an empty state."""
    world = stream(40)
    torch.manual_seed(0)
    module = agent(
        world.single_observation_space, world.single_action_space, value_head=False, recurrent=True
    )
    learner, (obs, _) = SupervisedLearner(module, world), world.reset(seed=0)
    state = 100.0 * torch.randn(40, 6)
    alone = module(
        {"image": torch.from_numpy(obs["image"])[None]},
        torch.zeros(40, 6),
        torch.ones(1, 40, dtype=torch.bool),
    )[0].prediction
    after = module(
        {"image": torch.from_numpy(obs["image"])[None]}, state, torch.zeros(1, 40, dtype=torch.bool)
    )[0].prediction
    guesses, _ = learner.act(obs, state, np.zeros(40, np.bool_))
    assert not torch.equal(alone.argmax(-1), after.argmax(-1))
    np.testing.assert_array_equal(guesses, alone[0].argmax(-1).numpy())


def test_the_log_likelihood_of_a_sequence_is_summed_over_steps() -> None:
    logits = [float(i) for i in range(10)]
    learner = SupervisedLearner(FlatNet(ConstantLogits(logits)), stream())
    learner.sequence_length = 4
    batch = learner.rollout(stream(), [0], 8, seed=0)
    assert batch.target is not None
    expected = torch.log_softmax(torch.tensor(logits), -1)[batch.target].sum(0)
    torch.testing.assert_close(learner.log_likelihood(batch), expected)


def test_labels_of_any_integer_dtype_become_int64() -> None:
    class Int16Labels(type(stream())):  # type: ignore[misc]
        def step(self, actions: Any) -> Any:
            *rest, info = super().step(actions)
            return *rest, info | {"label": info["label"].astype("int16")}

    world = Int16Labels(8)
    world.reset(seed=0)
    target = SupervisedLearner(mlp(), world).rollout(world, [0], 2, 0).target
    assert target is not None
    assert target.dtype == torch.int64
