"""Running statistics of inputs equal those of all vectors seen."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from everloop.agents import Agent, RunningNorm, VectorEncoder


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_the_statistics_are_those_of_all_vectors_in_whatever_parts_they_came(
    sizes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal([1013.0, -5.0, 0.0], [1.0, 20.0, 0.0], (n, 3)) for n in sizes]
    norm = RunningNorm(3).double()
    for part in parts:
        norm.update(torch.from_numpy(part))
    seen = np.concatenate(parts)
    assert norm.count == len(seen)
    if not len(seen):
        y = norm(torch.tensor([[3.0, 11.0, -11.0]]))[0].tolist()
        assert y == pytest.approx([3.0, 10.0, -10.0])
        return
    np.testing.assert_allclose(norm.running_mean, seen.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(norm.running_var, seen.var(0), rtol=1e-6, atol=1e-9)
    expected = (seen - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)
    found = norm(torch.from_numpy(seen))
    np.testing.assert_allclose(found, expected.clip(-10, 10), rtol=1e-6, atol=1e-4)


def test_float32_is_exact_enough_far_from_0() -> None:
    norm = RunningNorm(1)
    x = 1013 + torch.randn(200, 32, 1, generator=torch.Generator().manual_seed(0))
    for part in x:
        norm.update(part)
    y = norm(x.flatten(0, 1))
    assert abs(float(y.mean())) < 1e-2
    assert abs(float(y.std()) - 1) < 1e-2


SPACE = spaces.Dict(
    {
        "near": spaces.Box(-1.0, 1.0, (2,)),
        "far": spaces.Box(-np.inf, np.inf, (2, 2)),
        "image": spaces.Box(0, 255, (8, 8, 1), np.uint8),
        "cue": spaces.Box(0.0, 1.0, (3,)),
        "presence": spaces.Box(0.0, 1.0, (4,)),
    }
)


def test_an_agent_normalises_vectors_but_not_the_cue() -> None:
    agent = Agent(SPACE, 2, normalize="running")
    norms = {name for name, m in agent.named_modules() if isinstance(m, RunningNorm)}
    assert norms == {"encoders.of_near.norm", "encoders.of_far.norm"}
    assert not any(isinstance(m, RunningNorm) for m in Agent(SPACE, 2).modules())


def test_absent_modalities_do_not_count() -> None:
    agent = Agent(SPACE, 2, normalize="running")
    presence = torch.ones(2, 3, 4)
    presence[1, :, 1] = 0.0  # far, the second by name besides "presence"
    far = torch.randn(2, 3, 2, 2)
    agent.update_statistics({"far": far, "presence": presence})
    near, norm = (agent.encoders[f"of_{name}"].norm for name in ("near", "far"))
    assert (int(near.count), int(norm.count)) == (0, 3)
    torch.testing.assert_close(norm.running_mean, far[0].flatten(1).mean(0))


def test_forward_passes_change_no_statistics_and_the_first_phase_may_freeze_them() -> None:
    for normalize, counts in (("running", 12), ("first-task", 6)):
        agent = Agent(SPACE, 2, normalize=normalize).train()  # type: ignore[arg-type]
        norm = agent.encoders["of_near"].norm
        obs = {"near": torch.randn(2, 3, 2)}
        agent(obs, agent.initial_state(3), torch.ones(2, 3, dtype=torch.bool))
        assert norm.count == 0
        agent.update_statistics(obs)
        agent.end_first_phase()
        agent.update_statistics(obs)
        assert norm.count == counts
        again = Agent(SPACE, 2, normalize=normalize)  # type: ignore[arg-type]
        again.load_state_dict(agent.state_dict())
        again.update_statistics(obs)
        assert again.encoders["of_near"].norm.count == counts + 6 * (normalize == "running")


def test_the_encoder_reads_what_the_layer_returns() -> None:
    torch.manual_seed(0)
    encoder = VectorEncoder(2, 4, normalize=True)
    x = 100 + torch.randn(50, 2)
    assert encoder.norm is not None
    encoder.norm.update(x)
    expected = encoder.layers((x - x.mean(0)) / x.std(0, correction=0))
    torch.testing.assert_close(encoder(x)[:, 0], expected, rtol=1e-3, atol=1e-4)


def test_a_normalisation_without_effect_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^normalize is 'always'; choose none, running, first-ta"):
        Agent(SPACE, 2, normalize="always")  # type: ignore[arg-type]
    image = spaces.Dict({"image": SPACE["image"], "cue": SPACE["cue"]})
    with pytest.raises(ValueError, match=r"^normalize is 'running', but no vector has a built-in"):
        Agent(image, 2, normalize="running")

    class Own(nn.Flatten):
        size = 2

    with pytest.raises(ValueError, match=r"^normalize is 'running', but no vector has a built-in"):
        Agent(spaces.Dict({"x": SPACE["near"]}), 2, normalize="running", encoders={"x": Own()})
