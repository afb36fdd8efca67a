"""In evaluation mode a network is the same function at every call, recurrent layers included."""

from __future__ import annotations

import pytest
import torch
from loop_helpers import FixedLearner, FlatNet, gradients, random_states, same, vector_batch
from torch import Tensor, nn

from everloop.loop import Categorical, diagonal_fisher

LAYERS: dict[str, type[nn.RNNBase]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
KINDS = pytest.mark.parametrize("kind", LAYERS)


class Recurrent(nn.Module):
    """Reads each example of four numbers as a sequence of two steps, with dropout between layers.

    Its first layer is in evaluation mode for good.
    """

    def __init__(self, kind: str, dropout: float) -> None:
        super().__init__()
        self.recurrent = LAYERS[kind](2, 3, num_layers=2, dropout=dropout, batch_first=True)
        self.still = nn.Dropout().eval()
        self.last = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.last(self.still(self.recurrent(x.unflatten(1, (2, 2)))[0][:, -1]))
        return rows


def make_learner(kind: str, dropout: float = 0.5) -> FixedLearner:
    torch.manual_seed(0)
    return FixedLearner(FlatNet(Recurrent(kind, dropout), "x").double(), Categorical(3))


@KINDS
def test_recurrent_dropout_is_off_in_evaluation_mode(kind: str) -> None:
    learner, batch = make_learner(kind), vector_batch(6, 4, 3)
    modes = [part.training for part in learner.module.modules()]
    without = make_learner(kind, dropout=0.0).outputs(batch)
    before = random_states()
    with learner.evaluating():
        assert not any(part.training for part in learner.module.modules())
        outputs = learner.outputs(batch)
    assert random_states() == before
    assert torch.equal(outputs, without)
    assert [part.training for part in learner.module.modules()] == modes
    assert not torch.equal(learner.outputs(batch), outputs)


@KINDS
def test_fisher_information_of_a_network_with_recurrent_dropout(kind: str) -> None:
    """It is that of the network without dropout."""
    batch, learner, without = vector_batch(6, 4, 3), make_learner(kind), make_learner(kind, 0.0)
    before = random_states()
    found = diagonal_fisher(learner, [batch])
    assert random_states() == before
    assert same(list(found.values()), list(diagonal_fisher(without, [batch]).values()))


def test_gradients_in_evaluation_mode_do_not_use_cudnn() -> None:
    """cuDNN computes gradients of recurrent layers only in training mode; others may use it."""
    learner, batch = make_learner("gru"), vector_batch(2, 4, 3)
    assert torch.backends.cudnn.enabled
    with learner.evaluating():
        assert torch.backends.cudnn.enabled
    with learner.evaluating(gradients=True):
        assert not torch.backends.cudnn.enabled
        gradients(learner.loss(batch), learner.module)
    assert torch.backends.cudnn.enabled
    plain = FixedLearner(FlatNet(nn.Linear(4, 3), "x").double(), Categorical(3))
    with plain.evaluating(gradients=True):
        assert torch.backends.cudnn.enabled
