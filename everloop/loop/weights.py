"""The weights of a network in a file that other programs can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from everloop.loop import disk
from everloop.loop.model import Model, last_linear


def write_weights(path: Path, module: nn.Module) -> None:
    """Write the weights and buffers of a network by name, as a safetensors file.

    A tensor that has several names is written under each.

    Args:
        path: The file; it is replaced as a whole, or not at all.
        module: The network.

    Raises:
        OSError: If the file can't be written.
    """
    tensors: dict[str, Tensor] = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in module.state_dict().items()
    }
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        disk.remove(temporary)
        disk.create_tensors(temporary, tensors)
        disk.rename(temporary, path)
        disk.sync_folder(path.parent)
    except OSError as error:
        disk.remove(temporary)
        raise OSError(f"{path} can't be written: {error.strerror or error}; free space") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a safetensors file by name.

    Raises:
        ValueError: If it can't be read. The message is one line.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from None


@torch.no_grad()
def initialise(model: Model, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Start the network of a model from the weights and buffers of another one, by name.

    The last layer of a classifier may have more outputs than the other network's. Then its first
    rows come from there, and the further ones stay as they are.

    Args:
        model: The model.
        weights: Name -> value, all that the network has.
        source: Where they come from, for messages.

    Returns:
        A note if the last layer has more outputs.

    Raises:
        ValueError: In one line, if a name or a shape differs. Nothing has changed then.
    """
    own = model.module.state_dict()
    head = _head_names(model) if model.labelled else set[str]()
    grown = [name for name in own if name in head and _has_fewer_rows(weights.get(name), own[name])]
    wrong = [
        _difference(name, weights.get(name), own.get(name))
        for name in dict.fromkeys([*own, *weights])
        if name not in grown and _shape(weights.get(name)) != _shape(own.get(name))
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"the weights of {source} don't fit: {', '.join(wrong[:3])}{more}; use the network "
            "with which they were trained"
        )
    for name, value in own.items():
        part = value[: len(weights[name])] if name in grown else value
        part.copy_(weights[name])
    return [
        f"{name} has {len(own[name])} rows, of which the first {len(weights[name])} come from "
        f"{source}"
        for name in grown[:1]
    ]


def _head_names(model: Model) -> set[str]:
    """Return the names of the last layer's weights."""
    layer = last_linear(model.module)
    own = set() if layer is None else set(layer.parameters())
    return {name for name, p in model.module.named_parameters() if p in own}


def _has_fewer_rows(value: Tensor | None, own: Tensor) -> bool:
    return (
        value is not None
        and value.ndim == own.ndim
        and value.shape[1:] == own.shape[1:]
        and len(value) < len(own)
    )


def _shape(value: Tensor | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value.shape)


def _difference(name: str, there: Tensor | None, here: Tensor | None) -> str:
    if there is None or here is None:
        shape = _shape(here if there is None else there)
        return f"{name} {shape} is only {'here' if there is None else 'there'}"
    return f"{name} is {_shape(there)} there and {_shape(here)} here"
