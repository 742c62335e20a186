"""RunPod's prices, and the workers that they apply to."""

from parakeet_worker.client.answer import LOCAL
from parakeet_worker.client.endpoint import BALANCED_HOST

PRICED = "August 2026"
"""Date of these prices in RunPod's documentation; the console has today's."""

DOLLARS_PER_SECOND = {
    "RTX 4000": 0.00016,
    "RTX A4000": 0.00016,
    "RTX A4500": 0.00016,
    "L4": 0.00019,
    "RTX 3090": 0.00019,
    "RTX A5000": 0.00019,
    "RTX 4090": 0.00031,
    "A40": 0.00034,
    "RTX A6000": 0.00034,
    "L40": 0.00053,
    "L40S": 0.00053,
    "RTX 6000 Ada": 0.00053,
    "A100": 0.00076,
    "RTX PRO 6000": 0.00111,
    "H100": 0.00116,
    "H200": 0.00155,
    "B200": 0.00240,
}
"""Serverless, flex workers."""


def is_billed(worker: object) -> bool:
    """Whether RunPod bills the seconds of a worker: not those of another server or this machine."""
    if not isinstance(worker, str) or "://" not in worker:
        return worker != LOCAL
    return worker.partition("://")[2].partition("/")[0].endswith(BALANCED_HOST)
