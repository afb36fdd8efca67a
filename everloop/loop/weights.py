"""The weights of a network in a file that other programs can read."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from everloop.loop import disk


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
