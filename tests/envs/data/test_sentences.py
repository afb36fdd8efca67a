"""The built-in sentences: their parts, their splits, and what a stream makes of them."""

from collections import Counter
from itertools import product

import gymnasium as gym
import numpy as np
from stream_helpers import infos

from everloop.envs import ByColumn, TextStreamVectorEnv, check_task_env
from everloop.envs.data import HashTokenizer, sentences
from everloop.envs.data.sentences import DOMAINS, LENGTH, TOPICS, VOCABULARY, WORDS
from everloop.envs.data.tokens import WORD


def test_every_sentence_occurs_once_and_every_cell_is_split() -> None:
    train, test = sentences()
    rows = Counter(row.tobytes() for part in (train, test) for row in part.inputs)
    assert (len(train), len(test)) == (461, 115)
    assert set(rows.values()) == {1}
    for part in (train, test):
        assert set(zip(part.labels.tolist(), part.columns["domain"].tolist(), strict=True)) == set(
            product(range(4), DOMAINS)
        )
        assert part.vocabulary_size == VOCABULARY


def test_a_sentence_holds_a_thing_of_its_topic_in_a_pattern_of_its_domain() -> None:
    train, _ = sentences()
    known = {
        HashTokenizer(VOCABULARY)
        .encode([pattern.format(thing=thing, word=word)], LENGTH)
        .tobytes(): (topic, domain)
        for topic, domain in product(TOPICS, DOMAINS)
        for pattern, thing, word in product(DOMAINS[domain], TOPICS[topic], WORDS)
    }
    for row, label, domain in zip(train.inputs, train.labels, train.columns["domain"], strict=True):
        assert known[row.tobytes()] == (train.classes[label], domain)


def test_no_two_words_share_a_token_and_no_sentence_is_cut() -> None:
    texts = [
        pattern.format(thing=thing, word=word)
        for pattern, thing, word in product(
            [p for ps in DOMAINS.values() for p in ps],
            [t for ts in TOPICS.values() for t in ts],
            WORDS,
        )
    ]
    words = {word.lower() for text in texts for word in WORD.findall(text)}
    ids = HashTokenizer(VOCABULARY).encode(sorted(words), 1)
    assert len(np.unique(ids)) == len(words)
    assert max(len(WORD.findall(text)) for text in texts) <= LENGTH


def test_a_text_stream_without_arguments_is_a_world() -> None:
    env = gym.make("everloop/TextStream-v0")
    check_task_env(env, steps=5)
    assert [task.name for task in env.get_wrapper_attr("tasks")] == ["food-music", "sport-weather"]


def test_the_registers_are_domains_of_the_same_classes() -> None:
    world = TextStreamVectorEnv(4, task_split=ByColumn("domain"), label_space="within_task")
    assert [task.name for task in world.tasks] == ["chat", "diary", "news"]
    world.reset(seed=0, options={"task": "diary"})
    served = infos(world, 20)
    train, _ = sentences()
    assert (train.columns["domain"][served["index"]] == "diary").all()
    np.testing.assert_array_equal(train.labels[served["index"]], served["label"])
