"""What flows from worlds to learners and strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

BFLOAT16 = np.dtype("V2")  # numpy has none: two bytes that it does not calculate with
GOLDEN = (5**0.5 - 1) / 2  # its multiples modulo 1 are spread evenly, however many
STEPWISE = ("target", "action", "output", "value")


@dataclass(frozen=True)
class Batch:
    """B examples of T steps; an image is an example of one step, T = 1.

    obs: modality -> (T, B, ...), as the world showed it.
    start: bool (T, B), True where an episode begins (or the memory is to be empty).
    target: what should come out. Streams: labels int64 (T, B). Control: the outputs to imitate (T,
        B, P).
    action: what was done, (T, B, ...).
    task: int64 (B,), the task each example comes from.
    output, value: what the network put out for it when it was observed, prediction (T, B, P) and
        value (T, B).
    """

    obs: Mapping[str, Tensor]
    start: Tensor
    target: Tensor | None = None
    action: Tensor | None = None
    task: Tensor | None = None
    output: Tensor | None = None
    value: Tensor | None = None

    def __len__(self) -> int:
        """Number of examples, B."""
        return self.start.shape[1]

    @property
    def length(self) -> int:
        """Number of steps of each example, T."""
        return self.start.shape[0]

    def __getitem__(self, examples: Any) -> Batch:
        """The examples that a slice, index tensor or mask selects."""
        return self._map(lambda x: x[:, examples], lambda task: task[examples])

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """The examples of all `batches`, of as many steps each; of targets only if all have them,
        and nothing else.
        """
        targets = [batch.target for batch in batches if batch.target is not None]
        return cls(
            {name: torch.cat([batch.obs[name] for batch in batches], 1) for name in batches[0].obs},
            torch.cat([batch.start for batch in batches], 1),
            torch.cat(targets, 1) if len(targets) == len(batches) else None,
        )

    def split(self, size: int) -> Iterator[Batch]:
        """Batches of at most `size` examples, in order."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def sequences(self, length: int) -> Batch:
        """The same steps as examples of `length` steps each: (T, B) -> (length, T / length * B).

        Each new example begins with an empty memory. Raises ValueError unless `length` divides T.
        """
        if length < 1 or self.length % length:
            raise ValueError(
                f"sequence length is {length}, allowed: a divisor of the {self.length} steps"
            )
        parts = self.length // length
        cut = self._map(
            lambda x: rearrange(x, "(s t) b ... -> t (s b) ...", t=length),
            lambda task: task.repeat(parts),
        )
        start = cut.start.clone()
        start[0] = True
        return replace(cut, start=start)

    def _map(self, steps: Any, task: Any) -> Batch:
        rest = {name: getattr(self, name) for name in STEPWISE}
        return Batch(
            {name: steps(value) for name, value in self.obs.items()},
            steps(self.start),
            **{name: None if value is None else steps(value) for name, value in rest.items()},
            task=None if self.task is None else task(self.task),
        )

    def to_items(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays with the example first, one row each: the form in which memories store it."""
        flat = {f"obs.{name}": value for name, value in self.obs.items()}
        flat |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "obs"}
        return {
            name: _to_array(value if name == "task" else value.transpose(0, 1))
            for name, value in flat.items()
            if value is not None
        }

    @classmethod
    def from_items(cls, items: Mapping[str, npt.NDArray[Any]], device: torch.device) -> Batch:
        """The inverse of `to_items`."""

        def tensor(name: str) -> Tensor | None:
            if name not in items:
                return None
            value = _from_array(items[name]).to(device)
            return value if name == "task" else value.transpose(0, 1)

        obs = {name.removeprefix("obs."): tensor(name) for name in items if name.startswith("obs.")}
        start = tensor("start")
        assert start is not None
        return cls(obs, start, **{name: tensor(name) for name in STEPWISE}, task=tensor("task"))  # type: ignore[arg-type]


def subsample(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """`examples` of the examples in `batches`, or all if there are fewer, evenly spread: one from
    each of as many parts.

    Which one of its part changes from part to part, since examples lie step by step: every k-th
    might always be of one copy.
    """
    total = sum(len(batch) for batch in batches)
    if total <= examples:
        return list(batches)
    begins = np.arange(examples + 1) * total // examples
    rows = begins[:-1] + (np.arange(examples) * GOLDEN % 1 * np.diff(begins)).astype(np.int64)
    ends = np.cumsum([0, *(len(batch) for batch in batches)])
    parts = [rows[(rows >= a) & (rows < b)] - a for a, b in pairwise(ends)]
    return [
        batch[torch.from_numpy(part)]
        for batch, part in zip(batches, parts, strict=True)
        if len(part)
    ]


def _to_array(value: Tensor) -> npt.NDArray[Any]:
    if value.dtype == torch.bfloat16:
        return value.cpu().view(torch.int16).numpy().view(BFLOAT16)
    return value.cpu().numpy()


def _from_array(value: npt.NDArray[Any]) -> Tensor:
    if value.dtype == BFLOAT16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def to_tensor(value: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of the array's own memory; on a GPU a copy of it, sent from pinned memory without
    waiting.
    """
    tensor = torch.from_numpy(value if value.flags.c_contiguous else np.ascontiguousarray(value))
    if device.type == "cpu":
        return tensor
    return (
        tensor.pin_memory().to(device, non_blocking=True)
        if device.type == "cuda"
        else tensor.to(device)
    )
