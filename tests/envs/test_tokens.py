"""The space of token ids, which wrappers and vectors keep."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RecordEpisodeStatistics
from user_world import Walk

from everloop.contract import Observation, modality_kind
from everloop.envs import SyncTaskVectorEnv, Tokens, VectorFeedback


def test_token_ids_are_int32_from_the_padding_to_the_last_word() -> None:
    space = Tokens(vocabulary=30, length=5)
    assert space.dtype == np.int32
    assert (space.low == 0).all()
    assert (space.high == 29).all()
    assert space.shape == (5,)
    assert repr(space) == "Tokens(vocabulary=30, length=5)"
    for again in (copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert again == space
        assert again.vocabulary == 30
    for name, sizes in (("vocabulary", (0, 5)), ("length", (30, 0))):
        with pytest.raises(ValueError, match=f"^{name} is 0; it must be 1 or more$"):
            Tokens(*sizes)


class Says(gym.ObservationWrapper[Observation, int, Observation]):
    """Adds a text to the walk."""

    def __init__(self, env: Walk) -> None:
        super().__init__(env)
        walk = env.observation_space.spaces
        self.observation_space = spaces.Dict({**walk, "text": Tokens(30, 5)})

    def observation(self, observation: Observation) -> Observation:
        return {**observation, "text": np.arange(5, dtype=np.int32)}


def test_wrappers_and_vectors_keep_what_a_modality_is() -> None:
    world = VectorFeedback(SyncTaskVectorEnv([lambda: RecordEpisodeStatistics(Says(Walk()))] * 2))
    kinds = {
        name: modality_kind(name, space)
        for name, space in world.single_observation_space.spaces.items()  # type: ignore[attr-defined]
    }
    assert kinds == {"feedback": "vector", "place": "vector", "text": "tokens"}
    assert world.reset(seed=0)[0]["text"].tolist() == [[0, 1, 2, 3, 4]] * 2
