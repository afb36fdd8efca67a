"""States, copies and batches of unusual networks in attached loops."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract_helpers import active
from loop_helpers import distance, same, weights
from torch import Tensor, nn

from everloop.loop import EWC, SI, STRATEGIES, ICaRL, LaMAML, LwF, Replay, Strategy, attach
from everloop.loop.strategies.la_maml import _parts

REFUSED = {n for n, s in STRATEGIES.items() if s.traits.task_id or s.traits.network}
STREAMS = sorted(n for n, s in STRATEGIES.items() if s.traits.streams and n not in REFUSED)


def network(norm: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    middle: nn.Module = nn.BatchNorm1d(6) if norm else nn.Identity()
    return nn.Sequential(
        nn.Linear(4, 6), middle, nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)
    )


def learn(module: Any, loop: Any, task: int, end: bool = True) -> None:
    g = torch.Generator().manual_seed(task)
    x, y = torch.randn(8, 4, generator=g), torch.randint(3, (8,), generator=g)
    loop.begin_task(task)
    for _ in range(2):
        loop.observe(x, y)
        loop.optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        loop.optimizer.step()
    if end:
        loop.end_task([(x, y)])


def start(strategy: Strategy, module: nn.Module) -> Any:
    return attach([strategy], module, torch.optim.SGD(module.parameters(), lr=0.1))


@pytest.mark.parametrize("name", STREAMS)
def test_torch_loads_every_state_with_weights_only(name: str) -> None:
    def final(through_file: bool) -> list[Tensor]:
        module = network()
        loop = start(active(name), module)
        learn(module, loop, 0)
        if through_file:
            file = io.BytesIO()
            torch.save(loop.state_dict(), file)
            file.seek(0)
            loop.detach()
            loop = start(active(name), module)
            loop.load_state_dict(torch.load(file, weights_only=True))
        learn(module, loop, 1)
        return weights(module)

    assert same(final(True), final(False))


def with_dropout(seed: int, strategy: Strategy) -> tuple[nn.Module, Any]:
    """A network that draws from torch's generator, attached under an optimizer with moments."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 3))
    return module, attach([strategy], module, torch.optim.Adam(module.parameters()))


@pytest.mark.parametrize("name", STREAMS)
def test_a_loaded_loop_goes_on_bit_for_bit_in_the_middle_of_a_task(
    name: str, tmp_path: Path
) -> None:
    module, loop = with_dropout(0, active(name))
    learn(module, loop, 0)
    learn(module, loop, 1, end=False)
    loop.save(tmp_path / "saved", extra={"epoch": 3})

    def rest(module: nn.Module, loop: Any) -> list[Tensor]:
        for _ in range(2):
            g = torch.Generator().manual_seed(8)
            x, y = torch.randn(8, 4, generator=g), torch.randint(3, (8,), generator=g)
            loop.observe(x, y)
            loop.optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            loop.optimizer.step()
        loop.end_task([(x, y)])
        learn(module, loop, 2)
        moments = [value["exp_avg"] for value in loop.optimizer.state.values()]
        return [*weights(module), *moments, torch.rand(1)]

    expected = rest(module, loop)
    other, again = with_dropout(7, active(name))
    assert again.load(tmp_path / "saved") == {"epoch": 3}
    assert again.steps == 4 * 8
    assert same(rest(other, again), expected)


def test_a_checkpoint_of_another_network_or_of_other_strategies_is_refused(tmp_path: Path) -> None:
    module, loop = with_dropout(0, EWC())
    learn(module, loop, 0)
    loop.save(tmp_path / "saved")
    wider = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, 3))
    other = attach([EWC()], wider, torch.optim.Adam(wider.parameters()))
    with pytest.raises(ValueError, match=r"belongs to another network: 0\.bias"):
        other.load(tmp_path / "saved")
    with pytest.raises(ValueError, match="strategies"):
        with_dropout(0, SI())[1].load(tmp_path / "saved")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta")
@pytest.mark.parametrize("make", [EWC, SI, LwF, lambda: Replay(capacity=9), LaMAML])
def test_a_state_moves_to_the_device_of_the_network(make: Any) -> None:
    """No second device is needed: tensors on "meta" have no values, but a device."""
    module = network()
    loop = start(make(), module)
    learn(module, loop, 0)
    state = loop.state_dict()
    elsewhere = start(make(), network().to("meta"))
    elsewhere.load_state_dict(state)
    strategy = elsewhere.strategies[0]
    found = [
        x
        for part in (strategy, getattr(strategy, "penalty", None), getattr(strategy, "path", None))
        if part is not None
        for value in vars(part).values()
        if isinstance(value, dict)
        for x in value.values()
        if isinstance(x, Tensor)
    ]
    if isinstance(strategy, LwF):
        found = [strategy.seen, strategy.old, *strategy.teacher.module.parameters()]
    assert {x.device.type for x in found} <= {"meta"}
    assert found or isinstance(strategy, Replay)


class Caching(nn.Module):
    """Keeps its activations, and has a weight that old `weight_norm` computes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.body = nn.utils.weight_norm(nn.Linear(4, 6))
        self.head, self.seen = nn.Linear(6, 3), list[Tensor]()

    def forward(self, x: Tensor) -> Any:
        self.seen = [torch.tanh(self.body(x))]
        return self.head(self.seen[0])


@pytest.mark.parametrize("make", [LwF, lambda: ICaRL(capacity=6)])
def test_networks_that_keep_computed_tensors_are_copied_as_they_are(make: Any) -> None:
    module = Caching()
    loop = start(make(), module)
    learn(module, loop, 0)
    copied = loop.frozen_copy()
    x = torch.randn(5, 4)
    expected = module(x).detach()
    with torch.no_grad():
        module.body.weight_g.mul_(2.0)
    assert torch.equal(copied(x), expected)
    assert not torch.allclose(module(x), expected)
    learn(module, loop, 1)


def test_a_network_that_cannot_be_copied_is_one_clear_line() -> None:
    module = network()
    module.stream = (i for i in range(3))  # type: ignore[assignment]
    loop = start(LwF(), module)
    with pytest.raises(ValueError, match=r"^the network can't be copied \(.*generator.*\); take"):
        learn(module, loop, 0)
    assert module._forward_hooks


@pytest.mark.parametrize(("rows", "sizes"), [(8, [2, 2, 2, 2]), (5, [2, 3]), (3, [3]), (1, [1])])
def test_parts_for_batch_norm_have_two_examples(rows: int, sizes: list[int]) -> None:
    loop = start(LaMAML(parts=5), network())
    batch = loop.batch(torch.randn(rows, 4), torch.zeros(rows, dtype=torch.long))
    parts = _parts(batch, 5, True)
    assert [len(part) for part in parts] == sizes
    joined = torch.cat([part.obs["input"][0] for part in parts])
    assert torch.equal(joined, batch.obs["input"][0])
    assert len(_parts(batch, 5, False)) == min(rows, 4 if rows == 8 else 5)


class Texts(nn.Module):
    """The mean of the embeddings where the mask is 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        w = mask[..., None].float()
        return self.head((self.embedding(ids) * w).sum(1) / w.sum(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Replay(capacity=40, batch_size=8, current=True),
        lambda: ICaRL(capacity=10, batch_size=8),
        lambda: LaMAML(capacity=40, batch_size=8, parts=2),
    ],
    ids=["replay", "icarl", "la_maml"],
)
def test_texts_of_different_lengths_are_padded_and_masked(make: Any) -> None:
    module = Texts()
    loop = start(make(), module)
    lengths, y = (4, 6, 3), torch.tensor([0, 1, 0, 1])
    batches = []
    loop.begin_task(0)
    for i, length in enumerate(lengths):
        g = torch.Generator().manual_seed(i)
        ids = torch.randint(1, 9, (4, length), generator=g)
        texts = {"ids": ids, "mask": torch.ones_like(ids)}
        batches.append((texts, y))
        loop.observe(texts, y)
        loop.optimizer.zero_grad()
        F.cross_entropy(module(**texts), y).backward()
        loop.optimizer.step()
    loop.end_task(batches)
    strategy = loop.strategies[0]
    if isinstance(strategy, ICaRL):
        store, rows = strategy.store, np.concatenate(list(strategy.rows.values()))
    else:
        store, rows = strategy.memory.store, np.arange(len(strategy.memory))
    stored = store.read(rows)
    assert stored["obs.ids"].shape == (len(rows), 1, 6)
    obs = {name: torch.from_numpy(stored[f"obs.{name}"][:, 0]) for name in ("ids", "mask")}
    found = module(**obs)
    assert set(obs["mask"].sum(1).tolist()) == set(lengths)
    by_text = {
        tuple(t): z for x, _ in batches for t, z in zip(x["ids"].tolist(), module(**x), strict=True)
    }
    for ids, mask, z in zip(obs["ids"], obs["mask"], found, strict=True):
        assert torch.allclose(z, by_text[tuple(ids[mask > 0].tolist())], atol=1e-6)


def test_different_lengths_without_a_mask_are_refused() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(x.mean(1, keepdim=True))

    loop = start(Replay(capacity=9), Mean())
    loop.begin_task(0)
    loop.observe(torch.randn(2, 4), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"shape \(1, 5\); it must be \(1, 4\).*give a mask among"):
        loop.observe(torch.randn(2, 5), torch.tensor([0, 1]))


def test_a_batch_norm_network_learns_with_la_maml() -> None:
    module = network()
    before = weights(module)
    loop = start(LaMAML(capacity=9, batch_size=4, parts=5), module)
    learn(module, loop, 0)
    assert distance(weights(module), before) > 0
