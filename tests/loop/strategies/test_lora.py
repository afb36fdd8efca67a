"""LoRA: training, merging and reuse of adapters."""

from __future__ import annotations

import pytest
import torch
from architecture_helpers import examples, learn_task, task_aware_learner, view_outputs
from attached_helpers import plain_step
from contract_helpers import stream_learner
from loop_helpers import learn_tasks, stream
from torch import Tensor, nn

from everloop.agents import MLP, Classifier
from everloop.loop import EWC, LoRA, SupervisedLearner, attach
from everloop.loop.plan import Plan
from everloop.loop.run import Run


def test_lora_trains_only_the_adapter_and_the_last_layer() -> None:
    learner, lora = task_aware_learner(MLP((8, 8, 1), (16, 16))), LoRA(rank=3)
    learner.attach([lora])
    learn_task(learner, 0)
    base = {
        name.replace("base_layer.", ""): p.detach().clone()
        for name, p in learner.module.named_parameters()
    }
    lora.begin_task(learner.world.tasks[1], learner)
    batch = examples(learner, 1)
    with torch.no_grad():
        fresh = learner.outputs(batch)
    assert sum(p.numel() for n, p in learner.weights().items() if "lora" in n) == 3 * (
        64 + 16
    ) + 3 * (16 + 16)
    learner.learn([1], 64)
    for name, p in learner.module.named_parameters():
        if "lora" not in name and "heads" not in name:
            assert torch.equal(p, base[name.replace("base_layer.", "")])
    assert not torch.equal(learner.outputs(batch).detach(), fresh)


def test_adding_or_merging_an_adapter_preserves_the_outputs() -> None:
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(MLP((8, 8, 1), (16, 16)), 10), stream())
    lora = LoRA(rank=2, adapters="online", alpha=6.0)
    learner.attach([lora])
    learn_tasks(learner, [0], world=stream())
    batch = learner.rollout(stream(), [0], 4, 0)
    before = learner.outputs(batch).detach()
    lora.begin_task(learner.world.tasks[1], learner)
    assert torch.equal(learner.outputs(batch).detach(), before)
    learner.learn([1], 64)
    learned = learner.outputs(batch).detach()
    W = dict(learner.module.named_parameters())["backbone.layers.0.base_layer.weight"]
    A, B = (
        dict(learner.module.named_parameters())[f"backbone.layers.0.lora_{m}.online.weight"]
        .detach()
        .clone()
        for m in "AB"
    )
    then = W.detach().clone()
    lora.end_task(learner.world.tasks[1], [batch], learner)
    torch.testing.assert_close(W.detach(), then + 6.0 / 2 * B @ A)
    torch.testing.assert_close(learner.outputs(batch).detach(), learned, rtol=1e-4, atol=1e-5)
    new_A, new_B = (
        dict(learner.module.named_parameters())[f"backbone.layers.0.lora_{m}.online.weight"]
        for m in "AB"
    )
    assert not new_B.any()
    assert not (new_A == A).any()
    assert not learner.optimizer.state.keys() & {new_A, new_B}


class Tied(nn.Module):
    """Three layers; the first two share their weight, with each other or with an embedding."""

    def __init__(self, embedding: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.embedding, self.last = nn.Embedding(5, 5), nn.Linear(5, 3)
        self.second.weight = self.embedding.weight if embedding else self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embedding(x.argmax(-1))
        h = torch.tanh(self.second(torch.tanh(self.first(x)))) + embedded
        logits: Tensor = self.last(torch.tanh(self.third(h)))
        return logits


@pytest.mark.parametrize("embedding", [False, True], ids=["two layers", "an embedding"])
def test_merging_an_adapter_preserves_the_outputs_if_a_weight_is_shared(embedding: bool) -> None:
    torch.manual_seed(0)
    module, x, y = Tied(embedding), torch.randn(20, 5), torch.randint(3, (20,))
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    loop = attach([LoRA(rank=2, adapters="online", train_base=False)], module, optimizer)
    for task in range(3):
        loop.begin_task(task)
        for _ in range(10):
            loop.observe(x, y)
            plain_step(module, optimizer, x, y)
        before = module(x).detach()
        loop.end_task([(x, y)])
        torch.testing.assert_close(module(x).detach(), before, rtol=1e-4, atol=1e-5)
    adapted = {name.split(".")[0] for name in loop.weights() if "lora" in name}
    assert adapted == ({"first", "third"} if embedding else {"third"})


def test_ewc_anchors_an_online_adapter_where_it_restarts() -> None:
    """An online adapter's B is reset to 0 at a task's end, so lora must come before ewc."""
    torch.manual_seed(0)
    learner = SupervisedLearner(Classifier(MLP((8, 8, 1), (16, 16)), 10), stream())
    lora, ewc = LoRA(rank=2, adapters="online"), EWC(100.0)
    with pytest.raises(
        ValueError,
        match=r"^lora must come first in the list of strategies; it is number 2$",
    ):
        learner.attach([ewc, lora])
    learner.attach([lora, ewc])
    for task in range(2):
        for strategy in (lora, ewc):
            strategy.begin_task(learner.world.tasks[task], learner)
        learner.learn([task], 64)
        batch = learner.rollout(stream(), [task], 4, 0)
        for strategy in (lora, ewc):
            strategy.end_task(learner.world.tasks[task], [batch], learner)
    anchored = {name: anchor for name, anchor in ewc.penalty.anchor.items() if "lora" in name}
    now = dict(learner.module.named_parameters())
    assert len(anchored) == 4
    assert all(torch.equal(anchor, now[name]) for name, anchor in anchored.items())
    assert all(not anchor.any() for name, anchor in anchored.items() if "lora_B" in name)
    assert any(ewc.penalty.precision[name].any() for name in anchored if "lora_B" in name)


def test_lora_adapts_every_layer_below_the_last() -> None:
    """Layer "0" is adapted although the name of the last layer, "2.0", ends with it."""
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 3)))
    loop = attach(
        [LoRA(rank=2, adapters="online", train_base=False)],
        module,
        torch.optim.SGD(module.parameters(), lr=0.1),
    )
    loop.begin_task(0)
    assert sorted(loop.weights()) == [
        "0.lora_A.online.weight",
        "0.lora_B.online.weight",
        "2.0.bias",
        "2.0.weight",
    ]


@pytest.mark.parametrize("train_base", [True, False])
def test_a_returning_task_resumes_its_adapter(
    train_base: bool,
) -> None:
    """Its view shows the weights being learned."""
    learner = task_aware_learner(MLP((8, 8, 1), (16, 16)), rate=1e-2)
    lora = LoRA(rank=2, train_base=train_base)
    learner.attach([lora])
    for task in (0, 1):
        learn_task(learner, task, 32)
    batch = examples(learner, 0, seed=77)
    before = view_outputs(learner, lora, 0, batch)
    lora.begin_task(learner.world.tasks[0], learner)
    assert torch.equal(view_outputs(learner, lora, 0, batch), before)
    assert sum("lora" in name for name in learner.weights()) == 4
    learner.learn([0], 160)
    assert torch.equal(view_outputs(learner, lora, 0, batch), learner.outputs(batch).detach())
    assert not torch.equal(view_outputs(learner, lora, 0, batch), before)


def test_a_returning_task_copies_an_adapter_shared_within_a_phase() -> None:
    learner = task_aware_learner(MLP((8, 8, 1), (8, 8)), rate=1e-2)
    lora = LoRA(rank=2, train_base=False)
    world = stream(label_space="within_task", task_cue=True)
    Run(learner, Plan([[0, 1], [2]], [64, 64], 10**9), world, [lora]).go()
    batches = [examples(learner, task) for task in range(3)]
    then = [view_outputs(learner, lora, task, batch) for task, batch in enumerate(batches)]
    lora.begin_task(learner.world.tasks[0], learner)
    assert torch.equal(view_outputs(learner, lora, 0, batches[0]), then[0])
    learner.learn([0], 64)
    lora.end_task(learner.world.tasks[0], [batches[0]], learner)
    now = [view_outputs(learner, lora, task, batch) for task, batch in enumerate(batches)]
    assert [torch.equal(a, b) for a, b in zip(now, then, strict=True)] == [False, True, True]


def test_lora_without_a_layer_to_adapt_is_refused() -> None:
    learner = stream_learner("lora")
    learner.module = Classifier(MLP((8, 8, 1), ()), 2, tasks=5)
    with pytest.raises(ValueError, match="no linear layer below the last one"):
        LoRA(train_base=False).begin_task(learner.world.tasks[0], learner)
