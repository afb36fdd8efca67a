"""The space of token ids."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces


class Tokens(spaces.Box):
    """Token ids of a text, int32 (length,), from 0, the padding, to vocabulary - 1.

    A plain Box of integers holds numbers. This one says that they are ids, so that an agent gives
    each its own embedding.

    Args:
        vocabulary: Number of ids with the padding, 1 or more.
        length: Number of tokens of a text, 1 or more.

    Raises:
        ValueError: If a number is out of its range.
    """

    def __init__(self, vocabulary: int, length: int) -> None:
        for name, value in (("vocabulary", vocabulary), ("length", length)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be 1 or more")
        super().__init__(0, vocabulary - 1, (length,), np.int32)
        self.vocabulary = vocabulary

    def __repr__(self) -> str:
        return f"Tokens(vocabulary={self.vocabulary}, length={self.shape[0]})"
