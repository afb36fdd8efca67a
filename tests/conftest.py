"""Tests run on one thread: so small networks gain nothing from more, and lose much beside a busy neighbour.

Property tests try the same examples each time, so that a test run has one answer; `pytest --hypothesis-profile=default`
looks for new ones.
"""

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("same", derandomize=True)
settings.load_profile("same")
