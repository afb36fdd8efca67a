"""Objects by their names: from a registry, or by the path of a class of one's own."""

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
    """A class or function by its path, with keyword arguments: a setting that makes an object.

    Args:
        path: "package.module:Name" or "package.module.Name".
        settings: Its keyword arguments; what is not among them keeps its default.
    """

    path: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, *args: Any, **more: Any) -> Any:
        """Make the object from positional arguments, the settings, and `more`, which wins."""
        return find_object(self.path)(*args, **{**self.settings, **more})


def factories(what: type[Any]) -> list[str]:
    """The fields of a dataclass that are classes by name."""
    hints = get_type_hints(what)
    return [
        field.name
        for field in fields(what)
        if Factory in (hints[field.name], *get_args(hints[field.name]))
    ]


def first_required(what: Callable[..., Any]) -> str | None:
    """The name of the first positional parameter that has no default; None where there is none."""
    for name, parameter in inspect.signature(what).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            return name if parameter.default is parameter.empty else None
    return None


def is_path(name: str) -> bool:
    """True for the path of a class of one's own, "package.module:Name", as against a registered
    name.
    """
    return ":" in name


def find_object(path: str) -> Callable[..., Any]:
    """The class or function at `path`; the working folder is searched first.

    Raises:
        ValueError: In one line, where it can't be imported or called.
    """
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module or not name:
        raise ValueError(f"{path!r} is no path of a class; write package.module:Name")
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
        raise ValueError(f"{path!r} is {found!r}, which is neither a class nor a function")
    return found  # type: ignore[no-any-return]


def import_module(module: str, wanted: str = "") -> None:
    """Import `module`, looking into the working folder first.

    Raises ValueError that names what was `wanted`.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        importlib.import_module(module)
    except Exception as error:  # the module is the user's own: anything can happen in it
        raise ValueError(
            f"{wanted or module!r} can't be imported: {type(error).__name__}: {error}"
        ) from error


def find_optimizer(path: str) -> str:
    """The full path of an optimizer: that of torch where `path` is a bare name such as "adamw" or
    "SGD".

    Raises:
        ValueError: For what is no optimizer, or one whose step needs a closure.
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
        raise ValueError(f"optimizer {path!r} is {found!r}, which is no torch optimizer")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"optimizer {path!r} evaluates the loss several times a step, which strategies can't "
            "follow; choose another one"
        )
    return full


def make_optimizer(
    factory: Factory, parameters: Iterable[torch.nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    """An optimizer of `parameters`, in torch's fused form where there is one, which is faster on
    CPUs too.

    Raises:
        ValueError: For settings that the optimizer does not take.
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
    """ "; did you mean 'x'?", or nothing where nothing known resembles `name`."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f" Did you mean {near[0]!r}?" if near else ""


def from_registry(kind: str, name: str, registry: Mapping[str, Any], more: str = "") -> Any:
    """registry[name]. Raises ValueError that names the nearest one, or all."""
    if name in registry:
        return registry[name]
    hint = did_you_mean(name, registry) or f" Choose one of {', '.join(registry)}{more}."
    raise ValueError(f"unknown {kind} {name!r}.{hint}")
