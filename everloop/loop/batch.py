"""Batches of examples, which flow from worlds to learners and strategies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

BFLOAT16 = np.dtype("V2")  # numpy has no bfloat16, so arrays hold its two bytes as they are
GOLDEN = (5**0.5 - 1) / 2  # the first n multiples modulo 1 are evenly spread for every n
# optional fields with a leading time axis
STEPWISE = ("target", "action", "output", "value")


@dataclass(frozen=True)
class Batch:
    """B examples of T steps. An image is an example of one step, T = 1.

    Attributes:
        obs: Observations by modality, (T, B, ...). Images may be augmented.
        start: bool (T, B), True where the network's recurrent state is reset: at an episode's
            start, and at the start of a sequence that was cut from an episode.
        target: The training target. In streams labels, int64 (T, B), or (T, B, L) with a label for
            each token; in control the outputs to imitate, (T, B, P).
        action: The actions taken, (T, B, ...), in the network's units (`ActionUnits`).
        task: The ID of each example's task, int64 (B,).
        output: The network's prediction when the example was observed, (T, B, P).
        value: The network's value when the example was observed, (T, B).
    """

    obs: Mapping[str, Tensor]
    start: Tensor
    target: Tensor | None = None
    action: Tensor | None = None
    task: Tensor | None = None
    output: Tensor | None = None
    value: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of examples, B."""
        return self.start.shape[1]

    @property
    def length(self) -> int:
        """Number of steps of each example, T."""
        return self.start.shape[0]

    def __getitem__(self, examples: Any) -> Batch:
        """Return the examples that a slice, an index tensor or a mask selects."""
        return self._map(lambda x: x[:, examples], lambda task: task[examples])

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Join the examples of `batches`. Observations, starts, targets and task IDs are kept.

        Args:
            batches: Batches of the same number of steps T. The targets are joined only if every
                batch has them, and so are the task IDs.
        """
        targets = [batch.target for batch in batches if batch.target is not None]
        tasks = [batch.task for batch in batches if batch.task is not None]
        return cls(
            {name: _cat([batch.obs[name] for batch in batches]) for name in batches[0].obs},
            torch.cat([batch.start for batch in batches], 1),
            _cat(targets, -100) if len(targets) == len(batches) else None,
            task=torch.cat(tasks) if len(tasks) == len(batches) else None,
        )

    @classmethod
    def pool(cls, batches: Sequence[Batch]) -> Batch:
        """Join the examples of `batches` with every field that all of them have.

        Args:
            batches: Batches whose examples all have the same number of steps T.
        """

        def field(name: str, axis: int) -> Tensor | None:
            values = [value for batch in batches if (value := getattr(batch, name)) is not None]
            return torch.cat(values, axis) if len(values) == len(batches) else None

        joined = cls.join(batches)
        stepwise = {name: field(name, 1) for name in STEPWISE}
        return cls(joined.obs, joined.start, **stepwise, task=field("task", 0))

    def split(self, size: int) -> Iterator[Batch]:
        """Yield batches of at most `size` examples, in order."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def sequences(self, length: int) -> Batch:
        """Cut the examples into examples of `length` steps: (T, B) -> (length, T / length * B).

        Each new example begins with an empty recurrent state.

        Raises:
            ValueError: Unless `length` divides T.
        """
        if length < 1 or self.length % length:
            raise ValueError(f"sequence length is {length}; it must divide the {self.length} steps")
        parts = self.length // length
        cut = self._map(
            lambda x: rearrange(x, "(s t) b ... -> t (s b) ...", t=length),
            lambda task: task.repeat(parts),
        )
        start = cut.start.clone()
        start[0] = True
        return replace(cut, start=start)

    def _map(self, for_steps: Any, for_task: Any) -> Batch:
        rest = {name: getattr(self, name) for name in STEPWISE}
        return Batch(
            {name: for_steps(value) for name, value in self.obs.items()},
            for_steps(self.start),
            **{name: None if value is None else for_steps(value) for name, value in rest.items()},
            task=None if self.task is None else for_task(self.task),
        )

    def to_items(self) -> dict[str, npt.NDArray[Any]]:
        """Return arrays with one row for each example, as memories store them."""
        flat = {f"obs.{name}": value for name, value in self.obs.items()}
        flat |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "obs"}
        return {
            name: _to_array(value if name == "task" else value.transpose(0, 1))
            for name, value in flat.items()
            if value is not None
        }

    @classmethod
    def from_items(cls, items: Mapping[str, npt.NDArray[Any]], device: torch.device) -> Batch:
        """Rebuild, on `device`, the batch from what `to_items` returned."""

        def tensor(name: str) -> Tensor | None:
            if name not in items:
                return None
            value = _from_array(items[name]).to(device)
            return value if name == "task" else value.transpose(0, 1)

        obs = {name.removeprefix("obs."): tensor(name) for name in items if name.startswith("obs.")}
        start = tensor("start")
        assert start is not None
        stepwise = {name: tensor(name) for name in STEPWISE}
        return cls(obs, start, **stepwise, task=tensor("task"))  # type: ignore[arg-type]


def _cat(parts: Sequence[Tensor], fill: int = 0) -> Tensor:
    """Join (T, B, ...) along B; shorter ones are filled up at the end of their later axes."""
    shapes = {part.shape[2:] for part in parts}
    if len(shapes) > 1:
        longest = [max(sizes) for sizes in zip(*shapes, strict=True)]
        parts = [
            F.pad(
                part,
                [
                    n
                    for size, have in zip(reversed(longest), reversed(part.shape[2:]), strict=True)
                    for n in (0, size - have)
                ],
                value=fill,
            )
            for part in parts
        ]
    return torch.cat(list(parts), 1)


def subsample(batches: Sequence[Batch], examples: int) -> list[Batch]:
    """Return an evenly spread subsample of the examples in `batches`.

    The examples are cut into `examples` parts of nearly equal size, and one is taken from each. Its
    position differs from part to part: vectorized worlds interleave their copies, so every k-th
    example might come from the same copy.

    Args:
        batches: Batches, in the order in which their examples came.
        examples: Number of examples to return; all are returned if there are fewer.
    """
    total = sum(len(batch) for batch in batches)
    if total <= examples:
        return list(batches)
    begins = np.arange(examples + 1) * total // examples
    offsets = np.arange(examples) * GOLDEN % 1 * np.diff(begins)
    rows = begins[:-1] + offsets.astype(np.int64)
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
    """Return the array as a tensor on `device`.

    On a CPU the tensor shares the memory of a contiguous array. To a CUDA device it is copied from
    pinned memory, without waiting.
    """
    tensor = torch.from_numpy(value if value.flags.c_contiguous else np.ascontiguousarray(value))
    if device.type == "cpu":
        return tensor
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
