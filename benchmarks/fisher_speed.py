"""The Fisher information beside a loop over examples: `python benchmarks/fisher_speed.py`.

Wanted: at least 10 times as fast as the loop, and equal to 1e-5. The loop is what people write by
hand. For every example it makes a forward pass, takes autograd's gradient of log p of a label drawn
from the model, and adds up the squares. Over all labels it makes a backward pass for each, weighted
by its probability. The loop gets the labels that ours draws. Networks and batches are those of
benches.py. The two take turns; times are medians.

The column "a plain pass" is an upper bound: how many times as fast as the loop one forward and
backward pass of the whole batch is, which gives no per-example gradients. The column "apart" is the
largest difference of an entry, relative to the largest entry of its tensor, over all tensors.
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


class Recording(Categorical):
    """A categorical likelihood that records the labels it draws."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.drawn: list[Tensor] = []

    def sample(self, p: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.drawn.append(super().sample(p, generator))
        return self.drawn[-1]


def ready(network: str) -> Bench:
    """Return a learner after a few steps, so that its outputs differ between classes."""
    torch.manual_seed(SEED)
    learner = Bench(NETWORKS[network](), [])
    for k in range(5):
        learner.update(fresh(network, k))
    return learner


def ours(learner: Bench, batch: Batch, exact: bool) -> Weights:
    """Return everloop's diagonal Fisher information; `exact`: over all labels, not a drawn one."""
    generator = None if exact else torch.Generator().manual_seed(SEED)
    return diagonal_fisher(learner, [batch], generator, exact=exact)


def labelled(learner: Bench, batch: Batch) -> Batch:
    """Return `batch` with the labels that `ours` draws."""
    usual, recording = learner.likelihood, Recording(CLASSES)
    learner.likelihood = recording
    ours(learner, batch, exact=False)
    learner.likelihood = usual
    return replace(batch, target=torch.cat(recording.drawn, 1))


def by_loop(learner: Bench, batch: Batch, exact: bool) -> Weights:
    """Return the mean over examples of squared gradients, computed one example at a time."""
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
    """Return the gradient of the batch's mean, of one label or (`exact`) of all in turn."""
    weights = dict(learner.module.named_parameters())
    with learner.evaluating():
        log_p = torch.log_softmax(learner.outputs(batch)[0], -1)
        for c in range(CLASSES if exact else 1):
            grads = torch.autograd.grad(
                log_p[:, c].mean(), list(weights.values()), retain_graph=exact
            )
    return dict(zip(weights, grads, strict=True))


def timed(call: Callable[[], Weights]) -> tuple[float, Weights]:
    """Return the duration of `call` in seconds, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def compared(network: str, examples: int, exact: bool, rounds: int) -> str:
    """Return the cells of a row of the table.

    Raises:
        SystemExit: If the two differ by TOLERANCE or more.
    """
    learner = ready(network)
    batch = labelled(learner, fresh(network, 100)[:examples])
    seconds, apart = [], 0.0
    for _ in range(rounds + 1):
        a, fast = timed(lambda: ours(learner, batch, exact))
        b, slow = timed(lambda: by_loop(learner, batch, exact))
        seconds.append((a, b, timed(lambda: plain_pass(learner, batch, exact))[0]))
        apart = max(float((fast[name] - y).abs().max() / y.abs().max()) for name, y in slow.items())
    if not apart < TOLERANCE:
        raise SystemExit(
            f"{network}: ours and the loop differ by {apart:.0e}; it must be below {TOLERANCE}"
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
