"""Advised strategies can be run; the others are refused, or known not to help."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from everloop.loop import STRATEGIES, Strategy, Traits
from everloop.scenarios import Experiment, SplitDigits, SwitchingPlant
from everloop.scenarios.advise import Advice, Situation, advise, next_command, remarks
from everloop.scenarios.cli import main, prepare


def fitting(**facts: Any) -> list[str]:
    return [a.name for a in advise(Situation(**facts)) if a.fits and not a.plasticity]


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({}, "er_ace"),
        ({"world": "control"}, "replay"),
        ({"task_id": "told", "examples": 0}, "packnet"),
    ],
)
def test_the_best_comes_first(facts: dict[str, Any], first: str) -> None:
    assert fitting(**facts)[0] == first


def test_every_strategy_is_listed_once_in_every_situation() -> None:
    for facts in (
        {},
        {"world": "control"},
        {"classes": "same"},
        {"world": "stream", "boundaries": "unknown", "examples": 0},
    ):
        assert sorted(a.name for a in advise(Situation(**facts))) == sorted(STRATEGIES)


@pytest.mark.parametrize("kind", ["control", "class", "other"])
def test_the_strategies_with_a_rank_are_in_one_order(kind: str) -> None:
    ranks = [s.traits.rank[kind] for s in STRATEGIES.values() if kind in s.traits.rank]
    assert sorted(ranks) == list(range(1, len(ranks) + 1))


def test_each_fact_rules_out_what_its_trait_says() -> None:
    for name in fitting(boundaries="unknown", classes="same"):
        traits = STRATEGIES[name].traits
        assert traits.without_boundaries or not traits.boundaries
    for name in fitting(examples=0, classes="same"):
        assert not STRATEGIES[name].traits.examples
    for name in fitting():
        assert STRATEGIES[name].traits.class_incremental
    assert fitting(examples=0) == []
    assert "packnet" not in fitting(classes="same")
    assert "lwf" not in fitting(world="stream", classes="same")
    assert {"clear"} & set(fitting(world="control")) == {"clear"}


def test_strategies_without_need_of_boundaries_are_not_said_to_need_them() -> None:
    reasons = {
        a.name: a.reason
        for a in advise(Situation(boundaries="unknown", classes="same"))
        if not a.fits
    }
    assert not {"reptile", "maml", "growth"} & set(reasons)


def test_online_adapters_are_offered_without_the_task_id() -> None:
    assert "lora" in fitting(classes="same")
    hidden, told = (
        {a.name: a.reason for a in advise(Situation(task_id=t, classes="same", tasks=9))}["lora"]
        for t in ("hidden", "told")
    )
    assert hidden == "400 kB of extra memory; the setting adapters online"
    assert told == "4 MB of extra memory"
    Experiment(SplitDigits(epochs=1), ["none"]).learner.attach(
        [STRATEGIES["lora"](adapters="online")]
    )


@pytest.mark.parametrize(
    "name", sorted(name for name, kind in STRATEGIES.items() if not kind.traits.network)
)
def test_strategies_that_fit_with_the_task_id_are_not_refused_there(name: str) -> None:
    learner = Experiment(SplitDigits(scenario_type="task", epochs=1), ["none"]).learner
    if {a.name: a.fits for a in advise(Situation(task_id="told"))}[name]:
        learner.attach([STRATEGIES[name]()])
    else:
        with pytest.raises(ValueError, match=r"needs|use "):
            learner.attach([STRATEGIES[name]()])


@pytest.mark.parametrize("fact", ["world", "boundaries", "task_id", "classes"])
def test_an_unknown_word_is_refused(fact: str) -> None:
    with pytest.raises(ValueError, match=rf"^{fact} is 'foo'; choose one of "):
        Situation(**{fact: "foo"})


def test_without_examples_class_incremental_learning_is_said_to_be_hopeless() -> None:
    now = Situation(examples=0)
    assert any("Without stored examples" in line for line in remarks(now, advise(now)))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_strategies_that_fit_a_kind_of_world_are_not_refused_there(name: str) -> None:
    traits = STRATEGIES[name].traits
    for works, scenario in (
        # the agent has hidden units between two linear layers where it has a head for each task
        (
            traits.streams,
            SplitDigits(
                scenario_type="task" if traits.task_id or name == "continual_backprop" else "class",
                epochs=1,
            ),
        ),
        (traits.control, SwitchingPlant(recurrent=False)),
    ):
        learner = Experiment(scenario, ["none"]).learner
        strategy = STRATEGIES[name]()
        if traits.network:
            with pytest.raises(ValueError, match=f"architecture {traits.network}"):
                learner.attach([strategy])
        elif works:
            learner.attach([strategy])
            assert learner.strategies == [strategy]
        else:
            with pytest.raises(ValueError, match=r"needs|use "):
                learner.attach([strategy])


def test_memory_is_counted_in_bytes_of_single_precision() -> None:
    reasons = {
        a.name: a.reason
        for a in advise(Situation(task_id="told", weights=1_000_000, tasks=3, examples=7))
    }
    assert reasons["ewc"] == "12 MB of extra memory"
    assert reasons["ewc_kfac"] == "36 MB of extra memory"
    assert reasons["replay"] == "up to 7 examples"


def test_your_own_strategy_is_ranked_by_its_traits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Strategy):
        """Mine."""

        traits = Traits(examples=True, class_incremental=True)

    monkeypatch.setitem(STRATEGIES, "own", Own)
    assert "own" in fitting()
    assert "own" not in fitting(examples=0)


def test_the_command_prints_fitting_strategies_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--task-id", "told", "--examples", "0"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.index("fit, best first")
        < printed.index("packnet")
        < printed.index("do not fit")
        < printed.index("replay")
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--examples", "-1"], "examples is -1; it must be 0 or more"),
        (["--tasks", "0"], "tasks is 0; it must be 1 or more"),
        (["--world", "sea"], "batch, stream, control"),
        (["--nothing", "3"], "nothing"),
    ],
)
def test_a_mistake_ends_in_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["advise", *words]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert line in printed[0]


FACTS = {
    "world": ["batch", "stream", "control"],
    "boundaries": ["known", "unknown"],
    "task_id": ["told", "hidden"],
    "classes": ["new", "same"],
    "examples": [0, 50],
}


@pytest.mark.parametrize(
    "facts",
    [dict(zip(FACTS, values, strict=True)) for values in itertools.product(*FACTS.values())],
    ids=str,
)
def test_the_command_to_run_next_can_be_run(
    facts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the best strategy and a scenario of that kind; there is none if nothing fits."""
    monkeypatch.chdir(tmp_path)
    situation = Situation(**facts)
    command = next_command(situation, advise(situation))
    best = [
        a.name
        for a in advise(situation)
        if a.fits and not a.plasticity and not STRATEGIES[a.name].traits.network
    ]
    assert (command is None) == (not best)
    if command is not None:
        words = command.split()
        assert words[:2] == ["everloop", "run"]
        assert best[0] in words
        assert callable(prepare(words[1:]))


def test_the_next_command_never_names_a_strategy_that_needs_another_network() -> None:
    now, first = Situation(task_id="told"), Advice("progressive", "", True, False)
    assert next_command(now, [first]) is None
    assert "--strategies replay " in (
        next_command(now, [first, Advice("replay", "", True, False)]) or ""
    )


def test_columns_have_headings_and_each_reason_stands_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["advise", "--boundaries", "unknown"]) == 0
    printed = capsys.readouterr().out
    assert ["strategy", "what", "it", "does", "what", "it", "needs"] in [
        line.split() for line in printed.splitlines()
    ]
    (line,) = [
        line for line in printed.splitlines() if line.startswith(" needs to know when a task ends ")
    ]
    against = [
        a.name
        for a in advise(Situation(boundaries="unknown"))
        if a.reason == "needs to know when a task ends"
    ]
    assert len(against) > 5
    assert line.endswith(", ".join(against))


def test_advice_ends_with_that_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--examples", "70"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "try it: everloop run split-digits --scenario-type class --strategies er_ace "
        "--er_ace.capacity 70"
    )
