"""Data sets for the tests, in the layouts that users have."""

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
    """(H, W) grey or (H, W, 3) coloured pixels, encoded."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


IMAGE = {"_type": "Image"}


def class_label(*names: str) -> dict[str, Any]:
    return {"names": list(names), "_type": "ClassLabel"}


def write_parquet(file: Path, columns: Mapping[str, Sequence[Any]], features: Mapping[str, Any]) -> None:
    """Columns of values, pictures as bytes; `features` of those which have more than their type."""
    arrays = {}
    for name, values in columns.items():
        if features.get(name) == IMAGE:
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
            arrays[name] = pa.array([{"bytes": value, "path": None} for value in values], kind)
        else:
            arrays[name] = pa.array(values, pa.int64() if name in features else None)
    known = {name: features.get(name, {"dtype": str(array.type), "_type": "Value"}) for name, array in arrays.items()}
    table = pa.table(arrays).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": known}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def write_data_set(root: Path, splits: Mapping[str, Mapping[str, Sequence[Any]]], features: Mapping[str, Any]) -> Path:
    for split, columns in splits.items():
        write_parquet(root / f"{split}-00000-of-00001.parquet", columns, {"image": IMAGE, **features})
    return root


def write_folders(root: Path, pictures: Mapping[str, Any]) -> Path:
    """path -> pixels (H, W) or (H, W, 3), in the format which the path's ending tells."""
    for name, pixels in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    return root


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def mapped(array: Any) -> bool:
    """Whether the numbers are those of a file, rather than a copy in memory."""
    while array is not None and not isinstance(array, np.memmap):
        array = getattr(array, "base", None)
    return array is not None
