"""How a user's own network is called, and which of its outputs are the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Inputs = Tensor | Mapping[str, Tensor]
Pick = str | int | Callable[[Any], Tensor]
"""What picks the logits: a key, an index, an attribute's name, or a function of the output."""


class Calls:
    """The calls of a user's network.

    Args:
        predict: Function (module, inputs) -> output, for a network that is called in parts or
            through another method; None to call the module with the inputs.
        outputs: What picks the logits from the output; None for an output that is a tensor or has
            `logits`.
        for_task: Function (inputs, task) -> inputs with the task in them, for a network with a head
            for each task; None for a network with one head.
    """

    def __init__(
        self,
        predict: Callable[[nn.Module, Any], Any] | None,
        outputs: Pick | None,
        for_task: Callable[[Any, int], Any] | None,
    ) -> None:
        self.predict, self.outputs, self.for_task = predict, outputs, for_task
        self.active = False  # True during a forward pass that is not the loop's own

    def logits(self, module: nn.Module, inputs: Inputs, task: int | None) -> Tensor:
        """Call `module` and return the logits, (B, ...).

        Raises:
            ValueError: If the output has no logits.
        """
        if self.for_task is not None and task is not None:
            inputs = self.for_task(inputs, task)
        self.active = True
        try:
            if self.predict is not None:
                output = self.predict(module, inputs)
                return output if isinstance(output, Tensor) else self.pick(output)
            output = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
        finally:
            self.active = False
        return self.pick(output)

    def pick(self, output: Any) -> Tensor:
        """Return the logits in an output of the network.

        Raises:
            ValueError: If there are none.
        """
        if callable(self.outputs):
            return self.outputs(output)
        key = "logits" if self.outputs is None else self.outputs
        found = output
        if isinstance(key, int):
            found = output[key]
        elif isinstance(output, Mapping):
            found = output.get(key)
        elif not isinstance(output, Tensor):
            found = getattr(output, key, None)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"the network returns a {type(output).__name__} without {key!r}; pass outputs=, a "
                "key or a function that picks the logits"
            )
        return found


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors that a network returned, alone or in tuples, lists, dicts or objects."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from tensors_in(part)
    elif isinstance(output, Sequence) and not isinstance(output, str):
        for part in output:
            yield from tensors_in(part)
    elif hasattr(output, "__dict__"):
        yield from (part for part in vars(output).values() if isinstance(part, Tensor))


@contextmanager
def linear_calls(module: nn.Module) -> Iterator[dict[Any, nn.Linear]]:
    """Record where in the graph the outputs of linear layers are made, while the context lasts."""
    made: dict[Any, nn.Linear] = {}

    def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        if output.grad_fn is not None:
            made[output.grad_fn] = layer

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def layers_before(logits: Tensor, made: Mapping[Any, nn.Linear]) -> set[nn.Linear]:
    """Return the linear layers from which `logits` come without another one in between."""
    found, seen, left = set[nn.Linear](), set[Any](), [logits.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            found.add(made[node])
        else:
            left += [parent for parent, _ in node.next_functions]
    return found


def has_rows(x: Any, rows: int) -> bool:
    """Return True for a tensor with a row for each example."""
    return isinstance(x, Tensor) and x.ndim > 0 and len(x) == rows
