"""What all image-classification streams have in common: where the pictures are, and which network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from everloop.agents import MLP, Classifier, ConvNet5, GrowingMLP, NestedConvNet, ProgressiveMLP, ResNet18
from everloop.agents.nested import PERIODS
from everloop.envs import Examples, IBlurry, Protocol, SplitClasses
from everloop.envs.data import load_images
from everloop.loop import World, likelihood_for
from everloop.scenarios.pretrain import pretrained_convolutions
from everloop.scenarios.stream import StreamScenario

Architecture = Literal["mlp", "convnet", "reduced-resnet18", "resnet18", "nested", "progressive", "growing"]


@dataclass
class ImageScenario(StreamScenario):
    """A data set of images with the networks of published tables.

    "nested" is a network like any other until `periods` say at which steps its blocks change.

    Args:
        architecture: The network, by name; network replaces it. mlp: fully connected; convnet: the
            5 convolutions of van de Ven et al. 2022; reduced-resnet18: 20 filters; resnet18;
            nested: convolutions in a continuum memory; progressive and growing: an mlp to which the
            strategies of these names can add.
        width: Units of a hidden layer, or filters of the first stage; if none, 400 in an mlp, the
            usual number in others.
        layers: Hidden layers of mlp, progressive and growing, 0 or more.
        norm: Of ResNets: batch as published, or group, which carries nothing from task to task.
        pretrain: A folder or Hub ID on which convnet's convolutions are trained first and then
            frozen; not at all if none. The result is kept in the cache.
        pretrain_epochs: Passes of that pre-training, 1 or more.
    """

    folder: ClassVar[str]
    """Name of the data's folder in EVERLOOP_DATA."""
    hub: ClassVar[str | None] = None
    """The data's id on the Hub."""

    architecture: Architecture = "mlp"
    width: int | None = None
    layers: int = 2
    norm: Literal["batch", "group"] = "batch"
    pretrain: str | None = None
    pretrain_epochs: int = 10

    def examples(self) -> tuple[Examples, Examples]:
        return load_images(self.given(self.folder, self.hub))

    def module(self, world: World, heads: int) -> nn.Module:
        return Classifier(self.backbone(world), likelihood_for(world.single_action_space).size(), tasks=heads)

    def backbone(self, world: World) -> nn.Module:
        """The network below the head."""
        shape = world.single_observation_space["image"].shape  # type: ignore[index]
        if self.layers < 0:
            raise ValueError(f"layers is {self.layers}, allowed: 0 or more")
        width: dict[str, Any] = {} if self.width is None else {"width": self.width}
        match self.architecture:
            case "mlp":
                return MLP(shape, self.layers * [width.get("width", 400)])
            case "convnet":
                return self._convnet(shape)
            case "reduced-resnet18":
                return ResNet18(shape, **{"width": 20, **width}, norm=self.norm)
            case "resnet18":
                return ResNet18(shape, **width, norm=self.norm)
            case "progressive":
                return ProgressiveMLP(shape, self.layers * [width.get("width", 400)])
            case "growing":
                return GrowingMLP(shape, self.layers * [width.get("width", 400)])
            case "nested":
                return NestedConvNet(shape, **width, periods=PERIODS if self.periods is None else self.periods)
        raise ValueError(f"architecture is {self.architecture!r}, allowed: {', '.join(get_args(Architecture))}")

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.network is not None:
            return unused | dict.fromkeys(["architecture", "width", "layers", "norm", "pretrain", "pretrain_epochs"], "network replaces it")
        if self.architecture not in ("mlp", "progressive", "growing"):
            unused["layers"] = f"architecture {self.architecture} has layers of its own"
        if "resnet18" not in self.architecture:
            unused["norm"] = "it is for ResNets"
        if self.architecture != "convnet":
            unused |= dict.fromkeys(["pretrain", "pretrain_epochs"], "it is for architecture convnet")
        elif self.pretrain is None:
            unused["pretrain_epochs"] = "pretrain names no data"
        return unused

    def _convnet(self, shape: tuple[int, ...]) -> ConvNet5:
        net = ConvNet5(shape, 2 * [2000 if self.width is None else self.width])
        if self.pretrain is not None:
            data = load_images(self.pretrain)
            if data[0].inputs.shape[1:] != shape:
                raise ValueError(f"images of {self.pretrain} have shape {data[0].inputs.shape[1:]}, allowed: {shape}")
            net.freeze_convolutions(pretrained_convolutions(data, self.pretrain_epochs))
        return net


@dataclass
class SplitImages(ImageScenario):
    """Each task holds some of the classes.

    Args:
        classes_per_task: A divisor of the number of classes.
        class_seed: Shuffles the classes before they are divided; in their own order if none.
        disjoint_ratio: 1 gives every class to one task; below 1 the stream is i-Blurry (Koh et
            al. 2022). Then this share of the classes belongs to one task each.
        blurry_ratio: With i-Blurry, the share of a class's examples that is scattered over the
            other tasks.
    """

    classes_per_task: int = 2
    class_seed: int | None = None
    disjoint_ratio: float = 1.0
    blurry_ratio: float = 0.1

    def without_effect(self) -> dict[str, str]:
        return super().without_effect() | ({"blurry_ratio": "disjoint_ratio is 1"} if self.disjoint_ratio == 1 else {})

    def protocol(self) -> Protocol:
        if self.disjoint_ratio == 1:
            return SplitClasses(self.classes_per_task, self.class_seed)
        if self.scenario_type != "class":
            raise ValueError(f"disjoint_ratio is {self.disjoint_ratio}, allowed for scenario_type {self.scenario_type}: 1")
        tasks, rest = divmod(len(self.loaded[0].classes), self.classes_per_task)
        if rest:
            raise ValueError(f"classes_per_task is {self.classes_per_task}, allowed: a divisor of the number of classes")
        return IBlurry(tasks, self.disjoint_ratio, self.blurry_ratio, self.class_seed or 0)
