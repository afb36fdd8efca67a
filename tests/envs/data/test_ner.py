"""Named entities: tags are aligned with words, and the F1 score counts whole entities."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import class_label, write_data_set
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everloop.envs import ByColumn, TextStreamVectorEnv
from everloop.envs.data import HashTokenizer, entity_f1, load_ner

TAGS = ("O", "B-person", "I-person", "B-place", "I-place")
WORDS = [["Ada", "met", "Bob", "in", "New", "York"], ["rain"], ["Bob", "Ross"]]
TAGGED = [[1, 0, 1, 0, 3, 4], [0], [1, 2]]


def small(
    root: Path, tags: Any = None, features: dict[str, Any] | None = None, **changes: Any
) -> Path:
    columns = {
        "tokens": WORDS,
        "ner_tags": TAGGED if tags is None else tags,
        "domain": ["a", "b", "a"],
    } | changes
    known = {"ner_tags": {"feature": class_label(*TAGS), "_type": "List"}} if tags is None else {}
    return write_data_set(
        root, {"train": columns, "test": columns}, known if features is None else features
    )


@pytest.mark.parametrize("kind", ["class labels", "strings"])
def test_each_words_tag_is_at_its_first_token(kind: str, tmp_path: Path) -> None:
    root = small(
        tmp_path, None if kind == "class labels" else [[TAGS[t] for t in row] for row in TAGGED]
    )
    for part in load_ner(root, length=4, columns=["domain"]):
        np.testing.assert_array_equal(part.inputs, HashTokenizer().encode_words(WORDS, 4)[0])
        named = [[None if t < 0 else part.classes[t] for t in row] for row in part.labels]
        assert named == [
            ["B-person", "O", "B-person", "O"],
            ["O", None, None, None],
            ["B-person", "I-person", None, None],
        ]
        assert part.columns["domain"].tolist() == ["a", "b", "a"]
    assert kind == "strings" or part.classes == TAGS


def test_a_byte_order_mark_is_no_part_of_a_word(tmp_path: Path) -> None:
    marked = [["\ufeff" + words[0], *words[1:]] for words in WORDS]
    plain, marked_too = (
        load_ner(small(tmp_path / str(i), tokens=words), length=4)[0].inputs
        for i, words in enumerate((WORDS, marked))
    )
    np.testing.assert_array_equal(marked_too, plain)


def test_later_tokens_of_a_word_have_no_tag(tmp_path: Path) -> None:
    class Halves(HashTokenizer):
        """One token at the start of the sentence, then two tokens per word."""

        name = "halves"  # type: ignore[assignment]

        def encode_words(self, sentences: Any, length: int) -> Any:
            ids = np.zeros((len(sentences), length), np.int32)
            firsts = np.zeros((len(sentences), length), np.bool_)
            for n, words in enumerate(sentences):
                ids[n, : 1 + 2 * len(words)] = 1
                firsts[n, 1 : 1 + 2 * len(words) : 2] = True
            return ids, firsts

    train, _ = load_ner(small(tmp_path), tokenizer=Halves(), length=6)
    assert train.labels.tolist() == [
        [-1, 1, -1, 0, -1, 1],
        [-1, 0, -1, -1, -1, -1],
        [-1, 1, -1, 2, -1, -1],
    ]


@pytest.mark.parametrize(
    ("tags", "changes", "line"),
    [
        (
            [[1, 0], [0], [1, 2]],
            {},
            (
                "^column 'ner_tags' of train holds .*; it must hold lists of tags, class labels "
                "or strings$"
            ),
        ),
        (
            ["O", "O", "O"],
            {},
            (
                "^column 'ner_tags' of train holds .*; it must hold lists of tags, class labels "
                "or strings$"
            ),
        ),
        (
            [["O"], ["O"], ["O", "O"]],
            {},
            "^row 0 of train has 6 words and 1 tags; it needs one tag per word$",
        ),
        (
            None,
            {"tokens": ["a b", "c", "d"]},
            r"^column 'tokens' of train holds .*; it must hold lists of words$",
        ),
    ],
)
def test_a_column_without_words_or_tags_is_refused(
    tags: Any, changes: dict[str, Any], line: str, tmp_path: Path, cache: Path
) -> None:
    root = small(tmp_path / "set", tags, **changes)
    with pytest.raises(ValueError, match=line) as caught:
        load_ner(root)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*"))


def test_a_tag_that_is_only_in_the_test_split_is_refused(tmp_path: Path) -> None:
    part = {"tokens": [["a"]], "domain": ["x"]}
    write_data_set(
        tmp_path,
        {"train": part | {"ner_tags": [["O"]]}, "test": part | {"ner_tags": [["B-odd"]]}},
        {},
    )
    with pytest.raises(ValueError, match=r"^tag 'B-odd' is in test only; train must have it too$"):
        load_ner(tmp_path)


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """Return the entities of IOB2 tags as conlleval counts them: a stray I- begins an entity."""
    found, begin = set(), None
    for i, tag in enumerate([*tags, "O"]):
        if begin is not None and not (tag.startswith("I-") and tag[2:] == tags[begin][2:]):
            found.add((begin, i, tags[begin][2:]))
            begin = None
        if tag != "O" and begin is None:
            begin = i
    return found


@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(-1, 4), st.integers(0, 4)), min_size=6, max_size=6),
        min_size=1,
        max_size=5,
    )
)
@example(rows=[[(1, 1), (2, 2), (0, 0), (3, 3), (4, 0), (-1, 4)]])  # one of two places is correct
@settings(deadline=None)
def test_the_f1_score_counts_whole_entities(rows: list[list[tuple[int, int]]]) -> None:
    labels, guesses = np.moveaxis(np.array(rows), 2, 0)
    correct = missed = spurious = 0
    for row in rows:
        tagged = [(TAGS[label], TAGS[guess]) for label, guess in row if label >= 0]
        true = spans([label for label, _ in tagged])
        guessed = spans([guess for _, guess in tagged])
        correct += len(true & guessed)
        missed += len(true - guessed)
        spurious += len(guessed - true)
    expected = 2 * correct / (2 * correct + missed + spurious) if correct else 0.0
    assert entity_f1(labels, guesses, TAGS) == pytest.approx(expected)


def test_the_f1_score_of_examples_worked_out_by_hand() -> None:
    labels = np.array([[1, 2, 0, 3]])
    assert entity_f1(labels, labels, TAGS) == 1
    assert entity_f1(labels, np.zeros_like(labels), TAGS) == 0
    # half of the person does not count, the place does: precision and recall are 1 / 2
    assert entity_f1(labels, np.array([[1, 0, 0, 3]]), TAGS) == 0.5
    assert entity_f1(np.zeros_like(labels), labels, TAGS) == 0
    assert entity_f1(np.full_like(labels, -1), labels, TAGS) == 0


def test_the_f1_score_without_seqeval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "seqeval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "seqeval", None)
    with pytest.raises(
        ImportError,
        match=r'^the score of entities needs the package seqeval: pip install "everloop\[text\]"$',
    ):
        entity_f1(np.array([[1]]), np.array([[1]]), TAGS)


def test_the_reward_is_token_accuracy_and_the_score_is_entity_f1(tmp_path: Path) -> None:
    world: Any = TextStreamVectorEnv(
        2,
        load_ner(small(tmp_path), length=6, columns=["domain"]),
        ByColumn("domain"),
        "test",
        "within_task",
    )
    obs, _ = world.reset(seed=0)
    assert world.single_action_space.nvec.tolist() == [5] * 6
    assert obs["tokens"].shape == (2, 6)
    _, reward, _, _, info = world.step(np.zeros((2, 6), int))
    labels = info["label"]
    np.testing.assert_allclose(reward, [(row[row >= 0] == 0).mean() for row in labels])
    assert world.metric(0).evaluate(labels, np.where(labels < 0, 4, labels)) == 1
    assert world.metric(0).evaluate(labels, np.zeros_like(labels)) == 0
    assert world.metric("a").evaluate(labels, np.where(labels < 0, 4, labels)) == 1
    for unknown in (2, "c"):
        with pytest.raises(ValueError, match=f"^unknown task {unknown!r}"):
            world.metric(unknown)


def test_a_kind_of_entity_is_one_class_in_all_domains(tmp_path: Path) -> None:
    world: Any = TextStreamVectorEnv(
        1, load_ner(small(tmp_path), length=6, columns=["domain"]), ByColumn("domain"), "test"
    )
    assert world.single_action_space.nvec[0] == 5
    assert world._tags == ["O", "B-person", "I-person", "B-place", "I-place"]
    labels = np.array([[1, 0]])
    assert world.metric(0).evaluate(labels, labels) == 1
    assert world.metric(0).evaluate(labels, np.array([[3, 0]])) == 0
    world.reset(seed=0, options={"task": "b"})  # its only sentence is "rain"
    *_, info = world.step(np.zeros((1, 6), int))
    assert info["label"].tolist() == [[0, -1, -1, -1, -1, -1]]
