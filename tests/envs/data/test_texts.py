"""Text data sets and folders of texts: token ids, labels, domains, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import class_label, mapped, write_data_set, write_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop.envs import ByColumn, TextStreamVectorEnv
from everloop.envs.data import Examples, HashTokenizer, load_text, text_folders

TOKENS = HashTokenizer(500)


def small_texts(root: Path, **changes: Any) -> Path:
    """Write four texts per split, of two classes and two domains; `changes` replaces columns."""
    columns = {
        "text": ["good one", "bad", "", "so good"],
        "label": [1, 0, 0, 1],
        "domain": list("abab"),
    } | changes
    features = {"label": class_label("no", "yes")} if "label" not in changes else {}
    return write_data_set(root, {"train": columns, "test": columns}, features)


@given(
    texts=st.lists(st.text("ab c,ß\n"), min_size=1, max_size=6),
    length=st.integers(1, 6),
    names=st.lists(st.sampled_from(["ant", "bee", ""]), min_size=6, max_size=6),
)
@settings(deadline=None, max_examples=15)
def test_each_text_is_encoded_with_its_label_and_column(
    texts: list[str], length: int, names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = names[: len(texts)]
    columns = {"words": texts, "kind": names, "from": [str(i) for i in range(len(texts))]}
    root = write_data_set(tmp_path_factory.mktemp("set"), {"train": columns, "test": columns}, {})
    for _ in range(2):  # first from the files, then from the cache
        for part in load_text(
            root, tokenizer=TOKENS, length=length, text="words", label="kind", columns=["from"]
        ):
            np.testing.assert_array_equal(part.inputs, TOKENS.encode(texts, length))
            assert [part.classes[i] for i in part.labels] == names
            assert part.classes == tuple(sorted(set(names)))
            assert part.columns["from"].tolist() == columns["from"]
            assert part.vocabulary_size == 500


def test_only_a_new_tokenizer_or_length_encodes_the_texts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_texts(tmp_path / "set")
    first, _ = load_text(root)
    assert first.classes == ("no", "yes")
    assert first.vocabulary_size == 2**15
    assert mapped(first.inputs)
    monkeypatch.setitem(sys.modules, "datasets", None)
    np.testing.assert_array_equal(load_text(root)[0].inputs, first.inputs)
    with pytest.raises(ImportError, match=r'pip install "everloop\[data\]"'):
        load_text(root, tokenizer=HashTokenizer(99))
    with pytest.raises(ImportError):
        load_text(root, length=3)


@pytest.mark.parametrize(
    ("changes", "options", "line"),
    [
        ({}, {"text": "body"}, "set has no column 'body'; choose from text, label, domain$"),
        (
            {},
            {"columns": ["product"]},
            "set has no column 'product'; choose from text, label, domain$",
        ),
        ({}, {"test_split": "dev"}, "set has no split 'dev'; choose from train, test$"),
        ({}, {"length": 0}, "^length is 0; it must be 1 or more$"),
        ({}, {"text": "label"}, r"^column 'label' of train holds .*; it must hold strings$"),
        (
            {"text": ["a", None, "b", "c"]},
            {},
            ("^'text' in row 1 of train is missing; give it a value, or leave the row out$"),
        ),
        (
            {"label": [0.5, 1.0, 0.0, 1.0]},
            {},
            (
                "^column 'label' of train holds (double|float64); it must hold class labels, "
                "integers or strings$"
            ),
        ),
        (
            {"label": ["x", None, "x", "y"]},
            {},
            ("^'label' in row 1 of train is missing; give it a value, or leave the row out$"),
        ),
    ],
)
def test_a_bad_column_or_split_is_refused_and_nothing_is_cached(
    changes: dict[str, Any], options: dict[str, Any], line: str, tmp_path: Path, cache: Path
) -> None:
    root = small_texts(tmp_path / "set", **changes)
    with pytest.raises(ValueError, match=line) as caught:
        load_text(root, **options)
    assert "\n" not in str(caught.value)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_every_cell_of_a_csv_file_is_a_value(suffix: str, separator: str, tmp_path: Path) -> None:
    """Also those that pandas takes for missing values, and the first one after a BOM."""
    rows = [("null", "NA", "x"), ("NaN", "None", "NA"), ("", "yes", ""), ("good", "", "null")]
    lines = [separator.join(row) for row in [("text", "label", "domain"), *rows]]
    for split in ("train", "test"):
        (tmp_path / f"{split}.{suffix}").write_text("\n".join(lines), "utf-8-sig")
    train, _ = load_text(tmp_path, tokenizer=TOKENS, length=3, columns=["domain"])
    np.testing.assert_array_equal(train.inputs, TOKENS.encode([row[0] for row in rows], 3))
    assert [train.classes[i] for i in train.labels] == [row[1] for row in rows]
    assert train.columns["domain"].tolist() == [row[2] for row in rows]


def test_a_byte_order_mark_is_no_token(tmp_path: Path) -> None:
    texts = {f"x/{c}/{i}.txt": "\ufeffgood" for c in "ab" for i in range(5)}
    from_folders, _ = text_folders([write_texts(tmp_path, texts) / "x"], tokenizer=TOKENS, length=2)
    from_parquet, _ = load_text(
        small_texts(tmp_path / "set", text=["\ufeffgood"] * 4), tokenizer=TOKENS, length=2
    )
    for part in (from_folders, from_parquet):
        assert (part.inputs == TOKENS.encode(["good"], 2)).all()


def write_domains(root: Path, domains: str = "xy", files: int = 10) -> list[Path]:
    """Write a folder for each domain; the only word of each text is unique."""
    texts = {
        f"{d}/{c}/{i:02}.txt": f"{d}{c}{i:02}"
        for d in domains
        for c in ("bad", "good")
        for i in range(files)
    }
    return [write_texts(root, texts) / d for d in domains]


def test_each_folder_becomes_a_domain_with_a_fifth_for_tests(tmp_path: Path) -> None:
    train, test = text_folders(write_domains(tmp_path), tokenizer=TOKENS, length=2)
    seen = {}
    for split, part in (("train", train), ("test", test)):
        domains = part.columns["domain"]
        for ids, label, domain in zip(part.inputs, part.labels, domains, strict=True):
            seen[int(ids[0])] = (split, part.classes[label], domain)
    assert seen == {
        int(TOKENS.encode([f"{d}{c}{i:02}"], 1)[0, 0]): ("test" if i % 5 == 4 else "train", c, d)
        for d in "xy"
        for c in ("bad", "good")
        for i in range(10)
    }
    assert (len(train), len(test)) == (32, 8)


def test_train_and_test_folders_are_kept_and_order_sets_the_tasks(tmp_path: Path) -> None:
    texts = {
        f"{d}/{s}/{c}/t.txt": f"{d} {s} {c}"
        for d in ("science", "news")
        for s in ("train", "test")
        for c in "ab"
    }
    root = write_texts(tmp_path, texts)
    folders = [root / "science", root / "news"]
    data = text_folders(folders, tokenizer=TOKENS, length=3)
    for split, part in zip(("train", "test"), data, strict=True):
        np.testing.assert_array_equal(
            part.inputs,
            TOKENS.encode([f"{d} {split} {c}" for d in ("science", "news") for c in "ab"], 3),
        )
        assert part.labels.tolist() == [0, 1, 0, 1]
    world = TextStreamVectorEnv(2, data, task_split=ByColumn("domain", order=["science", "news"]))
    assert [task.name for task in world.tasks] == ["science", "news"]
    obs, _ = world.reset(seed=0, options={"task": "news"})
    assert {row.tobytes() for row in obs["tokens"]} == {row.tobytes() for row in data[0].inputs[2:]}


def test_missing_or_repeated_folders_are_refused(tmp_path: Path) -> None:
    x, _ = write_domains(tmp_path)
    with pytest.raises(
        ValueError, match=r"^folders is empty; give at least one folder with <class>/\*\.txt$"
    ):
        text_folders([])
    with pytest.raises(
        ValueError,
        match=r"^folders are .*x, .*x; each must have another name, which is its domain$",
    ):
        text_folders([x, x])
    with pytest.raises(
        ValueError, match=r"^folder '.*nowhere' does not exist; give one with <class>/\*\.txt$"
    ):
        text_folders([x, tmp_path / "nowhere"])


def test_a_folder_without_enough_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no texts; it must hold <class>/\*\.txt$"):
        text_folders([*write_domains(tmp_path), tmp_path / "empty"])
    with pytest.raises(
        ValueError,
        match=r"bad has 4 texts; it needs 5 or more, because every fifth is a test example$",
    ):
        text_folders(write_domains(tmp_path / "few", "z", files=4))


def test_a_class_that_one_folder_lacks_is_refused(tmp_path: Path) -> None:
    x, y = write_domains(tmp_path)
    write_texts(y, {f"odd/{i}.txt": "odd" for i in range(5)})
    with pytest.raises(
        ValueError,
        match=(
            r"^class 'odd' is not in both .*x and all of .*y; all folders and splits must have the "
            r"same classes$"
        ),
    ):
        text_folders([x, y])


def test_a_text_that_is_not_utf_8_is_refused_by_its_path(tmp_path: Path) -> None:
    x, _ = write_domains(tmp_path)
    (x / "bad" / "03.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(
        ValueError, match=r"x/bad/03\.txt can't be read as UTF-8 text \(UnicodeDecodeError\)$"
    ):
        text_folders([x])


def test_a_text_stream_takes_a_folder_and_shows_ids_in_its_space(tmp_path: Path) -> None:
    world = TextStreamVectorEnv(
        4, small_texts(tmp_path / "set"), task_split={"kind": "classes", "classes_per_task": 1}
    )
    obs, _ = world.reset(seed=0)
    assert world.observation_space.contains(obs)
    assert world.single_observation_space["tokens"].high.max() == 2**15 - 1  # type: ignore[index]
    assert [task.name for task in world.tasks] == ["no", "yes"]


@pytest.mark.parametrize("bad", [9, -1])
def test_the_vocabulary_size_bounds_the_token_ids(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"^a token id is {bad}; it must be from 0 to 8$"):
        Examples(np.array([[1, bad]], np.int32), np.array([0]), ("a",), vocabulary_size=9)
