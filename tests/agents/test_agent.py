"""The agent: sequences, missing modalities, heads per task, and what it refuses."""

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from network_helpers import first_predictions
from torch import Tensor, nn

from everloop.agents import Agent, EmbeddingEncoder, VectorEncoder
from everloop.envs import Tokens

SMALL: dict[str, Any] = {
    "token_size": 8,
    "attention_heads": 2,
    "hidden_size": 6,
    "recurrent": True,
}
NAMES = ("cue", "image", "touch", "voice")


def space(image: tuple[int, int, int] = (8, 8, 1), presence: bool = False) -> spaces.Dict:
    parts: dict[str, spaces.Space[Any]] = {
        "voice": spaces.Box(-1.0, 1.0, (3,), np.float32),
        "touch": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
        "image": spaces.Box(0, 255, image, np.uint8),
        "cue": spaces.Box(0.0, 1.0, (3,), np.float32),
    }
    if presence:
        parts["presence"] = spaces.Box(0.0, 1.0, (4,), np.float32)
    return spaces.Dict(parts)


def agent(
    observation_space: spaces.Dict | None = None,
    prediction_size: int = 5,
    seed: int = 0,
    **parameters: Any,
) -> Agent:
    torch.manual_seed(seed)
    return Agent(
        space() if observation_space is None else observation_space,
        prediction_size,
        **SMALL | parameters,
    )


def observe(
    T: int, B: int, image: tuple[int, int, int] = (8, 8, 1), seed: int = 0
) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "voice": torch.randn(T, B, 3),
        "touch": torch.randn(T, B, 2, 2),
        "image": torch.randint(0, 256, (T, B, *image), dtype=torch.uint8),
        "cue": torch.nn.functional.one_hot(torch.randint(0, 3, (T, B)), 3).float(),
    }


def close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("image", [(8, 8, 1), (8, 8, 3), (28, 28, 1), (32, 32, 3), (9, 21, 2)])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("value_head", [True, False])
def test_outputs_and_state_have_the_documented_shapes(
    image: tuple[int, int, int], recurrent: bool, value_head: bool
) -> None:
    net = agent(space(image), recurrent=recurrent, value_head=value_head)
    start = torch.zeros(4, 3, dtype=torch.bool)
    output, state = net(observe(4, 3, image), net.initial_state(3), start)
    assert output.prediction.shape == (4, 3, 5)
    if value_head:
        assert output.value.shape == (4, 3)
    else:
        assert output.value is None
    assert state.shape == (3, 6)
    assert not net.initial_state(3).any()


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=20)
def test_a_sequence_equals_its_single_steps_and_its_single_examples(
    T: int, B: int, seed: int, recurrent: bool, per_task: bool
) -> None:
    """Only the state passes from step to step, and nothing from example to example."""
    net = agent(value_head=True, recurrent=recurrent, head_per_task=per_task)
    obs, start = observe(T, B, seed=seed), torch.rand(T, B) < 0.3
    first = torch.randn(B, 6)
    output, last = net(obs, first, start)
    state = first
    for t in range(T):
        step, state = net({name: x[t : t + 1] for name, x in obs.items()}, state, start[t : t + 1])
        assert close(step.prediction[0], output.prediction[t])
        assert close(step.value[0], output.value[t])
    assert close(state, last)
    for b in range(B):
        alone, state = net(
            {name: x[:, b : b + 1] for name, x in obs.items()},
            first[b : b + 1],
            start[:, b : b + 1],
        )
        assert close(alone.prediction[:, 0], output.prediction[:, b])
        assert close(alone.value[:, 0], output.value[:, b])
        assert close(state[0], last[b])


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("changed", [*NAMES, "state"])
def test_a_change_of_one_example_affects_only_that_example(recurrent: bool, changed: str) -> None:
    """Each modality affects it; the state only affects a recurrent agent."""
    net = agent(recurrent=recurrent)
    obs, state = observe(3, 4), torch.randn(4, 6)
    start = torch.zeros(3, 4, dtype=torch.bool)
    start[1, 1] = start[2, 2] = True
    before, _ = net(obs, state, start)
    other, other_state = {name: x.clone() for name, x in obs.items()}, state.clone()
    if changed == "state":
        other_state[2] += 1
    else:
        other[changed][:, 2] = 1 - other[changed][:, 2]
    after, _ = net(other, other_state, start)
    same = (before.prediction == after.prediction).flatten(2).all(-1).all(0)
    assert same.tolist() == [True, True, not recurrent and changed == "state", True]


def test_an_agent_without_memory_ignores_state_and_starts() -> None:
    net = agent(recurrent=False, value_head=True)
    obs, state = observe(3, 2), torch.randn(2, 6)
    output, passed = net(obs, state, torch.zeros(3, 2, dtype=torch.bool))
    other, _ = net(obs, torch.randn(2, 6), torch.ones(3, 2, dtype=torch.bool))
    assert torch.equal(output.prediction, other.prediction)
    assert torch.equal(output.value, other.value)
    assert torch.equal(passed, state)


@pytest.mark.parametrize(
    "missing", [["cue"], ["image"], ["touch", "voice"], ["cue", "image", "touch"]]
)
@pytest.mark.parametrize("recurrent", [True, False])
def test_a_missing_modality_equals_one_with_presence_zero(
    missing: list[str], recurrent: bool
) -> None:
    """Presence is in the order of the names. Absent values are ignored and get no gradient."""
    net = agent(space(presence=True), recurrent=recurrent)
    obs, state = observe(3, 2), torch.randn(2, 6)
    start = torch.zeros(3, 2, dtype=torch.bool)
    expected, _ = net({name: x for name, x in obs.items() if name not in missing}, state, start)
    presence = torch.tensor([float(name not in missing) for name in NAMES]).expand(3, 2, 4)
    masked, _ = net(obs | {"presence": presence}, state, start)
    assert close(masked.prediction, expected.prediction)
    noise = {name: 1 - obs[name] for name in missing}
    other, _ = net(obs | noise | {"presence": presence}, state, start)
    assert torch.equal(other.prediction, masked.prediction)
    masked.prediction.sum().backward()
    for name, encoder in zip(net.names, net.encoders.values(), strict=True):
        reached = any(p.grad is not None and p.grad.any() for p in encoder.parameters())
        assert reached == (name not in missing)


def test_presence_holds_for_single_steps_and_examples() -> None:
    """Presence adds no token: if everything is present, it changes nothing."""
    net = agent(space(presence=True), recurrent=False)
    assert net.names == list(NAMES)
    obs, state = observe(2, 2), torch.zeros(2, 6)
    start = torch.zeros(2, 2, dtype=torch.bool)
    full, _ = net(obs, state, start)
    presence = torch.ones(2, 2, 4)
    assert close(net(obs | {"presence": presence}, state, start)[0].prediction, full.prediction)
    presence[1, 0, NAMES.index("touch")] = 0
    output, _ = net(obs | {"presence": presence}, state, start)
    differs = (output.prediction - full.prediction).abs().amax(-1) > 1e-4
    assert differs.tolist() == [[False, False], [True, False]]
    without, _ = net({name: x for name, x in obs.items() if name != "touch"}, state, start)
    assert close(output.prediction[1, 0], without.prediction[1, 0])
    presence[..., NAMES.index("voice")] = 0
    both, _ = net(
        {name: x for name, x in obs.items() if name != "touch"} | {"presence": presence},
        state,
        start,
    )
    neither, _ = net({name: x for name, x in obs.items() if name in ("cue", "image")}, state, start)
    assert close(both.prediction, neither.prediction)


@pytest.mark.parametrize("recurrent", [True, False])
def test_without_any_present_modality_outputs_and_gradients_are_finite(recurrent: bool) -> None:
    net = agent(space(presence=True), recurrent=recurrent)
    output, _ = net(
        observe(2, 2) | {"presence": torch.zeros(2, 2, 4)},
        torch.zeros(2, 6),
        torch.zeros(2, 2, dtype=torch.bool),
    )
    output.prediction.sum().backward()
    assert output.prediction.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    if not recurrent:
        assert torch.equal(output.prediction, net.head.linear.bias.expand(2, 2, 5))


def test_the_cue_selects_the_head() -> None:
    """Task k has the head's rows k P to (k + 1) P - 1 and row k of the value head.

    Only these rows get a gradient.
    """
    net = agent(head_per_task=True, recurrent=False, prediction_size=4, value_head=True)
    assert net.head.linear.weight.shape == (12, 8)
    obs, state = observe(1, 6), torch.zeros(6, 6)
    start = torch.ones(1, 6, dtype=torch.bool)
    features = []
    net.head.register_forward_hook(lambda _module, inputs, _output: features.append(inputs[0]))
    for k in range(3):
        obs["cue"] = torch.eye(3)[k].expand(1, 6, 3)
        net.zero_grad()
        output, _ = net(obs, state, start)
        rows = slice(4 * k, 4 * k + 4)
        assert close(
            output.prediction[0],
            features[-1] @ net.head.linear.weight[rows].T + net.head.linear.bias[rows],
        )
        assert output.value is not None
        assert net.value is not None
        assert close(
            output.value[0], features[-1] @ net.value.linear.weight[k] + net.value.linear.bias[k]
        )
        (output.prediction.square().sum() + output.value.square().sum()).backward()
        assert net.value.linear.weight.grad is not None
        assert net.value.linear.weight.grad.any(1).nonzero().flatten().tolist() == [k]
        assert net.head.linear.weight.grad is not None
        assert net.head.linear.weight.grad.any(1).nonzero().flatten().tolist() == list(
            range(4 * k, 4 * k + 4)
        )


def test_heads_per_task_need_a_cue() -> None:
    without_cue = spaces.Dict(
        {name: part for name, part in space().spaces.items() if name != "cue"}
    )
    with pytest.raises(
        ValueError,
        match=r"^head_per_task needs the modality 'cue'; this world has image, touch, voice$",
    ):
        Agent(without_cue, 2, head_per_task=True)
    obs = {name: x for name, x in observe(1, 1).items() if name != "cue"}
    net = agent(head_per_task=True)
    with pytest.raises(
        ValueError, match="the observation has no modality 'cue', which selects the head"
    ):
        first_predictions(net, obs)


@pytest.mark.parametrize(
    "names", [("type", "keys", "forward"), ("a.b", "a_b", "a__b"), ("", "of_", "weight")]
)
def test_a_modality_may_have_any_name(names: tuple[str, ...]) -> None:
    """Also a name that torch reserves for modules. Each modality gets its own encoder."""
    sizes = dict(zip(names, (2, 3, 4), strict=True))
    net = agent(
        spaces.Dict({name: spaces.Box(-1.0, 1.0, (size,)) for name, size in sizes.items()}),
        recurrent=False,
    )
    obs = {name: torch.randn(1, 2, size) for name, size in sizes.items()}
    before = first_predictions(net, obs)
    for name in names:
        after = first_predictions(net, obs | {name: obs[name] + 1})
        assert (after != before).all(), name


def test_an_observation_without_known_modalities_is_refused() -> None:
    net = agent(space(presence=True))
    for obs in ({}, {"smell": torch.zeros(1, 1, 3)}, {"presence": torch.ones(1, 1, 4)}):
        with pytest.raises(
            ValueError,
            match=r"^the observation has .*; it needs at least one of cue, image, touch, voice$",
        ):
            net(obs, net.initial_state(1), torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (
            spaces.Box(-1.0, 1.0, (3,)),
            (
                r"^the observation space is Box\(-1\.0, 1\.0, \(3,\), float32\); it must be a Dict "
                "with one Box per modality$"
            ),
        ),
        (
            spaces.Dict({"smell": spaces.Discrete(3)}),
            r"^modality 'smell' is Discrete\(3\); it must be a Box$",
        ),
        (
            spaces.Dict({"image": spaces.Box(0, 255, (3, 8, 8), np.uint8)}),
            (
                r"^modality 'image' is uint8 of shape \(3, 8, 8\), but a picture is uint8 of shape "
                r"\(height, width, channels\), .*; change the world, or give the agent "
                r"encoders={'image': \.\.\.}$"
            ),
        ),
        (
            spaces.Dict({"ram": spaces.Box(0, 255, (128,), np.uint8)}),
            r"^modality 'ram' is uint8 of shape \(128,\), but a picture is uint8 of shape",
        ),
        (
            spaces.Dict({"map": spaces.Box(0.0, 1.0, (8, 8, 3))}),
            r"^modality 'map' is float32 of shape \(8, 8, 3\), but a picture is uint8 of shape",
        ),
        (
            spaces.Dict({"presence": spaces.Box(0.0, 1.0, (1,))}),
            r"^the observation space is Dict\(.*\); it needs a modality besides 'presence'$",
        ),
        (
            spaces.Dict(
                {"voice": spaces.Box(0.0, 1.0, (2,)), "presence": spaces.Box(0.0, 1.0, (3,))}
            ),
            (
                r"^modality 'presence' has shape \(3,\); it must be \(1,\), one entry per other "
                "modality$"
            ),
        ),
    ],
)
def test_a_bad_observation_space_is_refused(wrong: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Agent(wrong, 2)


def test_attention_heads_that_do_not_divide_the_token_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^heads is 3; it must divide token_size, 8$"):
        agent(attention_heads=3)


def test_prediction_scale_multiplies_the_initial_predictions() -> None:
    """It does not change the values."""
    obs, start = observe(2, 2), torch.ones(2, 2, dtype=torch.bool)
    plain, scaled = (
        agent(prediction_scale=scale, value_head=True)(obs, torch.zeros(2, 6), start)[0]
        for scale in (1.0, 0.01)
    )
    torch.testing.assert_close(scaled.prediction, 0.01 * plain.prediction, rtol=1e-4, atol=1e-7)
    assert torch.equal(scaled.value, plain.value)
    assert plain.prediction.std() > 0.01


def test_agents_of_the_same_seed_have_the_same_weights() -> None:
    """In whatever order the space lists its modalities."""
    parts = space().spaces
    reordered = spaces.Dict(OrderedDict((name, parts[name]) for name in reversed(list(parts))))
    assert list(reordered) == list(parts)[::-1]  # Gymnasium sorts a plain dict
    first, second = agent(), agent(reordered)
    other = agent(seed=1)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    )


def test_every_weight_gets_a_gradient() -> None:
    """No unused parameter, which an optimizer or a penalty would carry along."""
    net = agent(value_head=True, head_per_task=True)
    output, _ = net(observe(4, 8), torch.randn(8, 6), torch.zeros(4, 8, dtype=torch.bool))
    (output.prediction.square().sum() + output.value.square().sum()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_integers_are_numbers_unless_their_space_says_that_they_are_token_ids() -> None:
    """An embedding would need a row for each of 2^31 values."""
    counters = spaces.Box(0, np.iinfo(np.int32).max, (2,), np.int32)
    net = agent(spaces.Dict({"counters": counters, "text": Tokens(31, 6)}))
    counts, text = (net.encoders[name] for name in ("of_counters", "of_text"))
    assert isinstance(counts, VectorEncoder)
    assert isinstance(text.backbone, EmbeddingEncoder)
    assert text.backbone.embedding.num_embeddings == 31


def test_an_own_encoder_decides_for_an_unclear_modality_and_gets_the_rows_as_they_are() -> None:
    class Maps(nn.Module):
        size = 3

        def forward(self, x: Tensor) -> Tensor:
            assert x.shape == (6, 8, 8, 3)
            return x.mean((1, 2))

    maps = spaces.Dict({"map": spaces.Box(0.0, 1.0, (8, 8, 3))})
    net = agent(maps, recurrent=False, encoders={"map": Maps()})
    assert first_predictions(net, {"map": torch.rand(1, 6, 8, 8, 3)}).shape == (1, 6, 5)
