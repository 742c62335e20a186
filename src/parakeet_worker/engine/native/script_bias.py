"""Logit biases that restrict a row to the tokens of one script."""

from math import inf
from typing import get_args

import torch
from torch import Tensor

from parakeet_worker.engine.native.tokens import Vocabulary
from parakeet_worker.language import Script, allowed

SCRIPT_SLOTS: dict[Script | None, int] = {
    None: 0,
    **{script: slot for slot, script in enumerate(get_args(Script), start=1)},
}
"""Slot of each script in the search's logit-bias table."""


def script_bias(vocabulary: Vocabulary, script: Script) -> Tensor:
    """(tokens + blank,): minus infinity for the tokens of other scripts, 0 for the rest."""
    bias = [0.0 if allowed(piece, script) else -inf for piece in vocabulary.pieces]
    return torch.tensor([*bias, 0.0])
