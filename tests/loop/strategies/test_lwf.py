"""LwF: its loss and gradient equal the written formula; past tasks; updates in a stream."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import (
    FixedLearner,
    FlatNet,
    distance,
    gradients,
    perturb,
    same,
    stream,
    vector_batch,
    weights,
)
from strategy_helpers import Named, after_gradient_step, gaussian_kl
from stub_helpers import Recorder
from torch import Tensor, nn

from everloop.agents import MLP, Classifier
from everloop.loop import (
    Batch,
    Categorical,
    Forward,
    Gaussian,
    LwF,
    SupervisedLearner,
    TokenCategorical,
    attach,
)

INPUTS = 3
CLASSES = 5
seeds = st.integers(0, 2**31)


class ManyHeads(nn.Module):
    """A hidden layer and one linear head per task; `task` selects the head of the prediction."""

    class Output(NamedTuple):
        prediction: Tensor
        value: Tensor | None
        heads: Tensor

    def __init__(self, tasks: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(INPUTS, 4)
        self.heads = nn.ModuleList(nn.Linear(4, outputs) for _ in range(tasks))
        self.task = 0

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(
        self, obs: dict[str, Tensor], state: Tensor, start: Tensor
    ) -> tuple[ManyHeads.Output, Tensor]:
        h = torch.tanh(self.hidden(obs["x"]))
        every = torch.stack([head(h) for head in self.heads], 2)
        return self.Output(every[:, :, self.task], None, every), state


def lwf_learner(likelihood: Any = None, outputs: int = CLASSES, heads: int = 0) -> FixedLearner:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, outputs))
    module = ManyHeads(heads, outputs) if heads else FlatNet(layers, "x")
    return FixedLearner(module.double(), likelihood or Categorical(outputs))  # type: ignore[arg-type]


def labelled(labels: Sequence[int], seed: int = 0) -> Batch:
    return replace(vector_batch(len(labels), INPUTS, 2, seed=seed), target=torch.tensor([labels]))


def pass_task(learner: FixedLearner, lwf: LwF, task: int, batches: Sequence[Batch]) -> nn.Module:
    """Pass through a task, perturbing the weights at each batch; returns the network at its end."""
    lwf.begin_task(Named(task), learner)
    for i, batch in enumerate(batches):
        lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
        perturb(learner.module, 100 * task + i)
    lwf.end_task(Named(task), list(batches), learner)
    return copy.deepcopy(learner.module)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum p log(p / q) of two softmaxes."""
    p, q = p.exp() / p.exp().sum(-1, keepdim=True), q.exp() / q.exp().sum(-1, keepdim=True)
    return (p * (p / q).log()).sum(-1)


def assert_same_gradients(a: Tensor | None, b: Tensor, module: nn.Module) -> None:
    for x, y in zip(gradients(a, module), gradients(b, module), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


# the loss


@settings(deadline=None, max_examples=30)
@given(
    strength=st.floats(0.1, 5.0),
    temperature=st.floats(0.5, 4.0),
    tasks=st.lists(
        st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=4), min_size=1, max_size=3
    ),
    fresh=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=4),
    outputs=st.sampled_from(["past", "all"]),
    seed=seeds,
)
def test_lwf_equals_its_formula_over_past_or_all_outputs(
    strength: float,
    temperature: float,
    tasks: list[list[int]],
    fresh: list[int],
    outputs: str,
    seed: int,
) -> None:
    """strength * past tasks * mean T^2 KL(softmax(z* / T) || softmax(z / T)), with z over the old
    classes or over all.
    """
    learner, lwf = lwf_learner(), LwF(strength, temperature, outputs)
    for task, labels in enumerate(tasks):
        then = pass_task(learner, lwf, task, [labelled(labels, seed)])
    perturb(learner.module, seed)
    lwf.begin_task(Named(len(tasks)), learner)
    batch = labelled(fresh, seed + 1)
    old = (
        sorted({label for labels in tasks for label in labels})
        if outputs == "past"
        else list(range(CLASSES))
    )
    for _ in range(2):  # by the second pass LwF has seen the fresh classes; they are still new
        loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
        z_then = learner.outputs(batch, then).detach()[..., old]
        z = learner.outputs(batch)[..., old]
        written = (
            strength
            * len(tasks)
            * temperature**2
            * divergence(z_then / temperature, z / temperature).mean()
        )
        torch.testing.assert_close(loss, written, rtol=1e-9, atol=1e-9)
        assert_same_gradients(loss, written, learner.module)


@settings(deadline=None, max_examples=20)
@given(
    strength=st.floats(0.1, 5.0),
    temperature=st.floats(0.5, 4.0),
    ended=st.permutations(range(4)),
    seed=seeds,
)
def test_with_one_head_per_task_lwf_sums_over_past_heads(
    strength: float, temperature: float, ended: list[int], seed: int
) -> None:
    """Every head covers all classes, so all count. The current and future heads get no gradient."""
    learner, lwf = lwf_learner(heads=5), LwF(strength, temperature)
    for task in ended[:3]:
        learner.module.task = task
        then = pass_task(learner, lwf, task, [labelled([0, 1], seed)])
    perturb(learner.module, seed)
    learner.module.task = ended[3]
    lwf.begin_task(Named(ended[3]), learner)
    batch = labelled([1, 0, 1], seed + 1)
    loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    h, h_then = (torch.tanh(net.hidden(batch.obs["x"][0])) for net in (learner.module, then))  # type: ignore[operator]
    written = torch.zeros((), dtype=torch.float64)
    for task in ended[:3]:
        z_then, z = then.heads[task](h_then).detach(), learner.module.heads[task](h)  # type: ignore[index, operator]
        written = (
            written
            + strength * temperature**2 * divergence(z_then / temperature, z / temperature).mean()
        )
    found = gradients(loss, learner.module)
    for a, b in zip(found, gradients(written, learner.module), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    names = [name for name, _ in learner.module.named_parameters()]
    assert {
        names[i].split(".")[1] for i, g in enumerate(found) if "heads" in names[i] and g.any()
    } == {str(t) for t in ended[:3]}


def test_at_high_temperature_lwf_is_squared_error_of_centred_outputs() -> None:
    """T^2 KL -> sum (d - mean d)^2 / 2P with d = z - z* (Hinton et al. 2015, section 2.1)."""
    learner, lwf = lwf_learner(), LwF(1.0, temperature=1e4)
    batch = labelled(list(range(CLASSES)))
    then = pass_task(learner, lwf, 0, [batch])
    perturb(learner.module, 7)
    d = (learner.outputs(batch) - learner.outputs(batch, then)).detach()[0]
    expected = ((d - d.mean(-1, keepdim=True)) ** 2).sum(-1).mean() / (2 * CLASSES)
    loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-2)  # type: ignore[union-attr]


def test_gaussian_lwf_is_the_kl_divergence_without_temperature() -> None:
    learner, lwf = lwf_learner(Gaussian(2), outputs=4), LwF(0.7, temperature=3.0)
    batch = replace(labelled([0, 1, 0]), target=None)
    then = pass_task(learner, lwf, 0, [batch])
    perturb(learner.module, 7)
    loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    z_then, z = learner.outputs(batch, then).detach(), learner.outputs(batch)
    written = 0.7 * gaussian_kl(z_then, z)
    assert_same_gradients(loss, written, learner.module)


def test_lwf_on_tags_is_the_mean_over_tokens_with_a_tag() -> None:
    learner = lwf_learner(TokenCategorical(2, 3), outputs=6)
    lwf = LwF(0.7, temperature=3.0)
    T = 3.0
    batch = replace(labelled([0, 1]), target=torch.tensor([[[0, 1], [2, -1]]]))
    then = pass_task(learner, lwf, 0, [batch])
    perturb(learner.module, 7)
    loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    z_then, z = learner.outputs(batch, then).detach(), learner.outputs(batch)
    each = [
        divergence(z_then[..., token] / T, z[..., token] / T)
        for token in (slice(0, 3), slice(3, 6))
    ]
    tagged = torch.stack([each[0][0, 0], each[1][0, 0], each[0][0, 1]])
    written = 0.7 * T**2 * tagged.mean()
    torch.testing.assert_close(loss, written)
    assert_same_gradients(loss, written, learner.module)


def test_lwf_on_tags_with_heads_sums_the_means_of_past_heads() -> None:
    learner, lwf = lwf_learner(TokenCategorical(2, 3), outputs=6, heads=3), LwF(0.7, 1.0)
    batch = replace(labelled([0, 1]), target=torch.tensor([[[0, 1], [2, -1]]]))
    for task in (0, 2):
        then = pass_task(learner, lwf, task, [batch])
    perturb(learner.module, 7)
    output = learner.forward(batch)
    loss = lwf.loss(Forward(batch, output), None, learner)
    heads, heads_then = output.heads, learner.forward(batch, then).heads.detach()
    written = torch.zeros((), dtype=torch.float64)
    for task in (0, 2):
        z_then, z = (x[0, :, task].unflatten(-1, (2, 3)) for x in (heads_then, heads))
        each = divergence(z_then, z)
        written = written + 0.7 * (each[0, 0] + each[0, 1] + each[1, 0]) / 3
    torch.testing.assert_close(loss, written)
    assert_same_gradients(loss, written, learner.module)


# past tasks and the teacher


def test_lwf_has_no_loss_before_the_first_task_ends() -> None:
    learner = lwf_learner()
    lwf = LwF()
    batch = labelled([0, 1])
    lwf.begin_task(Named(0), learner)
    assert lwf.loss(Forward(batch, learner.forward(batch)), None, learner) is None


def test_a_returning_task_is_not_distilled_while_it_is_learned() -> None:
    """If one of two past tasks returns, the loss is halved; if the only one returns, it is None."""
    learner, lwf = lwf_learner(), LwF()
    every = labelled(list(range(CLASSES)))
    pass_task(learner, lwf, 0, [every])
    lwf.begin_task(Named(0), learner)
    assert lwf.loss(Forward(every, learner.forward(every)), None, learner) is None
    pass_task(learner, lwf, 0, [every])
    pass_task(learner, lwf, 1, [every])
    perturb(learner.module, 5)

    def loss() -> float:
        found = lwf.loss(Forward(every, learner.forward(every)), None, learner)
        return float(found.detach())  # type: ignore[union-attr]

    lwf.begin_task(Named(2), learner)
    two = loss()
    lwf.begin_task(Named(1), learner)
    assert two > 1e-3
    assert loss() == pytest.approx(two / 2, rel=1e-12)


def test_the_teacher_is_the_network_at_the_last_tasks_end() -> None:
    learner = lwf_learner()
    lwf = LwF()
    batch = labelled([0, 1, 2, 3, 4])
    pass_task(learner, lwf, 0, [batch])
    then = pass_task(learner, lwf, 1, [batch])
    perturb(learner.module, 3)
    assert lwf.teacher.module is not None
    assert same(weights(lwf.teacher.module), weights(then))
    assert not same(weights(lwf.teacher.module), weights(learner.module))


@pytest.mark.parametrize("attached", [False, True], ids=["our learner", "attached"])
def test_the_teacher_is_in_evaluation_mode(attached: bool) -> None:
    """Right after a task its outputs are those of the network without dropout."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(INPUTS, 40), nn.Dropout(0.5), nn.Linear(40, CLASSES)).double()
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)
    learner: Any = (
        attach([], layers, optimizer)
        if attached
        else FixedLearner(FlatNet(layers, "x"), Categorical(CLASSES), optimizer)
    )
    lwf, batch = LwF(), labelled([0, 1, 2, 3])
    batch = learner.batch(batch.obs["x"][0], batch.target[0]) if attached else batch  # type: ignore[index]
    lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    lwf.end_task(Named(0), [batch], learner)
    with learner.evaluating():
        loss = lwf.loss(Forward(batch, learner.forward(batch)), None, learner)
    assert loss is not None
    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_saved_and_loaded_states_do_not_change_afterwards() -> None:
    """Class 4 comes after the state is saved, so a restored strategy does not know it."""
    learner, lwf = lwf_learner(), LwF()
    pass_task(learner, lwf, 0, [labelled([0, 1])])
    state = lwf.state_dict()
    later = [LwF(), LwF()]
    for other in later:
        other.load_state_dict(state, learner)
    for used in (lwf, later[0]):
        pass_task(learner, used, 1, [labelled([4])])
    pass_task(learner, later[1], 1, [labelled([2])])
    assert [other.old.tolist() for other in later] == [
        [True, True, False, False, True],
        [True, True, True, False, False],
    ]  # type: ignore[union-attr]


# training


@pytest.mark.parametrize("heads", [1, 5], ids=["one head", "one head per task"])
def test_a_stream_update_descends_the_task_loss_plus_lwf(heads: int) -> None:
    world = {"label_space": "within_task", "task_cue": True} if heads > 1 else {}
    torch.manual_seed(0)
    module = Classifier(MLP((8, 8, 1), (6,)), 2 if heads > 1 else 10, tasks=heads)
    lwf, T = LwF(0.7, temperature=3.0), 3.0
    learner = SupervisedLearner(
        module, stream(**world), optimizer=torch.optim.SGD(module.parameters(), lr=0.05)
    )
    last = Recorder()
    learner.attach([lwf, last])
    for task in (0, 1):
        lwf.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        lwf.end_task(learner.world.tasks[task], [], learner)
    then = copy.deepcopy(learner.module)
    lwf.begin_task(learner.world.tasks[2], learner)
    learner.learn([2], 64)
    before = copy.deepcopy(learner.module)
    learner.learn([2], 8)
    batch = last.updates[-1]
    now, old = learner.forward(batch, before), learner.forward(batch, then)
    plain = nn.functional.cross_entropy(now.prediction[0], batch.target[0])  # type: ignore[index]
    if heads > 1:
        pairs = [(old.heads[0, :, k].detach(), now.heads[0, :, k]) for k in (0, 1)]  # type: ignore[index]
    else:
        pairs = 2 * [(old.prediction[0, :, :4].detach(), now.prediction[0, :, :4])]
    total = plain + 0.7 * T**2 * sum(divergence(p / T, q / T).mean() for p, q in pairs)
    reached = weights(learner.module)
    assert distance(reached, after_gradient_step(before, total, 0.05)) < 1e-6
    assert distance(reached, after_gradient_step(before, plain, 0.05)) > 1e-4
