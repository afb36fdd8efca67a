"""A small set of labelled sentences that every user has without a download."""

from __future__ import annotations

from itertools import product

import numpy as np

from everloop.envs.data.examples import Examples
from everloop.envs.data.tokens import HashTokenizer, Tokenizer

VOCABULARY = 4096
LENGTH = 12
TOPICS = {
    "food": ("the soup", "a fresh loaf", "the cheese", "her recipe", "the kitchen", "an apple pie"),
    "music": ("the violin", "a slow waltz", "the choir", "her piano", "the concert", "an old song"),
    "sport": (
        "the striker",
        "a late goal",
        "the race",
        "her team",
        "the stadium",
        "a tennis match",
    ),
    "weather": ("the storm", "a warm wind", "the fog", "heavy snow", "the forecast", "a clear sky"),
}
DOMAINS = {
    "chat": ("lol {thing} was {word} , you should have been there", "omg {word} !! {thing} again"),
    "diary": ("today I wrote that {thing} was {word}", "I keep thinking of {thing} , so {word}"),
    "news": ("{thing} was {word} , officials said on Monday", "report : {word} week for {thing}"),
}
WORDS = ("wonderful", "disappointing", "surprising", "quiet")


def sentences(
    tokenizer: Tokenizer | None = None, length: int = LENGTH
) -> tuple[Examples, Examples]:
    """Return sentences of four topics, the classes, in three registers, the column "domain".

    They are all combinations of 6 things a topic, 2 patterns a register and 4 words: 576 sentences,
    of which every fifth is a test example.

    Args:
        tokenizer: Turns texts into token ids. None means `HashTokenizer(4096)`.
        length: Tokens to keep of each text, 1 or more.

    Returns:
        (train, test) examples, token ids int32 (N, length), padded with 0.
    """
    tokens = HashTokenizer(VOCABULARY) if tokenizer is None else tokenizer
    rows = [
        (pattern.format(thing=thing, word=word), label, domain)
        for label, things in enumerate(TOPICS.values())
        for domain, patterns in DOMAINS.items()
        for pattern, thing, word in product(patterns, things, WORDS)
    ]
    whole = Examples(
        tokens.encode([text for text, _, _ in rows], length),
        np.array([label for _, label, _ in rows]),
        tuple(TOPICS),
        {"domain": np.array([domain for _, _, domain in rows])},
        tokens.vocabulary,
    )
    test = np.arange(len(whole)) % 5 == 4
    return whole[~test], whole[test]
