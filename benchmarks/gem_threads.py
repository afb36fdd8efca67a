"""GEM's update on one torch thread and on two: `python benchmarks/gem_threads.py`.

GEM's dual problem is small, with a row for each ended task. numpy and scipy solve it, so their
threads could compete with torch's for the cores. This benchmark tells whether they do. It uses the
MLP of benches.py and batch 128, with as many stored examples of each task as fresh ones. These take
turns, and for each number of tasks all numbers of threads do:

- a plain step;
- GEM's whole update: all gradients, the memory, the dual;
- the same with the BLAS of numpy and scipy limited to one thread;
- the same with quadprog as the solver, if it is installed.

Updates are given as medians, in plain steps on the same number of threads. The dual alone is given
in microseconds, for the gradients of the last update. The column "used" is the share of updates
whose gradient opposes a past task's, so that there is a dual to solve.
"""

import argparse
import importlib.util
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from benches import BATCH, Bench, fresh, mlp
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from everloop.contract import Task
from everloop.loop import GEM
from everloop.loop.strategies import gem

Solver = Callable[..., npt.NDArray[np.float64]]
EVERLOOP: Solver = gem.solve_dual


def quadprog(
    P: npt.NDArray[np.float64], q: npt.NDArray[np.float64], margin: float = 0.0
) -> npt.NDArray[np.float64]:
    """Return argmin_v v' P v / 2 + q' v with v >= margin, as GEM's authors compute it."""
    from quadprog import solve_qp  # type: ignore[import-not-found]

    n = len(q)
    solution = solve_qp(P + 1e-3 * np.eye(n), -q, np.eye(n), np.full(n, margin))
    v: npt.NDArray[np.float64] = solution[0]
    return v


class Recording:
    """A solver that records its last arguments and counts its calls."""

    def __init__(self, solver: Solver) -> None:
        self.solver, self.calls, self.given = solver, 0, (np.eye(1), -np.ones(1))

    def __call__(
        self, P: npt.NDArray[np.float64], q: npt.NDArray[np.float64], margin: float
    ) -> npt.NDArray[np.float64]:
        self.calls, self.given = self.calls + 1, (P, q)
        return self.solver(P, q, margin)


@contextmanager
def solved_by(solver: Solver) -> Iterator[None]:
    """Let GEM solve its dual with `solver`."""
    usual, gem.solve_dual = gem.solve_dual, solver
    try:
        yield
    finally:
        gem.solve_dual = usual


def ready(tasks: int) -> Bench:
    """Return a learner with GEM that has ended `tasks` tasks of random labels and begun another."""
    torch.manual_seed(0)
    strategy = GEM(capacity=200 * (tasks + 1), batch_size=BATCH)
    learner = Bench(mlp(), [strategy])
    for k in range(tasks):
        strategy.begin_task(Task(k, str(k)), learner)
        for i in range(2):
            strategy.observe(fresh("mlp", 2 * k + i, k), learner)
        strategy.end_task(Task(k, str(k)), [], learner)
    strategy.begin_task(Task(tasks, str(tasks)), learner)
    return learner


def seconds(call: Callable[[], Any]) -> float:
    """Return the duration of `call`."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which BLAS uses one thread."""
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits


def measured(tasks: int, threads: list[int], cores: int, rounds: int) -> Iterator[str]:
    """Yield the rows of the table for a number of ended tasks.

    Args:
        tasks: Number of ended tasks.
        threads: Numbers of torch threads, with a row for each.
        cores: Number of BLAS threads.
        rounds: Number of updates of each kind.
    """
    recording = Recording(EVERLOOP)
    batches = [fresh("mlp", 1000 + i, tasks) for i in range(8)]
    ways: dict[str, tuple[Bench, Solver, Callable[[], AbstractContextManager[Any]]]] = {
        "plain": (Bench(mlp(), []), EVERLOOP, nullcontext),
        "gem": (ready(tasks), recording, nullcontext),
        "gem, BLAS on 1": (ready(tasks), EVERLOOP, one_blas_thread),
    }
    solvers = {"everloop": EVERLOOP}
    if importlib.util.find_spec("quadprog"):
        ways["gem, quadprog"] = (ready(tasks), quadprog, nullcontext)
        solvers["quadprog"] = quadprog
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    for i in range(rounds):
        for n in threads:
            torch.set_num_threads(n)
            with threadpool_limits(cores, user_api="blas"):  # numpy's default by default
                for name, (learner, solver, limits) in ways.items():
                    with solved_by(solver), limits():
                        found[n, name].append(
                            seconds(lambda b=batches[i % 8], to=learner: to.update(b))  # type: ignore[misc]
                        )
                for name, solver in solvers.items():
                    found[n, name].append(seconds(lambda by=solver: by(*recording.given, 0.0)))  # type: ignore[misc]
    middle = {
        key: statistics.median(values[min(5, rounds // 2) :]) for key, values in found.items()
    }
    for n in threads:
        steps = [f"{middle[n, name] / middle[n, 'plain']:.2f}" for name in ways if name != "plain"]
        alone = [f"{middle[n, name] * 1e6:.0f}" for name in solvers]
        used = recording.calls / (rounds * len(threads))
        cells = steps + [""] * (3 - len(steps)) + alone + [""] * (2 - len(alone))
        yield f"| {tasks} | {n} | {' | '.join(cells)} | {used:.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", nargs="+", type=int, default=[5, 10, 20])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--blas", type=int, default=2, help="threads of numpy's BLAS")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    print(
        f"batch {BATCH}, BLAS on {args.blas} threads, medians of {args.rounds}; updates in plain "
        "steps, the dual alone in us"
    )
    print(
        "| tasks | torch threads | gem | BLAS on 1 | quadprog | dual: everloop | quadprog | used "
        "|\n|---|---|---|---|---|---|---|---|"
    )
    for tasks in args.tasks:
        for row in measured(tasks, args.threads, args.blas, args.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
