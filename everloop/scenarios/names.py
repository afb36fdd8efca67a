"""Objects by name: from a registry, or by the path "package.module:Name"."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch


@dataclass(frozen=True)
class Factory:
    """A setting that makes an object: the path of a class or function, and keyword arguments.

    Args:
        path: "package.module:Name" or "package.module.Name".
        settings: Keyword arguments; the others keep their defaults.
    """

    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Make the object from positional arguments and the settings; `more` overrides them."""
        return find_object(self.path)(*args, **{**self.settings, **more})


def factories(what: type[Any]) -> list[str]:
    """Return the names of the fields of a dataclass whose type is `Factory`."""
    hints = get_type_hints(what)
    return [
        field.name
        for field in fields(what)
        if Factory in (hints[field.name], *get_args(hints[field.name]))
    ]


def first_required(what: Callable[..., Any]) -> str | None:
    """Return the first positional parameter's name; None if there is none or it has a default."""
    for name, parameter in inspect.signature(what).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return name if parameter.default is parameter.empty else None
    return None


def is_path(name: str) -> bool:
    """Return True for a path with a colon, which no registered name has."""
    return ":" in name


def find_object(path: str) -> Callable[..., Any]:
    """Return the class or function at `path`, which may lie in the working folder.

    Raises:
        ValueError: If it can't be imported or is not callable.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise ValueError(f"{path!r} is not the path of a class; write package.module:Name")
    if module.endswith(".py"):
        file = Path(module).with_suffix("")
        dotted = (
            file.name
            if file.is_absolute()
            else ".".join(part for part in file.parts if part != "..")
        )
        raise ValueError(
            f"{path!r} names a file; write {dotted}:{name}"
            + (f", in {file.parent}" if file.is_absolute() else "")
        )
    import_module(module, path)
    found = getattr(sys.modules[module], name, None)
    if found is None:
        raise ValueError(
            f"{path!r} can't be imported: {module} has no "
            f"{name!r}.{did_you_mean(name, dir(sys.modules[module]))}"
        )
    if not callable(found):
        raise ValueError(f"{path!r} is {found!r}; it must be a class or a function")
    return found  # type: ignore[no-any-return]


def import_module(module: str, wanted: str = "") -> None:
    """Import `module`, which may lie in the working folder.

    Args:
        module: Dotted name of the module.
        wanted: Name to use in the error; by default the module's.

    Raises:
        ValueError: If the import fails.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except Exception as error:  # a user's module can raise anything
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{wanted or module!r} can't be imported: {type(error).__name__}: {reason}"
        ) from error


def find_optimizer(path: str) -> str:
    """Return the full path of an optimizer; a bare name such as "adamw" or "SGD" is torch's.

    Raises:
        ValueError: If there is no such optimizer, or its step needs a closure.
    """
    known = {
        name.lower(): f"torch.optim.{name}"
        for name, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
    }
    full = known.get(path.lower(), path)
    if "." not in full and ":" not in full:
        names = [found.rpartition(".")[2] for found in known.values()]
        hint = (
            did_you_mean(path, names)
            or f" Choose one of {', '.join(sorted(names))} of torch.optim, or package.module:Class."
        )
        raise ValueError(f"unknown optimizer {path!r}.{hint}")
    found = find_object(full)
    if not (inspect.isclass(found) and issubclass(found, torch.optim.Optimizer)):
        raise ValueError(f"optimizer {path!r} is {found!r}; it must be a torch optimizer")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {path!r} evaluates the loss several times per step, which strategies do "
            "not support; choose another one"
        )
    return full


def make_optimizer(
    factory: Factory, parameters: Iterable[torch.nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """Return an optimizer of `parameters`; torch's fused version if there is one, as it is faster.

    Args:
        factory: The optimizer's name or path, and its settings.
        parameters: The weights to train.
        lr: Learning rate.

    Raises:
        ValueError: If the optimizer is unknown or does not accept the settings.
    """
    full = find_optimizer(factory.path)
    ways = ("fused", "foreach", "differentiable", "capturable")
    settings = dict(factory.settings)
    if "fused" in inspect.signature(find_object(full)).parameters and not any(
        settings.get(way) is not None for way in ways[:2]
    ):
        settings["fused"] = not any(settings.get(way) for way in ways[2:])
    try:
        made: torch.optim.Optimizer = Factory(full, settings)(list(parameters), lr=lr)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer {factory.path} can't be made: {error}") from None
    return made


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?", or "" if no known name resembles `name`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f" Did you mean {near[0]!r}?" if near else ""


def from_registry(kind: str, name: str, registry: Mapping[str, Any], more: str = "") -> Any:
    """Return registry[name].

    Args:
        kind: Kind of object, for the error.
        name: A key of the registry.
        registry: Name -> object.
        more: Further choices, appended to the error's list of names.

    Raises:
        ValueError: If there is no such key; the message suggests the nearest one, or lists all.
    """
    if name in registry:
        return registry[name]
    hint = did_you_mean(name, registry) or f" Choose one of {', '.join(registry)}{more}."
    raise ValueError(f"unknown {kind} {name!r}.{hint}")
