"""Hand-written strategies that preserve plasticity, for `whole_runs.py`."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from by_hand import Hand, Run, learn_near, pixels
from torch import Tensor, nn

# Continual backpropagation.
REPLACED = 1e-3  # share of the mature units that each step replaces
MATURITY = 20  # steps until a unit may be replaced
INTERVAL = 10  # steps between two replacements
DECAY = 0.99  # of the utility, in each step


def next_seed(generator: torch.Generator) -> int:
    """Return the seed that ours takes from the same generator, so that both draw the same."""
    return int(torch.randint(2**62, (), generator=generator))


def linear_layers(h: Hand) -> list[nn.Linear]:
    return [layer for layer in h.net if isinstance(layer, nn.Linear)]


def l2_init(h: Hand) -> Run:
    c, shift = h.copies(), h.copies()
    for phase in h.phases:
        learn_near(h, phase, c, 0.02, shift)
        yield


def shrink_and_perturb(h: Hand) -> Run:
    generator = torch.Generator().manual_seed(0)
    for k, phase in enumerate(h.phases):
        if k:
            torch.manual_seed(next_seed(generator))
            drawn = [
                p.detach()
                for layer in linear_layers(h)
                for p in nn.Linear(layer.in_features, layer.out_features).parameters()
            ]
            with torch.no_grad():
                torch._foreach_mul_(h.weights, 0.8)
                torch._foreach_add_(h.weights, drawn, alpha=0.1)
        for x, y in h.batches(phase):
            h.backward(F.cross_entropy(h.outputs(x), y))
            h.adam.step()
        yield


class Units:
    """The hidden units between two layers."""

    def __init__(self, reads: nn.Linear, feeds: nn.Linear) -> None:
        self.reads, self.feeds, self.due = reads, feeds, 0.0
        self.utility, self.age = torch.zeros(reads.out_features), torch.zeros(reads.out_features)

    def least(self, activity: Tensor) -> Tensor:
        """Return the units to replace now, those of least utility, after updating the utility."""
        self.age += INTERVAL
        self.utility.lerp_(activity * self.feeds.weight.abs().sum(0), 1 - DECAY**INTERVAL)
        mature = self.age > MATURITY
        self.due += INTERVAL * REPLACED * int(mature.sum())
        count = min(int(self.due), int(mature.sum()))
        self.due -= count
        corrected = self.utility / (1 - DECAY**self.age)
        return corrected.masked_fill(~mature, torch.inf).topk(count, largest=False).indices

    def replace(
        self, units: Tensor, adam: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        bound = self.reads.in_features**-0.5
        drawn = (
            torch.rand(len(units), self.reads.in_features, generator=generator) * 2 * bound - bound
        )
        for p, where, new in (
            (self.reads.weight, units, drawn),
            (self.reads.bias, units, 0.0),
            (self.feeds.weight, (slice(None), units), 0.0),
        ):
            p[where] = new
            adam.state[p]["exp_avg"][where] = adam.state[p]["exp_avg_sq"][where] = 0.0
        self.utility[units] = self.age[units] = 0.0


def continual_backprop(h: Hand) -> Run:
    generator, steps = torch.Generator().manual_seed(0), 0
    hidden = [Units(reads, feeds) for reads, feeds in pairwise(linear_layers(h))]
    for phase in h.phases:
        for x, y in h.batches(phase):
            h.backward(F.cross_entropy(h.outputs(x), y))
            h.adam.step()
            steps += 1
            if steps % INTERVAL == 0:
                with torch.no_grad():
                    z, activities = pixels(x), []
                    for units in hidden:
                        z = F.relu(units.reads(z))
                        activities.append(z.mean(0))
                    for units, activity in zip(hidden, activities, strict=True):
                        if len(least := units.least(activity)):
                            units.replace(least, h.adam, generator)
        yield
