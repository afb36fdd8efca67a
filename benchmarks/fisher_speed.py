"""The Fisher information against a loop over examples: `python benchmarks/fisher_speed.py
[--networks mlp convnet] [--examples 128]`.

Wanted: at least 10 times as fast, and equal to 1e-5. The loop is what people write by hand: for
every example a forward pass, autograd of log p of a label drawn from the model, squares added up;
over all labels a backward pass for each, weighed by its probability. The loop gets the labels that
ours draws. Networks and batches are those of benches.py. The sides take turns; medians. "a plain
pass" is
the ceiling: how many times as fast as the loop one forward and backward pass of the whole batch is,
    which knows no example's own gradient.
Last column: the largest difference of an entry over the largest entry of its tensor, of the worst
    tensor.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from benches import CLASSES, Bench, convnet, fresh, mlp
from torch import Tensor

from everloop.loop import Batch, Categorical, diagonal_fisher

NETWORKS = {"mlp": mlp, "convnet": convnet}
SEED, TOLERANCE = 0, 1e-5
Weights = dict[str, Tensor]


class Noting(Categorical):
    """Remembers the labels that it draws."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.drawn: list[Tensor] = []

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.drawn.append(super().sample(p, generator))
        return self.drawn[-1]


def ready(network: str) -> Bench:
    """A learner after a few steps, so that its outputs are not all alike."""
    torch.manual_seed(SEED)
    learner = Bench(NETWORKS[network](), [])
    for k in range(5):
        learner.update(fresh(network, k))
    return learner


def ours(learner: Bench, batch: Batch, exact: bool) -> Weights:
    generator = None if exact else torch.Generator().manual_seed(SEED)
    return diagonal_fisher(learner, [batch], generator, exact=exact)


def labelled(learner: Bench, batch: Batch) -> Batch:
    """`batch` with the labels that `ours` draws."""
    usual, learner.likelihood = learner.likelihood, (noting := Noting(CLASSES))
    ours(learner, batch, exact=False)
    learner.likelihood = usual
    return replace(batch, target=torch.cat(noting.drawn, 1))


def by_loop(learner: Bench, batch: Batch, exact: bool) -> Weights:
    """The mean over examples of squared gradients, one example at a time."""
    assert batch.target is not None
    weights = dict(learner.module.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in weights.items()}
    with learner.evaluating():
        for i in range(len(batch)):
            log_p = torch.log_softmax(learner.outputs(batch[i : i + 1])[0, 0], -1)
            for c in range(CLASSES) if exact else [int(batch.target[0, i])]:
                share = float(log_p[c].detach().exp()) if exact else 1.0
                grads = torch.autograd.grad(log_p[c], list(weights.values()), retain_graph=exact)
                for total, g in zip(totals.values(), grads, strict=True):
                    total.addcmul_(g, g, value=share / len(batch))
    return totals


def plain_pass(learner: Bench, batch: Batch, exact: bool) -> Weights:
    """The gradient of the batch's mean, once, or for all labels."""
    weights = dict(learner.module.named_parameters())
    with learner.evaluating():
        log_p = torch.log_softmax(learner.outputs(batch)[0], -1)
        for c in range(CLASSES if exact else 1):
            grads = torch.autograd.grad(
                log_p[:, c].mean(), list(weights.values()), retain_graph=exact
            )
    return dict(zip(weights, grads, strict=True))


def timed(call: Callable[[], Weights]) -> tuple[float, Weights]:
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def compared(network: str, examples: int, exact: bool, rounds: int) -> str:
    learner = ready(network)
    batch = labelled(learner, fresh(network, 100)[:examples])
    seconds, apart = [], 0.0
    for _ in range(rounds + 1):
        (a, fast), (b, slow) = (
            timed(lambda: ours(learner, batch, exact)),
            timed(lambda: by_loop(learner, batch, exact)),
        )
        seconds.append((a, b, timed(lambda: plain_pass(learner, batch, exact))[0]))
        apart = max(float((fast[name] - y).abs().max() / y.abs().max()) for name, y in slow.items())
    if not apart < TOLERANCE:
        raise SystemExit(
            f"{network}: Fisher information differ by {apart:.0e}, allowed: {TOLERANCE}"
        )
    a, b, c = (statistics.median(column) for column in zip(*seconds[1:], strict=True))
    return f"{a * 1e3:.1f} | {b * 1e3:.1f} | {b / a:.1f} | {b / c:.1f} | {apart:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--examples", type=int, default=128, help="at most 128")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"threads {args.threads}, {args.examples} examples, medians of {args.rounds}; wanted: at "
        "least 10 times as fast"
    )
    print(
        "| network | labels | ours, ms | loop, ms | times as fast | a plain pass | apart "
        "|\n|---|---|---|---|---|---|---|"
    )
    for network in args.networks:
        for exact in (False, True):
            row = compared(network, args.examples, exact, args.rounds)
            print(f"| {network} | {'all' if exact else 'one drawn'} | {row} |", flush=True)


if __name__ == "__main__":
    main()
