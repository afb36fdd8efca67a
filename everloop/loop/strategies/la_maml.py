"""La-MAML: look-ahead meta-learning with a learned rate for every weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from everloop.loop.batch import Batch
from everloop.loop.learners.nested import NestedOptimizer
from everloop.loop.model import Model
from everloop.loop.strategies.base import Effect, Forward, Traits, check_range
from everloop.loop.strategies.parts.gradients import gradient
from everloop.loop.strategies.parts.quadratic import snapshot
from everloop.loop.strategies.parts.rehearsal import Rehearsal, check_labels


class LaMAML(Rehearsal):
    """Trains on gradients after look-ahead steps, with a learned step size for every weight.

        w_(k+1) = w_k - max(0, a) g_k,  w_0 = w
            g_k is the gradient on part k of the fresh batch
        alpha:  a <- a - alpha_lr * d/da mean_k L(w_(k+1))
                  =  a + alpha_lr * mean_k (grad L(w_(k+1)) * sum_(j <= k) g_j)
        weights:  w <- w - max(0, a) * mean_k grad L(w_(k+1))
                                      (Gupta et al. 2020, algorithm 1 and eq. 6-8)

    The fresh batch is divided into parts, one for each look-ahead step; with batch norm, of two
    examples or more. L is the loss on the fresh batch and a sample of stored examples, drawn before
    the batch is stored. The gradients are first order, as in the authors' code.

    The gradient is scaled so that plain gradient descent takes the step above for any learning
    rate. Adam would divide the learned step sizes out again. So an optimizer other than SGD gives
    only its learning rate: the whole step, with the gradients that other strategies add, is one of
    plain gradient descent. La-MAML must come last in a list of strategies, since the others must
    see this step.

    Differs from the authors' code: the gradients of the look-ahead steps, of the weights and of a
    are not clipped. The code clips each to 2 by default. Tasks share one head.

    Memory: one number per weight, besides the examples; two if the optimizer is not SGD.

    Args:
        strength: Share of the method's gradient, in [0, 1]; 1 is the method, 0 is plain training.
            Values in between mix the method's gradient and the plain gradient.
        capacity: Number of examples stored in total, 1 or more.
        batch_size: Number of stored examples replayed with each update, 1 or more.
        alpha: Initial step size a of every weight, 0 or more. The authors' code uses 0.1 on
            CIFAR-100 and 0.1 or 0.15 on MNIST.
        alpha_lr: Learning rate of the step sizes a, 0 or more. The authors' code uses 0.25 on
            CIFAR-100 and 0.1 or 0.3 on MNIST.
        parts: Number of parts of each fresh batch, with one look-ahead step each, 1 or more. The
            authors' code uses 5 on CIFAR-100.
        memory: Rule for what is stored: reservoir, class-balanced, ring, uncertain or
            informative.
        seed: Seed for choosing which examples are stored and replayed, 0 or more.
    """

    name = "la_maml"
    effects = frozenset({Effect.REPLACES_LOSS})
    traits: ClassVar[Traits] = Traits(
        boundaries=False, examples=True, copies=2, class_incremental=True, control=False
    )
    comes_last = True
    state = ("rates",)

    def __init__(
        self,
        strength: float = 1.0,
        capacity: int = 1000,
        batch_size: int = 64,
        alpha: float = 0.1,
        alpha_lr: float = 0.1,
        parts: int = 5,
        memory: str = "reservoir",
        seed: int = 0,
    ) -> None:
        super().__init__(strength, capacity, batch_size, memory, seed)
        check_range("strength", strength, 0, 1)
        check_range("alpha", alpha, 0)
        check_range("alpha_lr", alpha_lr, 0)
        check_range("parts", parts, 1)
        if alpha == alpha_lr == 0:
            raise ValueError("alpha and alpha_lr are 0, so nothing would be learned; raise one")
        self.alpha, self.alpha_lr = alpha, alpha_lr
        self.parts = parts
        self.rates: dict[str, Tensor] = {}  # a by the weight's name
        self._learned: dict[str, Tensor] = {}  # a after this update
        self._before: dict[str, Tensor] = {}  # weights before this update

    def check(self, model: Model) -> None:
        if not model.labelled:
            check_labels(model, "la_maml", "replay or clear")
        if model.accumulate > 1:
            raise ValueError(
                f"accumulate is {model.accumulate}; it must be 1 for la_maml, which looks ahead on "
                "one batch"
            )
        if isinstance(model.optimizer, NestedOptimizer):
            raise ValueError(
                "la_maml updates all weights at every step, so it can't have periods; leave them "
                "out"
            )
        decay = max(group.get("weight_decay", 0.0) for group in model.optimizer.param_groups)
        if decay and not isinstance(model.optimizer, torch.optim.SGD):
            raise ValueError(
                f"weight_decay is {decay}; la_maml takes its own steps, without the optimizer's "
                "decay: set it to 0, or use sgd"
            )
        super().check(model)

    def observe(self, batch: Batch, model: Model) -> None:
        self.draw_next(model)
        super().observe(batch, model)

    def loss(self, fresh: Forward | None, replayed: Forward | None, model: Model) -> Tensor | None:
        """Return the task loss, with the method's gradient at the weights.

        The share (1 - strength) of its gradient is the plain one.
        """
        if fresh is None or fresh.batch.target is None:
            return None
        plain = model.loss_of(fresh.output.prediction, fresh.batch.target)
        weights = model.weights()
        for name, w in weights.items():
            self.rates.setdefault(name, torch.full_like(w, self.alpha))
        meta, descent = self._look_ahead(model, fresh.batch, self.take_next(model))
        lr = {
            p: float(group["lr"]) for group in model.optimizer.param_groups for p in group["params"]
        }
        terms = []
        for (name, w), g, d in zip(weights.items(), meta, descent, strict=True):
            self._learned[name] = self.rates[name] + self.alpha_lr * d
            terms.append((self._learned[name].clamp(min=0) * g / lr[w] * w).sum())
        linear = torch.stack(terms).sum()  # its gradient is the step / lr
        own = plain.detach() + linear - linear.detach()
        return own if self.strength == 1 else self.strength * own + (1 - self.strength) * plain

    def edit_gradients(self, batch: Batch, model: Model) -> None:
        self.rates |= self._learned
        if not isinstance(model.optimizer, torch.optim.SGD):
            self._before = snapshot(model)

    @torch.no_grad()
    def after_step(self, batch: Batch, model: Model) -> None:
        if isinstance(model.optimizer, torch.optim.SGD):
            return
        names = {w: name for name, w in model.weights().items()}
        for group in model.optimizer.param_groups:
            for p in group["params"]:
                if p in names and p.grad is not None:
                    torch.sub(self._before[names[p]], p.grad, alpha=float(group["lr"]), out=p)

    def _look_ahead(
        self, model: Model, batch: Batch, stored: Batch | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the means over k of grad L(w_(k+1)), and of its product with sum_(j <= k) g_j."""
        names, fast = list(model.weights()), [w.detach() for w in model.weights().values()]
        a = [self.rates[name].clamp(min=0) for name in names]
        path = [torch.zeros_like(w) for w in fast]  # sum_(j <= k) g_j
        meta = [torch.zeros_like(w) for w in fast]
        descent = [torch.zeros_like(w) for w in fast]
        both = batch if stored is None else Batch.join([batch, stored])
        parts = _parts(batch, self.parts, _has_batch_norm(model.module))
        buffers = model.copied_buffers()  # the look-ahead must not change the network's statistics
        for part in parts:
            g = _gradient(model, part, dict(zip(names, fast, strict=True)), buffers)
            torch._foreach_add_(path, g)
            fast = list(torch._foreach_addcmul(fast, a, g, value=-1))
            ahead = _gradient(model, both, dict(zip(names, fast, strict=True)), buffers)
            torch._foreach_add_(meta, ahead, alpha=1 / len(parts))
            torch._foreach_addcmul_(descent, ahead, path, value=1 / len(parts))
        return meta, descent


def _parts(batch: Batch, count: int, normalised: bool) -> list[Batch]:
    """Divide `batch` into `count` parts; if normalised, into fewer of two examples or more."""
    size = -(-len(batch) // count)
    if not normalised or len(batch) < 2:
        return list(batch.split(size))
    size = max(size, 2)
    whole = len(batch) // size * size
    parts = list(batch[:whole].split(size))
    if len(batch) - whole == 1:  # a batch norm can't train on one example
        return [*parts[:-1], batch[whole - size :]]
    return parts if whole == len(batch) else [*parts, batch[whole:]]


def _has_batch_norm(module: nn.Module) -> bool:
    return any(
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training
        for layer in module.modules()
    )


def _gradient(
    model: Model, batch: Batch, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the gradient of the loss of `batch` at these weights and with these buffers."""
    model.tally.presentations += len(batch)
    leaves = {name: w.detach().requires_grad_() for name, w in weights.items()}
    return gradient(model.loss(batch, leaves | dict(buffers)), list(leaves.values()))
