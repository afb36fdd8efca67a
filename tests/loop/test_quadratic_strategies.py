"""Quadratic pulls on weights: their gradients by autograd, their fixed points in closed form, what they are made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_helpers import FixedLearner, FlatNet, distance, keyword_grid, vector_batch, weights
from torch import Tensor, nn

from everloop.loop import Batch, Categorical, NotFiniteError, Strategy, diagonal_fisher
from everloop.loop.strategies import EWC, L2, KroneckerEWC, L2Init
from everloop.loop.strategies.quadratic import Quadratic, first_examples

Quadratics = list[tuple[dict[str, Tensor], dict[str, Tensor]]]  # (precision, center) of each


class Named(NamedTuple):
    """Any task at all."""

    id: int = 0
    name: str = "any"


class Untold(FixedLearner):
    """Has no world that could tell the task."""

    told = False


class Parabola(Untold):
    """loss = 1/2 sum_i steepness_i (w_i - best_i)^2, whatever the batch; 0 everywhere at first."""

    steepness: Any = 0.0
    best: Any = 0.0

    def loss(self, batch: Batch | None = None) -> Tensor:
        return sum((0.5 * self.steepness * (p - self.best) ** 2).sum() for p in self.module.parameters())  # type: ignore[return-value]


class InTurn(Categorical):
    """Draws the classes in turn: the label of an example is its place in the batch."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.arange(p[..., 0].numel()).reshape(p.shape[:-1]) % self.classes


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def one_layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3, bias)


def learner_of(layers: nn.Module, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, kind: Any = Untold) -> Any:
    module = FlatNet(layers, "x").double()
    return kind(module, InTurn(3), optimizer(module.parameters()) if optimizer else None)


def like(learner: FixedLearner, low: float, high: float, seed: int) -> dict[str, Tensor]:
    """Random numbers in [low, high], one for each weight."""
    g = torch.Generator().manual_seed(seed)
    return {n: low + (high - low) * torch.rand(p.shape, generator=g, dtype=p.dtype) for n, p in learner.weights().items()}


def move(learner: FixedLearner, seed: int) -> dict[str, Tensor]:
    """Put the weights elsewhere, and return where they are now."""
    there = like(learner, -1.0, 1.0, seed)
    with torch.no_grad():
        for name, p in learner.weights().items():
            p.copy_(there[name])
    return there


def penalty(learner: FixedLearner, quadratics: Quadratics) -> Tensor:
    """1/2 sum_k sum_i P_ki (w_i - c_ki)^2."""
    w = learner.weights()
    return sum(0.5 * (P[n] * (w[n] - c[n]) ** 2).sum() for P, c in quadratics for n in P)  # type: ignore[return-value]


def edited(learner: FixedLearner, strategy: Strategy, already: float = 0.5) -> list[Tensor]:
    """What the strategy adds to a gradient that is there already."""
    for p in learner.weights().values():
        p.grad = torch.full_like(p, already)
    strategy.edit_gradients(learner, None)
    return [p.grad - already for p in learner.weights().values() if p.grad is not None]


def descend(learner: Any, batch: Batch | None, steps: int) -> None:
    for _ in range(steps):
        learner.updater.step(learner.loss(batch))


def gradient(learner: FixedLearner, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(learner.weights().values())))


numbers = st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3)
precisions = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e3)), min_size=3, max_size=3)


@settings(deadline=None, max_examples=30)
@given(parts=st.lists(st.tuples(precisions, numbers), min_size=1, max_size=4), places=st.lists(numbers, min_size=2, max_size=2))
def test_a_sum_of_quadratics_is_one_quadratic(parts: list[tuple[list[float], list[float]]], places: list[list[float]]) -> None:
    """Their difference is the same number everywhere; where nothing holds a weight, it is free."""
    one = Quadratic()
    for P, c in parts:
        one.add({"w": torch.tensor(P, dtype=torch.float64)}, {"w": torch.tensor(c, dtype=torch.float64)})
    x, y = torch.tensor(places, dtype=torch.float64)
    P, c = torch.tensor(parts, dtype=torch.float64).unbind(1)

    def apart(w: Tensor) -> Tensor:
        return (P * (w - c) ** 2).sum(0) - one.precision["w"] * (w - one.center["w"]) ** 2

    torch.testing.assert_close(apart(x), apart(y), rtol=1e-9, atol=1e-9 * float(P.max() + 1))
    assert torch.equal(one.precision["w"] == 0, (P == 0).all(0))
    torch.testing.assert_close(one.precision["w"] * (x - one.center["w"]), (P * (x - c)).sum(0), rtol=1e-9, atol=1e-9 * float(P.max() + 1))


def test_one_anchor_for_all_forgets_old_centers_and_discounts_old_precisions() -> None:
    one = Quadratic()
    for P, c in ((8.0, 1.0), (2.0, 5.0), (1.0, -3.0)):
        one.move({"w": torch.tensor([P])}, {"w": torch.tensor([c])}, decay=0.5)
    assert one.precision["w"].tolist() == [0.5 * (0.5 * 8 + 2) + 1]
    assert one.center["w"].tolist() == [-3.0]


@pytest.mark.parametrize("pull", ["pull", "pull_implicitly"])
def test_weights_that_no_quadratic_knows_are_not_touched(pull: str) -> None:
    learner, one = learner_of(two_layers()), Quadratic()
    known, unknown = list(learner.weights())[:2], list(learner.weights())[2:]
    one.add({n: torch.ones_like(learner.weights()[n]) for n in known}, {n: torch.full_like(learner.weights()[n], 9.0) for n in known})
    before = {n: p.detach().clone() for n, p in learner.weights().items()}
    for p in learner.weights().values():
        p.grad = torch.zeros_like(p)
    getattr(one, pull)(learner, 2.0)
    now = {n: p.grad if pull == "pull" else p.detach() - before[n] for n, p in learner.weights().items()}
    assert all(not bool(now[n].any()) for n in unknown)
    assert all(bool((now[n] != 0).all()) for n in known)


def test_the_first_examples_are_the_first() -> None:
    batches = vector_batch(20, 2, 3).split(8)
    taken = first_examples(batches, 11)
    assert [len(batch) for batch in taken] == [8, 3]
    assert torch.equal(torch.cat([batch.obs["x"] for batch in taken], 1), vector_batch(20, 2, 3).obs["x"][:, :11])


# L2 and L2Init


def test_l2_holds_to_the_last_tasks_weights_and_to_no_earlier_ones() -> None:
    learner, strategy = learner_of(two_layers()), L2(0.7)
    assert not any(bool(g.any()) for g in edited(learner, strategy))  # nothing to hold to before the first task's end
    for task in range(3):
        move(learner, 10 + task)
        strategy.begin_task(Named(task), learner)
        last = move(learner, 20 + task)
        strategy.end_task(Named(task), learner, [])
    move(learner, 30)
    ones = {n: torch.ones_like(c) for n, c in last.items()}
    expected = [0.7 * g for g in gradient(learner, penalty(learner, [(ones, last)]))]
    assert distance(edited(learner, strategy), expected) < 1e-14
    assert distance(expected, [0.7 * (w - c) for w, c in zip(weights(learner.module), last.values(), strict=True)]) < 1e-14


def test_l2_init_holds_to_the_very_first_weights_after_any_number_of_tasks() -> None:
    learner, strategy = learner_of(two_layers()), L2Init(0.7)
    first = move(learner, 0)
    for task in range(3):
        strategy.begin_task(Named(task), learner)
        assert distance(edited(learner, strategy), [2 * 0.7 * (p.detach() - first[n]) for n, p in learner.weights().items()]) < 1e-14
        move(learner, 20 + task)
        strategy.end_task(Named(task), learner, [])
    loss = 0.7 * sum(((p - first[n]) ** 2).sum() for n, p in learner.weights().items())
    assert distance(edited(learner, strategy), gradient(learner, loss)) < 1e-13


def test_l2_init_anchors_weights_that_come_later_where_they_come() -> None:
    layers = nn.Sequential(nn.Linear(2, 2))
    learner, strategy = learner_of(layers), L2Init(0.5)
    first = move(learner, 0)
    strategy.begin_task(Named(0), learner)
    layers.append(nn.Linear(2, 2).double())
    late = move(learner, 1)
    strategy.begin_task(Named(1), learner)
    now = move(learner, 2)
    center = late | first
    assert list(center) == ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]
    assert distance(edited(learner, strategy), [now[n] - center[n] for n in center]) < 1e-14
    assert distance(list(first.values()), [late[n] for n in first]) > 0.1


@pytest.mark.parametrize(("strategy", "rate"), [(L2(0.6), 0.6), (L2Init(0.6), 1.2)], ids=["l2", "l2 init"])
def test_where_the_loss_is_flat_weights_return_geometrically(strategy: Any, rate: float) -> None:
    """w - c shrinks by 1 - lr * rate with every step."""
    learner = learner_of(two_layers(), lambda p: torch.optim.SGD(p, lr=0.25), Parabola)
    center = move(learner, 0)
    learner.attach([strategy])
    strategy.begin_task(Named(), learner)
    strategy.end_task(Named(), learner, [])
    start = move(learner, 1)
    descend(learner, None, 7)
    expected = [center[n] + (1 - 0.25 * rate) ** 7 * (start[n] - center[n]) for n in start]
    assert distance(weights(learner.module), expected) < 1e-14


# EWC with an implicit step

SGD = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731
ADAM = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731


def grouped(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.7}], lr=0.03)


@pytest.mark.parametrize("strength", [0.5, 40.0, 1e9])
@pytest.mark.parametrize("optimizer", [SGD, ADAM, grouped], ids=["sgd", "adam", "a rate for each group"])
def test_a_proximal_step_follows_the_optimizers_own(optimizer: Any, strength: float) -> None:
    """w <- (w + lr lambda P c) / (1 + lr lambda P), after the step that would be taken without it."""
    learner = learner_of(two_layers(), optimizer, Parabola)
    learner.steepness, learner.best = 3.0, 2.0
    plain = copy.deepcopy(learner)
    plain.attach([])
    strategy = EWC(strength, proximal=True)
    P, c = like(learner, 0.0, 2.0, 1), like(learner, -1.0, 1.0, 2)
    strategy.anchor.add(P, c)
    learner.attach([strategy])
    rates = {p: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    for _ in range(3):
        plain.module.load_state_dict(learner.module.state_dict())
        for one in (learner, plain):
            one.updater.step(one.loss())
        w = plain.weights()
        lr = {n: rates[p] for n, p in learner.weights().items()}
        expected = [(w[n].detach() + lr[n] * strength * P[n] * c[n]) / (1 + lr[n] * strength * P[n]) for n in w]
        assert distance(weights(learner.module), expected) < 1e-12


def test_a_proximal_step_minimises_distance_and_penalty_together() -> None:
    """d/dv [ |v - w|^2 / (2 lr) + lambda / 2 P (v - c)^2 ] = 0 at the weights after it."""
    learner, strategy = learner_of(two_layers(), grouped), EWC(5.0, proximal=True)
    P, c = like(learner, 0.0, 2.0, 1), like(learner, -1.0, 1.0, 2)
    strategy.anchor.add(P, c)
    before = move(learner, 3)
    for p in learner.module.parameters():
        p.grad = torch.zeros_like(p)  # a weight without a gradient is left alone
    strategy.after_step(learner)
    rates = {p: group["lr"] for group in learner.optimizer.param_groups for p in group["params"]}
    way = sum(((p - before[n]) ** 2).sum() / (2 * rates[p]) for n, p in learner.weights().items())
    assert max(float(g.abs().max()) for g in gradient(learner, way + 5.0 * penalty(learner, [(P, c)]))) < 1e-12
    assert distance(weights(learner.module), list(before.values())) > 0.1


@pytest.mark.parametrize("proximal", [True, False])
def test_a_proximal_pull_is_no_part_of_the_gradient_and_an_explicit_one_nothing_else(proximal: bool) -> None:
    learner, strategy = learner_of(two_layers()), EWC(5.0, proximal=proximal)
    strategy.anchor.add(like(learner, 1.0, 2.0, 1), like(learner, 2.0, 3.0, 2))
    pulls = edited(learner, strategy)
    before = weights(learner.module)
    strategy.after_step(learner)
    assert any(bool(g.any()) for g in pulls) is not proximal
    assert (distance(weights(learner.module), before) > 0.1) is proximal


def test_a_proximal_pull_cannot_diverge_where_an_explicit_one_does() -> None:
    """With strength 1e12 the weights stand where the last task left them; an explicit step overshoots ever further."""
    batch, new = vector_batch(30, 4, 3), vector_batch(30, 4, 3, seed=1)
    learner, explicit = learner_of(one_layer()), learner_of(one_layer())
    for one, proximal in ((learner, True), (explicit, False)):
        strategy = EWC(1e12, fisher="exact", proximal=proximal)
        one.attach([strategy])
        strategy.end_task(Named(), one, [batch])
        assert min(float(P.min()) for P in strategy.anchor.precision.values()) > 0.01
    center = weights(learner.module)
    descend(learner, new, 50)
    assert distance(weights(learner.module), center) < 1e-10
    with pytest.raises(NotFiniteError):
        descend(explicit, new, 50)
    assert max(float(w.abs().max()) for w in weights(explicit.module)) > 1e100


@pytest.mark.parametrize("strength", [0.3, 1.0, 1e4])
@pytest.mark.parametrize("proximal", [True, False])
def test_two_quadratics_meet_in_their_weighted_mean(proximal: bool, strength: float) -> None:
    """The minimum of 1/2 H (w - b)^2 + lambda / 2 P (w - c)^2 is (H b + lambda P c) / (H + lambda P), by either pull."""
    lr = 0.5 if proximal else 1 / (2.0 + strength)  # the explicit one wants lr (H + lambda P) < 2
    learner = learner_of(nn.Linear(2, 2), lambda p: torch.optim.SGD(p, lr=lr), Parabola)
    H, b = learner.steepness, learner.best = 2.0, 1.0
    P, c = like(learner, 0.3, 1.0, 1), like(learner, -3.0, 3.0, 2)
    strategy = EWC(strength, proximal=proximal)
    strategy.anchor.add(P, c)
    learner.attach([strategy])
    descend(learner, None, 200)
    best = [(H * b + strength * P[n] * c[n]) / (H + strength * P[n]) for n in P]
    assert distance(weights(learner.module), best) < 1e-9


# Kronecker-factored EWC


def factors(learner: FixedLearner, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """A, G and weights of both layers of `two_layers`, the bias as a last column, by the chain rule."""
    first, second = learner.module.layers[0], learner.module.layers[2]
    with torch.no_grad():
        x = batch.obs["x"][0]
        h = torch.tanh(first(x))
        label = torch.arange(len(x)) % 3
        g2 = F.one_hot(label, 3) - torch.softmax(second(h), -1)
        g1 = (g2 @ second.weight) * (1 - h**2)
        one = torch.ones(len(x), 1, dtype=x.dtype)
        a1, a2 = torch.cat([x, one], 1), torch.cat([h, one], 1)
        return [(a.T @ a / len(x), g.T @ g / len(x), stacked(layer).clone()) for a, g, layer in ((a1, g1, first), (a2, g2, second))]


def stacked(layer: nn.Linear) -> Tensor:
    """(o, i + 1), the bias as the last column."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1)


def vec(matrix: Tensor) -> Tensor:
    """Columns on top of each other."""
    return matrix.T.reshape(-1)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_the_kronecker_pull_is_the_gradient_of_the_quadratic_form_written_out(tasks: int) -> None:
    """strength / 2 sum_k vec(W - W_k)' (A_k x G_k) vec(W - W_k), with the Kronecker products in full."""
    learner, strategy = learner_of(two_layers()), KroneckerEWC(3.0, examples=19)
    learner.attach([strategy])
    ended = []
    for task in range(tasks):
        move(learner, task)
        batch = vector_batch(24, 4, 3, seed=task)
        strategy.end_task(Named(task), learner, [batch])
        ended.append(factors(learner, batch[:19]))
    move(learner, 9)
    loss = torch.zeros((), dtype=torch.float64)
    for then in ended:
        for layer, (A, G, W) in zip((learner.module.layers[0], learner.module.layers[2]), then, strict=True):
            d = vec(stacked(layer) - W)
            loss = loss + 0.5 * 3.0 * d @ torch.kron(A, G) @ d
    expected = gradient(learner, loss)
    assert distance(edited(learner, strategy), expected) < 1e-10
    assert min(float(g.abs().max()) for g in expected) > 1e-2


def test_kronecker_factors_do_not_depend_on_how_examples_are_batched() -> None:
    """Twelve at once, or three and nine: the labels in turn are the same in both."""
    learner, batch = learner_of(two_layers()), vector_batch(12, 4, 3)
    pulls = []
    for batches in ([batch], [batch[:3], batch[3:]]):
        move(learner, 0)
        strategy = KroneckerEWC(1.0)
        strategy.end_task(Named(), learner, batches)
        move(learner, 1)
        pulls.append(edited(learner, strategy))
    assert distance(*pulls) < 1e-13


def full_fisher(learner: FixedLearner, batch: Batch, parameters: list[nn.Parameter]) -> Tensor:
    """The mean over examples of u u', u an example's gradient of log p with all weights of `parameters` in a row."""
    log_p = learner.log_likelihood(batch, torch.Generator())
    rows = [torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters, retain_graph=True)]) for value in log_p]
    u = torch.stack(rows)
    return u.T @ u / len(u)


def assert_pull_of_the_full_fisher(learner: FixedLearner, batch: Batch, layers: list[nn.Linear]) -> None:
    """Each layer's pull is strength F (w - w*), F with all of the layer's weights' covariances."""
    fishers = [full_fisher(learner, batch, list(layer.parameters())) for layer in layers]
    assert all(float((f - torch.diag(torch.diag(f))).abs().max()) > 1e-3 for f in fishers)  # the diagonal would not do
    strategy = KroneckerEWC(2.0)
    learner.attach([strategy])
    strategy.end_task(Named(), learner, [batch])
    then = [torch.cat([p.detach().flatten() for p in layer.parameters()]) for layer in layers]
    move(learner, 5)
    edited(learner, strategy, already=0.0)
    for layer, fisher, w in zip(layers, fishers, then, strict=True):
        now = torch.cat([p.detach().flatten() for p in layer.parameters()])
        pull = torch.cat([p.grad.flatten() for p in layer.parameters() if p.grad is not None])
        torch.testing.assert_close(pull, 2.0 * fisher @ (now - w), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_kronecker_factors_are_the_full_fisher_of_a_layer_if_all_examples_share_its_input(bias: bool) -> None:
    """mean of (a x g)(a x g)' = a a' x mean of g g'."""
    learner = learner_of(one_layer(bias))
    x = vector_batch(1, 4, 3).obs["x"].repeat(1, 7, 1)
    assert_pull_of_the_full_fisher(learner, Batch({"x": x}, torch.ones(1, 7, dtype=torch.bool)), [learner.module.layers])


def test_kronecker_factors_are_the_full_fisher_of_every_layer_for_one_example() -> None:
    learner = learner_of(two_layers())
    assert_pull_of_the_full_fisher(learner, vector_batch(1, 4, 3), [learner.module.layers[0], learner.module.layers[2]])


def test_a_kronecker_pull_holds_only_what_the_outputs_depend_on() -> None:
    """A change of the weights that leaves all outputs on the task as they were costs nothing; diagonal EWC pulls it back."""
    learner, strategy, diagonal = learner_of(one_layer()), KroneckerEWC(1.0), EWC(1.0)
    batch = vector_batch(9, 4, 3)
    batch.obs["x"][..., 1] = batch.obs["x"][..., 0]
    outputs = learner.outputs(batch).detach()
    for one in (strategy, diagonal):
        one.end_task(Named(), learner, [batch])
    with torch.no_grad():
        learner.module.layers.weight[:, 0] += 2.0
        learner.module.layers.weight[:, 1] -= 2.0
    torch.testing.assert_close(learner.outputs(batch).detach(), outputs)
    assert max(float(g.abs().max()) for g in edited(learner, strategy)) < 1e-12
    assert max(float(g.abs().max()) for g in edited(learner, diagonal)) > 0.1


def tied() -> nn.Module:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    layers[2].weight = layers[0].weight
    return layers


def twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("build", "outside"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3)), {"layers.1.weight", "layers.1.bias"}),
        (twice, {"layers.0.weight", "layers.0.bias"}),
        (tied, {"layers.0.weight", "layers.0.bias", "layers.2.bias"}),
        (
            lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 5), nn.Tanh(), nn.Flatten(), nn.Linear(10, 3, bias=False)),
            {"layers.1.weight", "layers.1.bias"},
        ),
    ],
    ids=["layer norm", "a layer used twice", "two layers with one weight", "a layer of many positions"],
)
def test_weights_outside_plain_linear_layers_are_held_by_the_diagonal(build: Callable[[], nn.Module], outside: set[str]) -> None:
    torch.manual_seed(0)
    learner, strategy, batch = learner_of(build()), KroneckerEWC(2.0), vector_batch(11, 4, 3)
    fisher = dict(zip(learner.weights(), diagonal_fisher(learner, [batch], torch.Generator(), by_hooks=False).values(), strict=True))
    then = {n: p.detach().clone() for n, p in learner.weights().items()}
    strategy.end_task(Named(), learner, [batch])
    assert set(strategy.rest.precision) == outside
    move(learner, 5)
    pulls = dict(zip(learner.weights(), edited(learner, strategy), strict=True))
    for name, p in learner.weights().items():
        diagonal = 2.0 * fisher[name] * (p.detach() - then[name])
        assert (float((pulls[name] - diagonal).abs().max()) < 1e-12) is (name in outside)


def test_a_kronecker_pull_works_where_there_is_no_linear_layer() -> None:
    """Then it is diagonal EWC."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.Flatten())
    learner, strategy, batch = learner_of(layers), KroneckerEWC(2.0), vector_batch(11, 4, 3)
    fisher = diagonal_fisher(learner, [batch], torch.Generator(), by_hooks=False).values()
    then = weights(learner.module)
    strategy.end_task(Named(), learner, [batch])
    move(learner, 5)
    expected = [2.0 * f * (w - c) for f, w, c in zip(fisher, weights(learner.module), then, strict=True)]
    assert distance(edited(learner, strategy), expected) < 1e-12


class EveryPair(Categorical):
    """Two steps, nine examples: each pair of three labels once, what uniform draws come to on average."""

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return torch.stack([torch.arange(9) // 3, torch.arange(9) % 3])


def test_an_example_informs_by_all_its_steps() -> None:
    """Steps drawn independently add up: the factors' diagonal is the diagonal Fisher information, of examples, not of steps."""
    layers = nn.Linear(2, 3)
    nn.init.zeros_(layers.weight)
    nn.init.zeros_(layers.bias)
    learner = learner_of(layers)
    learner.likelihood = EveryPair(3)
    x = vector_batch(1, 2, 3).obs["x"].repeat(2, 9, 1)
    batch = Batch({"x": x}, torch.tensor([[True], [False]]).repeat(1, 9))
    weight, bias = diagonal_fisher(learner, [batch], torch.Generator()).values()
    torch.testing.assert_close(weight, 2 * 2 / 9 * x[0, :1].square().expand(3, 2))
    strategy = KroneckerEWC(1.0)
    strategy.end_task(Named(), learner, [batch])
    A, G, _ = strategy.layers["layers"][0]
    torch.testing.assert_close(torch.outer(G.diag(), A.diag()), torch.cat([weight, bias[:, None]], 1))


def test_kronecker_labels_are_drawn_from_the_model() -> None:
    """Where all inputs are 0 but the bias, G tends to diag(p) - p p': within five standard errors of 3000 draws."""
    layers, count = nn.Linear(1, 3), 3000
    learner = learner_of(layers)
    learner.likelihood = Categorical(3)
    with torch.no_grad():
        layers.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    batch = Batch({"x": torch.zeros(1, count, 1)}, torch.ones(1, count, dtype=torch.bool), torch.zeros(1, count, dtype=torch.long))
    strategies = [KroneckerEWC(1.0, examples=count, seed=seed) for seed in (0, 0, 1)]
    for strategy in strategies:
        strategy.end_task(Named(), learner, [batch])
    (A, G, _), (_, same, _), (_, other, _) = (strategy.layers["layers"][0] for strategy in strategies)
    p = torch.softmax(layers.bias.detach(), -1)
    g = torch.eye(3) - p  # a row for each label that can be drawn
    products = g[:, :, None] * g[:, None, :]
    mean = torch.einsum("y,yab->ab", p, products)
    error = ((torch.einsum("y,yab->ab", p, products**2) - mean**2) / count).sqrt()
    torch.testing.assert_close(mean, torch.diag(p) - torch.outer(p, p))
    assert bool(((G - mean).abs() < 5 * error).all())
    assert torch.equal(A, torch.diag(torch.tensor([0.0, 1.0], dtype=torch.float64)))
    assert torch.equal(G, same)
    assert not torch.equal(G, other)


@pytest.mark.parametrize(
    ("strategy", "bad"),
    [
        (strategy, bad)
        for strategy in (L2, L2Init, KroneckerEWC, EWC)
        for bad in keyword_grid(strength=[-0.5, float("nan"), float("inf")], examples=[0, -3])
        if "strength" in bad or strategy in (KroneckerEWC, EWC)
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused_by_name_and_value(strategy: Any, bad: dict[str, Any]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=rf"^{name} is {value}, allowed: "):
        strategy(**bad)
