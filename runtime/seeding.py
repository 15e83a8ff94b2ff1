"""Seeds the random generators that a run draws from."""
import random

import numpy as np
import torch


def seed_everything(*key):
    """Seeds all global random generators from `key`, a few integers.

    Both rollout engines draw from these generators, even while they start.
    Call this before each use."""
    sequence = np.random.SeedSequence(key)
    value = int(sequence.generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)
