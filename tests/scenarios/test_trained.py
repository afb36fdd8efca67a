"""A trained agent does outside of its run exactly what it did in the run's evaluations."""

from __future__ import annotations

import random
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml

import everloop
from everloop.loop import Result
from everloop.scenarios import DomainNER, Experiment, Features, SplitDigits, SwitchingPlant
from everloop.scenarios.cli import main
from everloop.scenarios.trained import Trained

PLANT: dict[str, Any] = {"num_tasks": 2, "token_size": 8, "hidden_size": 8, "n_steps": 16}
RUNS: dict[str, tuple[Any, str]] = {
    "class": (SplitDigits(iterations=3), "none"),
    "icarl": (SplitDigits(iterations=3, tasks=["0-1", "2-3"]), "icarl"),
    "hat": (SplitDigits(iterations=3, scenario_type="task"), "hat"),
    "packnet": (SplitDigits(iterations=3, scenario_type="task"), "packnet"),
    "ppo": (SwitchingPlant(steps=512, recurrent=False, **PLANT), "none"),
    "memory": (SwitchingPlant(steps=512, **PLANT), "packnet"),
    "sac": (SwitchingPlant(steps=64, algorithm="sac", **PLANT), "none"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function from a name in `RUNS` to the folder of that run, made once."""
    place = tmp_path_factory.mktemp("runs")

    def folder(name: str) -> Path:
        if not (place / name).exists():
            scenario, strategies = RUNS[name]
            Experiment(scenario, strategies, seed=3, out=place / name).run()
        return place / name

    return folder


def last(folder: Path) -> tuple[list[float], list[float]]:
    """The scores and the returns of the run's last evaluation."""
    now = Result.load(folder).evaluations[-1]
    return now.scores, now.returns


def seen(scores: list[float]) -> list[int]:
    return [k for k, score in enumerate(scores) if not np.isnan(score)]


def examples(agent: Trained, task: int) -> tuple[dict[str, Any], Any]:
    """Every test example of a task once, by modality but for the cue, and their labels."""
    world: Any = agent.world(1)
    obs, _ = world.reset(seed=0, options={"task": task})
    shown, labels = [], []
    for _ in range(world.examples(task)):
        shown.append(obs)
        obs, _, _, _, info = world.step(np.zeros((1, *world.single_action_space.shape), np.int64))
        labels.append(info["label"])
    world.close()
    names = [name for name in obs if name != "cue"]
    batch = {name: np.concatenate([one[name] for one in shown]) for name in names}
    return batch, np.concatenate(labels)


@pytest.mark.parametrize("name", ["class", "icarl", "hat", "packnet"])
def test_the_labels_predicted_give_the_accuracies_of_the_run(runs: Any, name: str) -> None:
    agent = everloop.load(runs(name))
    scores, _ = last(runs(name))
    assert len(seen(scores)) >= 2
    for k in seen(scores):
        batch, labels = examples(agent, k)
        guesses = agent.predict(batch["image"], task=k)
        assert guesses.dtype == np.int64
        assert 100 * np.mean(guesses == labels) == pytest.approx(scores[k], abs=1e-9)


@pytest.mark.usefixtures("surroundings")
def test_texts_get_a_tag_for_every_token() -> None:
    scenario = DomainNER(iterations=4, batch_size=8)
    result = Experiment(scenario, seed=3, out="ner").run()
    agent = everloop.load("ner")
    world: Any = agent.world()
    for k, score in enumerate(result.evaluations[-1].scores):
        batch, labels = examples(agent, k)
        tags = agent.predict(batch["tokens"])
        assert tags.shape == labels.shape == (2, 96)
        assert 100 * world.metric(k).evaluate(labels, tags) == pytest.approx(score, abs=1e-9)
        one = agent.act({"tokens": batch["tokens"][1]})
        np.testing.assert_array_equal(one, tags[1])
    with pytest.raises(ValueError, match=r"^tokens holds -1; its numbers range from 0 to "):
        agent.predict(np.full_like(batch["tokens"], -1))


@pytest.mark.usefixtures("surroundings")
def test_vectors_are_labelled(data: Path) -> None:
    scenario = Features(data=str(data / "flowers.csv"), ignore=["site"], epochs=2)
    result = Experiment(scenario, seed=3, out="flowers").run()
    agent = everloop.load("flowers")
    for k in seen(result.evaluations[-1].scores):
        batch, labels = examples(agent, k)
        right = agent.predict(batch["features"].astype(np.float64)) == labels
        assert 100 * right.mean() == pytest.approx(result.evaluations[-1].scores[k], abs=1e-9)


@pytest.mark.parametrize("name", ["ppo", "memory", "sac"])
def test_an_episode_by_hand_has_the_return_of_the_run(runs: Any, name: str) -> None:
    agent = everloop.load(runs(name))
    _, returns = last(runs(name))
    for k in seen(returns):
        world: Any = agent.world(32)
        obs, _ = world.reset(seed=10_003, options={"task": k})
        agent.reset()
        total, ended = np.zeros(32), np.zeros(32, dtype=np.bool_)
        start = np.zeros(32, dtype=np.bool_)
        while not ended.all():
            obs, reward, terminated, truncated, _ = world.step(agent.act(obs, start, task=k))
            total += np.where(ended, 0, reward)
            start = terminated | truncated
            ended |= start
        assert total.mean() == pytest.approx(returns[k], rel=1e-6)


def test_one_observation_is_acted_on_as_in_a_batch(runs: Any) -> None:
    """One copy alone meets the same memory and chooses the same actions as in a batch of three."""
    agent, alone = everloop.load(runs("memory")), everloop.load(runs("memory"))
    world: Any = agent.world(3)
    agent.view(0)
    alone.view("plant-0")
    obs, _ = world.reset(seed=1, options={"task": 0})
    for _ in range(5):
        actions = agent.act(obs)
        own = alone.act({name: value[1] for name, value in obs.items()})
        assert own in world.single_action_space
        np.testing.assert_allclose(own, actions[1], rtol=1e-5, atol=1e-6)
        obs, *_ = world.step(actions)
    before = actions[1]
    alone.reset()
    again = alone.act({name: value[1] for name, value in obs.items()})
    assert not np.allclose(again, before)


def test_an_environment_of_gym_make_is_played(runs: Any) -> None:
    agent = everloop.load(runs("ppo"))
    env = everloop.envs.Feedback(
        gym.make("everloop/Plant-v0", num_tasks=2, task_cue=True, world_seed=3).unwrapped
    )
    obs, _ = env.reset(seed=0, options={"task": 1})
    for _ in range(3):
        action = agent.act(obs)
        assert action in env.action_space
        obs, *_ = env.step(action)


def test_start_empties_the_memory_of_the_episodes_that_begin(runs: Any) -> None:
    agent, fresh = everloop.load(runs("memory")), everloop.load(runs("memory"))
    world: Any = agent.world(2)
    obs, _ = world.reset(seed=1, options={"task": 1})
    agent.act(obs, task=1)
    begun = agent.act(obs, start=np.array([True, False]), task=1)
    first = fresh.act(obs, task=1)
    np.testing.assert_allclose(begun[0], first[0], rtol=1e-5, atol=1e-7)
    assert not np.allclose(begun[1], first[1], rtol=1e-5)
    three = {name: np.concatenate([value, value[:1]]) for name, value in obs.items()}
    with pytest.raises(ValueError, match=r"^the batch has 3 observations, but 2 in the episodes"):
        agent.act(three, task=1)
    assert agent.act(three, start=True, task=1).shape == (3, *begun.shape[1:])
    with pytest.raises(ValueError, match=r"^start is int64 of shape \(3,\); it must be one bool"):
        agent.act(three, start=np.zeros(3, np.int64), task=1)  # type: ignore[arg-type]


def test_the_view_of_a_task_is_chosen_for_a_call_for_a_block_or_from_now_on(runs: Any) -> None:
    agent = everloop.load(runs("packnet"))
    images = examples(agent, 0)[0]["image"]
    weights = {name: w.clone() for name, w in agent.module.state_dict().items()}
    by_task = [agent.predict(images, task=k) for k in range(5)]
    assert any((by_task[0] != other).any() for other in by_task)
    with agent.view("2-3") as same:
        assert same is agent
        np.testing.assert_array_equal(agent.predict(images), by_task[1])
        np.testing.assert_array_equal(agent.predict(images, task=0), by_task[0])
        inside = agent.module.state_dict()
        assert any(not torch.equal(inside[name], w) for name, w in weights.items())
    assert all(torch.equal(agent.module.state_dict()[name], w) for name, w in weights.items())
    with pytest.raises(ValueError, match=r"^the observation lacks cue, which shows the task; give"):
        agent.predict(images)
    mixed = {"image": images[:2], "cue": np.eye(5, dtype=np.float32)[[0, 1]]}
    with pytest.raises(ValueError, match=r"^packnet needs one task; give task=, one of 0-1, 2-3"):
        agent.predict(mixed)
    shown = {"image": images, "cue": np.eye(5, dtype=np.float32)[[3] * len(images)]}
    np.testing.assert_array_equal(agent.predict(shown), by_task[3])
    agent.view(agent.tasks[4])
    np.testing.assert_array_equal(agent.predict(images), by_task[4])


def test_a_missing_cue_is_filled_in(runs: Any) -> None:
    agent = everloop.load(runs("ppo"))
    world: Any = agent.world(2)
    obs, _ = world.reset(seed=1, options={"task": 1})
    without = {name: value for name, value in obs.items() if name != "cue"}
    np.testing.assert_array_equal(agent.act(without, task=1), agent.act(obs))
    with pytest.raises(ValueError, match=r"^the observation lacks cue, which shows the task; give"):
        agent.act(without)
    with pytest.raises(ValueError, match=r"^unknown task 'plant-7'"):
        agent.act(obs, task="plant-7")


def test_many_examples_are_labelled_like_one_and_in_any_form(runs: Any) -> None:
    agent = everloop.load(runs("class"))
    obs, _ = examples(agent, 0)
    images = np.concatenate([obs["image"]] * 8)
    assert len(images) > 256
    labels = agent.predict(images)
    np.testing.assert_array_equal(labels, np.tile(agent.predict(obs["image"]), 8))
    np.testing.assert_array_equal(agent.predict(images[..., 0]), labels)
    np.testing.assert_array_equal(agent.predict({"image": images}), labels)
    np.testing.assert_array_equal(agent.act({"image": images}), labels)
    assert agent.act({"image": images[0]}) == labels[0]
    assert agent.predict(images[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("class", lambda x: x / 255, r"^image is float64; it must be uint8$"),
        ("class", lambda x: x[0], r"^this is one example; give a batch, such as inputs\[None\]$"),
        ("class", lambda x: x[:, :4], r"^image has shape \(3, 4, 8, 1\); one observation has"),
        ("class", lambda x: {"picture": x}, r"^the observation lacks image; the world's modal"),
        ("class", lambda x: {"image": x, "y": x}, r"^the observation holds y; the world's modal"),
        ("ppo", lambda x: x, r"^the world has no labels to predict; choose actions with act$"),
    ],
)
def test_examples_in_another_format_are_refused(
    runs: Any, name: str, given: Any, said: str
) -> None:
    agent = everloop.load(runs(name))
    with pytest.raises(ValueError, match=said):
        agent.predict(given(np.zeros((3, 8, 8, 1), np.uint8)))


def test_observations_in_another_format_are_refused(runs: Any) -> None:
    agent = everloop.load(runs("ppo"))
    world: Any = agent.world(2)
    obs, _ = world.reset(seed=1)
    name = next(name for name in obs if name not in ("cue", "feedback"))
    with pytest.raises(ValueError, match=rf"^{name} holds nan; observations must be finite$"):
        agent.act({**obs, name: obs[name] * np.nan})
    with pytest.raises(ValueError, match=r"^the modalities have batches of different sizes: "):
        agent.act({**obs, name: obs[name][:1]})
    with pytest.raises(ValueError, match=r"^the observation is a ndarray; give a dict of the mod"):
        agent.act(obs[name])
    with pytest.raises(ValueError, match=r"^the batch is empty"):
        agent.act({key: value[:0] for key, value in obs.items()})


def test_loading_and_acting_leave_no_trace(runs: Any) -> None:
    folder, threads = runs("memory"), torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    agent = everloop.load(folder)
    obs, _ = agent.world(2).reset(seed=1)
    action = agent.act(obs, task=0)
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert str(states) == str(after)
    assert torch.equal(states[2], after[2])
    assert isinstance(action, np.ndarray)
    assert not agent.module.training
    assert all(p.grad is None for p in agent.module.parameters())


def test_an_agent_says_where_it_comes_from(runs: Any) -> None:
    folder = runs("class")
    agent = everloop.load(folder)
    name = agent.checkpoint.folder.name
    assert agent.result.to_dict() == Result.load(folder).to_dict()
    assert [task.name for task in agent.tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    assert everloop.load(str(folder), checkpoint=name).checkpoint.step == agent.checkpoint.step
    with pytest.raises(ValueError, match=rf"has no checkpoint 'step-1'; choose one of .*{name}$"):
        everloop.load(folder, checkpoint="step-1")
    with pytest.raises(ValueError, match=r"^nowhere holds no run: it has no config.yaml$"):
        everloop.load("nowhere")


@pytest.mark.parametrize("name", ["icarl", "hat", "packnet", "memory", "sac"])
def test_moving_to_a_device_changes_no_action(runs: Any, name: str) -> None:
    agent = everloop.load(runs(name))
    world: Any = agent.world(4)
    obs, _ = world.reset(seed=1, options={"task": 0})
    before = agent.act(obs, task=0)
    agent.reset()
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        assert agent.to(device) is agent
        assert agent.learner.device.type == device
        np.testing.assert_allclose(agent.act(obs, task=0), before, rtol=1e-4, atol=1e-5)
        agent.reset()
    with pytest.raises(ValueError, match=r"^device is 'nothing', which torch can't use"):
        agent.to("nothing")


def test_a_run_of_another_machine_is_loaded_on_a_device_of_this_one(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(runs("class"), folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["training"]["device"] = "mps" if sys.platform != "darwin" else "cuda"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"^training: device is|^device is"):
        everloop.load(folder)
    images = examples(everloop.load(runs("class")), 0)[0]["image"]
    agent = everloop.load(folder, device="cpu")
    np.testing.assert_array_equal(
        agent.predict(images), everloop.load(runs("class"), device="cpu").predict(images)
    )
    assert main(["evaluate", str(folder), "--device", "cpu", "--tasks", "0"]) == 0
    assert "0-1" in capsys.readouterr().out


def test_the_examples_of_the_page_run(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs("class"), "runs/digits")
    page = Path(__file__).parents[2] / "docs" / "trained.md"
    first = re.findall(r"```py\n(.*?)```", page.read_text(), flags=re.DOTALL)[0]
    images = examples(everloop.load(runs("class")), 0)[0]["image"]
    names: dict[str, Any] = {"images": images}
    exec(first, names)
    np.testing.assert_array_equal(names["labels"], everloop.load(runs("class")).predict(images))
