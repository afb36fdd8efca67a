"""Tests run on one thread: so small networks gain nothing from more, and lose much beside a busy neighbour."""

import torch

torch.set_num_threads(1)
