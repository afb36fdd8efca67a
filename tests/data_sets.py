"""Small data sets for the tests, in the layouts that users have."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded image of (H, W) grey or (H, W, 3) colour pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


IMAGE = {"_type": "Image"}


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def plain(kind: pa.DataType) -> dict[str, Any]:
    """Return the feature of values, or lists of values, that have only a type."""
    if pa.types.is_list(kind):
        return {"feature": plain(kind.value_type), "_type": "List"}
    return {"dtype": str(kind), "_type": "Value"}


def write_parquet(
    file: Path, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]
) -> None:
    """Write columns of values, with pictures as bytes; `features` adds to their types."""
    arrays = {}
    for name, values in columns.items():
        if features.get(name) == IMAGE:
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            arrays[name] = pa.array([{"bytes": value, "path": None} for value in values], kind)
        else:
            lists = any(isinstance(value, list) for value in values)
            arrays[name] = pa.array(values, pa.int64() if name in features and not lists else None)
    known = {name: features.get(name, plain(array.type)) for name, array in arrays.items()}
    table = pa.table(arrays).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": known}})}
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def write_data_set(
    root: Path, splits: Mapping[str, Mapping[str, Sequence[Any]]], features: Mapping[str, Any]
) -> Path:
    for split, columns in splits.items():
        write_parquet(
            root / f"{split}-00000-of-00001.parquet", columns, {"image": IMAGE, **features}
        )
    return root


def small_images(root: Path, **changes: Sequence[Any]) -> Path:
    """Write four 8x8 images per split, of two classes and origins; `changes` replaces columns."""
    columns = {
        "image": [png(pixels) for pixels in noise(4, 8, 8)],
        "label": [0, 1, 0, 1],
        "origin": list("abba"),
    } | changes
    features = {} if "label" in changes else {"label": class_label("no", "yes")}
    return write_data_set(root, {"train": columns, "test": columns}, features)


def write_texts(root: Path, texts: Mapping[str, str]) -> Path:
    """Write files, path -> text, in UTF-8."""
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def write_folders(root: Path, pictures: Mapping[str, Any]) -> Path:
    """Write pictures, path -> pixels (H, W) or (H, W, 3), in the format of the path's suffix."""
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(
            root / name, **({"lossless": True} if name.endswith("webp") else {})
        )
    return root


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def mapped(array: Any) -> bool:
    """Return True if the array is mapped from a file rather than copied into memory."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
