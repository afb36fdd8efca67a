"""Small data sets for the scenarios of streams."""

from pathlib import Path
from typing import Any

import pytest
from data_sets import class_label, noise, png, write_data_set, write_folders, write_texts


def pictures(classes: int, rows: int, colour: bool, **columns: Any) -> dict[str, Any]:
    shape = (rows, 8, 8, 3) if colour else (rows, 8, 8)
    return {
        "image": [png(pixels) for pixels in noise(*shape)],
        "label": [i % classes for i in range(rows)],
        **columns,
    }


def image_set(folder: Path, classes: int, colour: bool = False, **columns: Any) -> None:
    splits = {
        name: pictures(classes, 4 * classes if name == "train" else 2 * classes, colour)
        for name in ("train", "test")
    }
    for part in splits.values():
        part |= {name: [value(label) for label in part["label"]] for name, value in columns.items()}
    write_data_set(folder, splits, {"label": class_label(*[f"c{i:03}" for i in range(classes)])})


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    image_set(root / "mnist", 10)
    rows = [f"{i},{i % 3},{'ab'[i % 2]},{'ns'[i // 2 % 2]}" for i in range(40)]
    (root / "flowers.csv").write_text("\n".join(["length,width,label,site", *rows]))
    image_set(root / "cifar10", 10, colour=True)
    image_set(root / "cifar100", 100, colour=True)
    image_set(root / "omniglot28", 6, alphabet=lambda label: ["Greek", "Latin", "Thai"][label // 2])
    text = {
        "text": [f"word{i} is {i % 2}" for i in range(16)],
        "domain": [["books", "dvd"][i // 8] for i in range(16)],
    }
    part = text | {"label": [i % 2 for i in range(16)]}
    write_data_set(
        root / "mdsd_sentiment",
        {"train": part, "test": part},
        {"label": class_label("bad", "good")},
    )
    groups = [i % 5 for i in range(20)]
    part = {"text": [f"post {i} {group}" for i, group in enumerate(groups)], "label": groups}
    part["domain"] = [["alt", "comp", "comp", "comp", "sci"][group] for group in groups]
    write_data_set(
        root / "newsgroups20", {"train": part, "test": part}, {"label": class_label(*"abcde")}
    )
    part = {
        "tokens": [["Ada", "met", "Bob"]] * 10,
        "ner_tags": [[1, 0, 1]] * 10,
        "domain": [f"field{i % 5}" for i in range(10)],
    }
    tags = {"ner_tags": {"feature": class_label("O", "B-person", "I-person"), "_type": "List"}}
    write_data_set(root / "crossner", {"train": part, "test": part}, tags)
    write_folders(
        root / "imagenet",
        {f"n{c:02}/{i}.png": noise(9, 9, 3, seed=c) for c in range(20) for i in range(10)},
    )
    write_texts(
        root / "own",
        {
            f"{d}/{c}/{i}.txt": f"{c} {i}"
            for d in ("news", "social")
            for c in ("bad", "good")
            for i in range(5)
        },
    )
    return root


@pytest.fixture
def surroundings(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERLOOP_DATA", str(data))
    monkeypatch.setenv("EVERLOOP_CACHE", str(data / "cache"))
    monkeypatch.chdir(tmp_path)
