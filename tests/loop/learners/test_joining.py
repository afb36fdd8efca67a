"""The strategies' losses reach the gradient once, whatever the network returns and is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loop_helpers import distance, same, weights
from torch import Tensor, nn

from everloop.loop import DER, ERACE, EWC, MAS, ICaRL, LaMAML, LwF, Replay, Strategy, attach


class Parts(nn.Module):
    """A network whose output has a form of choice; its head is registered first."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.head, self.body, self.unused = nn.Linear(6, 3), nn.Linear(4, 6), nn.Linear(6, 5)
        self.form = form

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Any:
        h = self.features(x)
        return self.form(self.head(h), h)


def plain(z: Tensor, h: Tensor) -> Any:
    return z


FORMS: dict[str, tuple[Any, dict[str, Any], Callable[[Parts, Tensor], Tensor]]] = {
    "plain": (plain, {}, lambda m, x: m(x)),
    "tuple": (lambda z, h: (h, z), {"outputs": 1}, lambda m, x: m(x)[1]),
    "dict": (lambda z, h: {"y": z, "h": h}, {"outputs": "y"}, lambda m, x: m(x)["y"]),
    "function": (
        lambda z, h: z[:, [2, 1, 0]],
        {"outputs": lambda z: z[:, [2, 1, 0]]},
        lambda m, x: m(x)[:, [2, 1, 0]],
    ),
    "in parts": (
        lambda z, h: 1 / 0,
        {"predict": lambda m, x: m.head(m.features(x))},
        lambda m, x: m.head(m.features(x)),
    ),
    "twice": (plain, {}, lambda m, x: (m(x), m(x))[0]),
    "second of two": (plain, {}, lambda m, x: (m(x), m(x))[1]),
    "mean of two": (plain, {}, lambda m, x: (m(x) + m(x)) / 2),
}
ADDING: list[Callable[[], Strategy]] = [
    lambda: LwF(2.0),
    lambda: EWC(5.0),
    lambda: DER(capacity=20, batch_size=4),
]
REPLACING: list[Callable[[], Strategy]] = [
    lambda: ERACE(capacity=20, batch_size=4),
    lambda: ICaRL(capacity=6, batch_size=4),
    lambda: LaMAML(capacity=20, batch_size=4, parts=2),
]


def trained(strategy: Strategy, form: str) -> Parts:
    made, settings, logits = FORMS[form]
    torch.manual_seed(0)
    module = Parts(made)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    loop = attach([strategy], module, optimizer, **settings)
    for task in range(2):
        x, y = torch.randn(8, 4), torch.randint(3, (8,))
        loop.begin_task(task)
        for _ in range(3):
            loop.observe(x, y)
            optimizer.zero_grad()
            F.cross_entropy(logits(module, x), y).backward()
            optimizer.step()
        loop.end_task([(x, y)])
    return module


@pytest.mark.parametrize("form", [form for form in FORMS if form != "plain"])
@pytest.mark.parametrize("make", ADDING)
def test_added_losses_do_not_depend_on_the_form(make: Callable[[], Strategy], form: str) -> None:
    assert distance(weights(trained(make(), form)), weights(trained(make(), "plain"))) < 1e-6


@pytest.mark.parametrize("form", ["tuple", "dict", "function", "twice"])
@pytest.mark.parametrize("make", REPLACING)
def test_replacing_losses_do_not_depend_on_the_form(
    make: Callable[[], Strategy], form: str
) -> None:
    assert distance(weights(trained(make(), form)), weights(trained(make(), "plain"))) < 1e-6


@pytest.mark.parametrize("form", ["in parts", "second of two"])
@pytest.mark.parametrize("make", REPLACING)
def test_a_loss_that_cannot_be_replaced_is_an_error_in_the_step(
    make: Callable[[], Strategy], form: str
) -> None:
    with pytest.raises(RuntimeError, match="replaces the loop's loss, but this loss does not dep"):
        trained(make(), form)


def test_the_head_is_the_layer_from_which_the_logits_come() -> None:
    module = Parts(plain)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loop = attach([EWC()], module, optimizer)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loop.begin_task(0)
    loop.observe(x, y)
    assert loop.last_layer() is module.head
    assert loop.classes == 3
    assert torch.equal(loop.features(loop.batch(x, y)), module.features(x))


def test_a_head_can_be_given_and_must_exist() -> None:
    module = Parts(lambda z, h: z + h[:, :3])  # two layers have a part in the logits
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loop = attach([ICaRL(capacity=5)], module, optimizer, head="head")
    loop.begin_task(0)
    loop.observe(x, y)
    assert loop.last_layer() is module.head
    loop = attach([ICaRL(capacity=5)], module, optimizer)
    loop.begin_task(0)
    loop.observe(x, y)
    with pytest.raises(ValueError, match="do not come from one linear layer; pass head="):
        loop.last_layer()
    with pytest.raises(ValueError, match=r"head is top, .* choose one of head, body, unused$"):
        attach([EWC()], module, optimizer, head="top")


def test_a_network_that_cannot_be_called_or_picked_from_is_refused_at_the_first_batch() -> None:
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    for module, message in (
        (Parts(lambda z, h: (z, h)), r"returns a tuple without 'logits'; pass outputs="),
        (nn.ModuleDict({"head": nn.Linear(4, 3)}), r"can't be called .*pass predict="),
        (nn.Conv1d(1, 1, 1), r"can't|returns"),
    ):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        loop = attach([MAS()], module, optimizer, likelihood="categorical")
        loop.begin_task(0)
        with pytest.raises(ValueError, match=message):
            loop.observe(x if isinstance(module, Parts) else {"x": x}, y)


@pytest.mark.parametrize("observed", [0, 1])
def test_steps_without_an_observed_batch_are_errors(observed: int) -> None:
    """Labels that Hugging Face's Trainer pops never reach the module."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            return self.layer(x)

    module = Labelled()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loop = attach([EWC()], module, optimizer, label_name="labels")
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loop.begin_task(0)
    for _ in range(observed):
        F.cross_entropy(module(x=x, labels=y), y).backward()
        optimizer.step()
    F.cross_entropy(module(x=x), y).backward()
    before = weights(module)
    with pytest.raises(
        RuntimeError, match=r"without .*call observe|observed batch; call begin_task, then ob"
    ):
        optimizer.step()
    assert same(weights(module), before)


def test_replayed_examples_alone_need_no_forward_pass_of_the_module() -> None:
    made, settings, logits = FORMS["in parts"]
    module = Parts(made)
    calls: list[int] = []
    module.body.register_forward_hook(lambda *_: calls.append(1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    loop = attach([Replay(capacity=9, batch_size=2)], module, optimizer, **settings)
    loop.begin_task(0)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loop.observe(x, y)  # the first batch is checked with one pass
    F.cross_entropy(logits(module, x), y).backward()
    optimizer.step()
    assert len(calls) == 2


def test_steps_of_another_optimizer_are_an_error_at_the_tasks_end() -> None:
    module = Parts(plain)
    first, second = (torch.optim.SGD(module.parameters(), lr=0.1) for _ in range(2))
    loop = attach([EWC()], module, first)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    loop.begin_task(0)
    loop.observe(x, y)
    F.cross_entropy(module(x), y).backward()
    second.step()
    with pytest.raises(RuntimeError, match=r"weights changed in task-0, but .* call move_to"):
        loop.end_task([(x, y)])
