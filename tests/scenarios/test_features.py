"""The scenario of your own vectors, from a table to a result."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everloop.scenarios import Factory, Features
from everloop.scenarios.cli import main

RUN = ["--batch-size", "16", "--epochs", "20", "--eval-every", "100000", "--json"]


@pytest.fixture
def flowers(tmp_path: Path) -> str:
    """Return a table of four classes on two sites, far apart and on very different scales."""
    rng = np.random.default_rng(0)
    lines = ["length,width,kind,site"]
    for i in range(200):
        x, y = rng.normal([1000 * (i % 2), 0.001 * (i // 2 % 2)], [50, 5e-5])
        lines.append(f"{x},{y},{'abcd'[i % 4]},{'ns'[i // 4 % 2]}")
    path = tmp_path / "flowers.csv"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize(
    ("words", "tasks", "least"),
    [
        (["--ignore", "site", "--scenario-type", "task"], ["a-b", "c-d"], 95),
        (["--domain", "site", "--scenario-type", "domain"], ["n", "s"], 95),
        (
            ["--ignore", "site", "--architecture", "agent", "--scenario-type", "task"],
            ["a-b", "c-d"],
            95,
        ),
        (
            ["--ignore", "site", "--groups", "[[a],[b,c]]", "--strategies", "joint"],
            ["a", "b-c"],
            90,
        ),
    ],
)
def test_a_table_is_learned_in_one_command(
    words: list[str],
    tasks: list[str],
    least: float,
    flowers: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ["run", "features", "--data", flowers, "--label", "kind", *RUN]
    own = [*words, "--out", str(tmp_path / "out")]
    assert main([*base, *own, "--training.learning-rate", "0.01"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["tasks"] == tasks
    assert result["average_score"] >= least


@pytest.mark.parametrize(
    ("count", "sizes"), [(2, [1, 1]), (3, [1, 1, 1]), (4, [2, 2]), (9, [3, 3, 3]), (6, [2, 2, 2])]
)
def test_classes_are_divided_into_several_tasks(
    count: int, sizes: list[int], tmp_path: Path
) -> None:
    np.savez(tmp_path / "f.npz", x=np.zeros((5 * count, 2)), y=np.arange(5 * count) % count)
    scenario = Features(data=str(tmp_path / "f.npz"))
    world = scenario.make_world("train", 2, 0)
    assert [len(task.params["classes"]) for task in world.tasks] == sizes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": None}, "features needs data: give --data FILE.csv --label COLUMN, or --data"),
        ({"width": 0}, "width is 0; it must be 1 or more"),
        ({"layers": -1}, "layers is -1; it must be 0 or more"),
        ({"architecture": "cnn"}, "architecture is 'cnn'; choose mlp or agent"),
        (
            {"classes_per_task": 1, "scenario_type": "task"},
            "scenario_type is task, but there is a task of 1 class, in which nothing is to be told",
        ),
        (
            {"groups": [["a", "b"], ["c"]], "scenario_type": "domain"},
            "scenario_type is domain, but there is a task of 1 class",
        ),
        ({"domain": "place"}, "{data}: there is no column 'place'; choose from length"),
    ],
)
def test_settings_that_fit_nothing_are_refused(
    settings: dict[str, Any], said: str, flowers: str
) -> None:
    given = {"data": flowers, "label": "kind", "ignore": ["site"], **settings}
    with pytest.raises(ValueError, match=r".") as caught:
        Features(**given).build(0)
    assert str(caught.value).startswith(said.format(data=flowers))
    assert "\n" not in str(caught.value)


def test_a_network_of_ones_own_gets_the_vectors(flowers: str) -> None:
    scenario = Features(
        data=flowers, label="kind", ignore=["site"], network=Factory("torch.nn:Flatten")
    )
    learner, *_ = scenario.build(0)
    assert sum(p.numel() for p in learner.networks.parameters()) == (2 + 1) * 4


def test_settings_without_effect_are_named(flowers: str) -> None:
    def unused(**settings: Any) -> set[str]:
        return set(Features(data=flowers, **settings).without_effect())

    assert {"classes_per_task", "class_seed", "groups"} <= unused(domain="site")
    assert {"classes_per_task", "class_seed"} <= unused(groups=[["a"], ["b"]])
    assert "layers" in unused(architecture="agent")
    assert {"label", "ignore"} <= set(Features(data="f.npz").without_effect())
