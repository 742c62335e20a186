"""Packed batches with chunks of all edge-case lengths."""

import torch

from parakeet_worker.engine.native.rows import Plan, Rows, rows_of

HOP = 160
CPU = torch.device("cpu")

SAMPLES = (
    (),
    (0,),
    (1,),
    (159,),
    (160,),
    (HOP * 8,),
    (HOP * 8 + 1, 0, HOP * 9 + 7),
    (HOP * 65, 5, HOP * 64, HOP * 63, 0),
    (1700, 6230, 3, 4999, 640, 33, 6399, 5120, 961),
)
"""Samples of each row: no rows, less than a frame, whole and partial tokens, empty rows between
others."""


def layout(samples: tuple[int, ...], group_tokens: int = 1 << 30) -> Rows:
    scales = [0.25 + index for index in range(len(samples))]
    return rows_of(Plan(samples, HOP), scales, CPU, group_tokens)
