"""The base of all image-classification streams: loading of the images, and the networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import nn

from everloop.agents import (
    MLP,
    Classifier,
    ConvNet5,
    GrowingMLP,
    NestedConvNet,
    ProgressiveMLP,
    ResNet18,
)
from everloop.agents.nested import PERIODS
from everloop.envs import Examples, IBlurry, SplitClasses, TaskSplit
from everloop.envs.data import load_images
from everloop.loop import World, likelihood_for
from everloop.scenarios.pretrain import pretrained_convolutions
from everloop.scenarios.stream import StreamScenario

Architecture = Literal[
    "mlp", "convnet", "reduced-resnet18", "resnet18", "nested", "progressive", "growing"
]


@dataclass
class ImageScenario(StreamScenario):
    """A data set of images with the networks of published tables.

    The architecture "nested" trains like any other network unless `periods` is set.

    Args:
        architecture: Name of a built-in network; the setting network replaces it with your own.
            mlp is fully connected. convnet has the 5 convolutions of van de Ven et al. 2022.
            reduced-resnet18 has 20 filters in its first stage, resnet18 has 64. nested has
            convolutions in a continuum memory. progressive and growing are an mlp to which the
            strategies progressive and growth add columns or units.
        width: Units of each hidden layer, or filters of the first stage, 1 or more. By default
            400 in mlp, progressive and growing, 2000 in convnet, 20 in reduced-resnet18, 64 in
            resnet18 and 32 in nested.
        layers: Number of hidden layers in mlp, progressive and growing, 0 or more.
        white: Value of a white pixel in mlp, above 0: 1, or 255 for unscaled pixels.
        norm: Normalization in ResNets: batch, as published, or group. Group norm carries no
            statistics from task to task.
        pretrain: Data for pre-training the convolutions of convnet: a folder or a Hub ID. The
            convolutions are then frozen, and stored in the cache. By default no pre-training.
        pretrain_epochs: Passes over the pre-training data, 1 or more.
    """

    folder: ClassVar[str]
    """Name of the data's folder in EVERLOOP_DATA."""
    hub: ClassVar[str | None] = None
    """The data's ID on the Hugging Face Hub, if it has one."""

    architecture: Architecture = "mlp"
    width: int | None = None
    layers: int = 2
    white: float = 1.0
    norm: Literal["batch", "group"] = "batch"
    pretrain: str | None = None
    pretrain_epochs: int = 10

    def examples(self) -> tuple[Examples, Examples]:
        return load_images(self.given(self.folder, self.hub))

    def module(self, world: World, heads: int) -> nn.Module:
        return Classifier(
            self.backbone(world), likelihood_for(world.single_action_space).size(), tasks=heads
        )

    def backbone(self, world: World) -> nn.Module:
        """The network below the head."""
        shape = world.single_observation_space["image"].shape  # type: ignore[index]
        if self.layers < 0:
            raise ValueError(f"layers is {self.layers}; it must be 0 or more")
        width: dict[str, Any] = {} if self.width is None else {"width": self.width}
        match self.architecture:
            case "mlp":
                return MLP(shape, self.layers * [width.get("width", 400)], self.white)
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
                return NestedConvNet(
                    shape, **width, periods=PERIODS if self.periods is None else self.periods
                )
        raise ValueError(
            f"architecture is {self.architecture!r}; choose one of "
            f"{', '.join(get_args(Architecture))}"
        )

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.network is not None:
            return unused | dict.fromkeys(
                ["architecture", "width", "layers", "white", "norm", "pretrain", "pretrain_epochs"],
                "network replaces it",
            )
        if self.architecture not in ("mlp", "progressive", "growing"):
            unused["layers"] = f"architecture {self.architecture} has a fixed number of layers"
        if self.architecture != "mlp":
            unused["white"] = "it is only for architecture mlp"
        if "resnet18" not in self.architecture:
            unused["norm"] = "it is only for ResNets"
        if self.architecture != "convnet":
            unused |= dict.fromkeys(
                ["pretrain", "pretrain_epochs"], "it is only for architecture convnet"
            )
        elif self.pretrain is None:
            unused["pretrain_epochs"] = "pretrain is not set"
        return unused

    def _convnet(self, shape: tuple[int, ...]) -> ConvNet5:
        net = ConvNet5(shape, 2 * [2000 if self.width is None else self.width])
        if self.pretrain is not None:
            data = load_images(self.pretrain)
            if data[0].inputs.shape[1:] != shape:
                raise ValueError(
                    f"images of {self.pretrain} have shape {data[0].inputs.shape[1:]}; "
                    f"pre-training needs images of shape {shape}"
                )
            net.freeze_convolutions(pretrained_convolutions(data, self.pretrain_epochs))
        return net


@dataclass
class SplitImages(ImageScenario):
    """Images whose classes are divided among the tasks.

    Args:
        classes_per_task: Classes in each task, 1 or more; it must divide the number of classes.
        class_seed: Seed for shuffling the classes before the split. By default the classes keep
            their order; i-Blurry shuffles with seed 0.
        groups: Classes of each task by name, or by number from 0, such as [[0,1,2,3],[4,5]]. It
            replaces classes_per_task and class_seed. A class may be in several groups or in none.
        disjoint_ratio: Share of classes that belong to one task only, from 0 to 1. 1 is a plain
            split. Below 1 the stream is i-Blurry (Koh et al. 2022); it needs scenario_type class.
        blurry_ratio: Share of each blurry class's examples that other tasks get, from 0 to 1. In
            i-Blurry, the blurry classes are those that belong to several tasks.
    """

    classes_per_task: int = 2
    class_seed: int | None = None
    groups: list[list[str]] | None = None
    disjoint_ratio: float = 1.0
    blurry_ratio: float = 0.1

    def without_effect(self) -> dict[str, str]:
        unused = super().without_effect()
        if self.disjoint_ratio == 1:
            unused["blurry_ratio"] = "disjoint_ratio is 1"
        if self.groups is not None:
            unused |= dict.fromkeys(["classes_per_task", "class_seed"], "groups replaces it")
        return unused

    def task_split(self) -> TaskSplit:
        if self.disjoint_ratio == 1:
            return SplitClasses(self.classes_per_task, self.class_seed, self.groups)
        if self.groups is not None:
            raise ValueError(
                f"groups is set and disjoint_ratio is {self.disjoint_ratio}; i-Blurry makes its "
                "own groups, so leave one of them out"
            )
        if self.scenario_type != "class":
            raise ValueError(
                f"disjoint_ratio is {self.disjoint_ratio}; it must be 1 with scenario_type "
                f"{self.scenario_type}"
            )
        tasks, rest = divmod(len(self.loaded[0].classes), self.classes_per_task)
        if rest:
            raise ValueError(
                f"classes_per_task is {self.classes_per_task}; it must divide the number of classes"
            )
        return IBlurry(tasks, self.disjoint_ratio, self.blurry_ratio, self.class_seed or 0)
