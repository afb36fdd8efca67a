"""Speed of our RecurrentPPO policy, beside sb3-contrib's: `python benchmarks/recurrent_speed.py`.

Wanted: at least 2.5 times sb3-contrib's speed. The algorithm, the plant and the rollouts are the
same, on one thread, in turns. The policies are sb3-contrib's "MultiInputLstmPolicy" with separate
LSTMs for actor and critic (its default), the same with one shared LSTM, and our agent (encoders,
cross-attention, one GRU). The speed is steps per second of `learn`, rollouts and updates together;
the best of three rounds counts.
"""

import time
from typing import Any

import torch
from sb3_contrib import RecurrentPPO

from everloop.agents import Agent
from everloop.envs import make_vec
from everloop.loop import likelihood_for
from everloop.loop.sb3.on_policy import RecurrentNetworkPolicy
from everloop.loop.sb3.vec_env import WorldVecEnv

ROUNDS = 3
SETTINGS = (  # copies, n_steps, batch, units
    (8, 128, 256, 256),
    (32, 128, 512, 64),
)


def ours(units: int) -> tuple[Any, dict[str, Any]]:
    """Return our policy class and its keywords, with `units` hidden units."""

    def network(observation_space: Any, action_space: Any) -> Agent:
        size = likelihood_for(action_space).size()
        return Agent(observation_space, size, value_head=True, recurrent=True, hidden_size=units)

    return RecurrentNetworkPolicy, {"network": network}


def theirs(units: int) -> tuple[Any, dict[str, Any]]:
    """Return sb3-contrib's default policy and its keywords."""
    return "MultiInputLstmPolicy", {"lstm_hidden_size": units}


def theirs_shared(units: int) -> tuple[Any, dict[str, Any]]:
    """Return sb3-contrib's policy with one shared LSTM, and its keywords."""
    return "MultiInputLstmPolicy", {
        "lstm_hidden_size": units,
        "shared_lstm": True,
        "enable_critic_lstm": False,
    }


def steps_per_second(
    policy: tuple[Any, dict[str, Any]], copies: int, n_steps: int, batch: int
) -> float:
    """Return the world steps per second of one rollout and its updates, after one to warm up."""
    world: Any = make_vec("everloop/Plant-v0", copies, feedback=True)
    model = RecurrentPPO(
        policy[0],
        WorldVecEnv(world),
        policy_kwargs=policy[1],
        n_steps=n_steps,
        batch_size=batch,
        seed=0,
        device="cpu",
    )
    model.learn(copies * n_steps)  # warm up
    began = time.perf_counter()
    model.learn(copies * n_steps)
    return copies * n_steps / (time.perf_counter() - began)


def main() -> None:
    torch.set_num_threads(1)
    for copies, n_steps, batch, units in SETTINGS:
        print(
            f"{copies} copies, {n_steps} steps, batch {batch}, {units} units, 10 epochs, one "
            f"thread, best of {ROUNDS}"
        )
        makers = {
            "sb3-contrib": theirs,
            "sb3-contrib, shared LSTM": theirs_shared,
            "everloop": ours,
        }
        best = dict.fromkeys(makers, 0.0)
        for _ in range(ROUNDS):
            for name, maker in makers.items():
                best[name] = max(best[name], steps_per_second(maker(units), copies, n_steps, batch))
        for name, speed in best.items():
            print(
                f"  {name:25} {speed:8,.0f} steps/s   everloop / it = "
                f"{best['everloop'] / speed:.2f}"
            )


if __name__ == "__main__":
    main()
