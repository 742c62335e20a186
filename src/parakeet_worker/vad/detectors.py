"""Speech detectors by a request's `vad` option."""

from dataclasses import dataclass

from parakeet_worker.options import Vad
from parakeet_worker.vad.base import Detector, VadBackend
from parakeet_worker.vad.energy import EnergyDetector
from parakeet_worker.vad.silero_detector import SileroDetector


@dataclass(frozen=True, slots=True)
class Detectors:
    """Creates a detector for one channel of a recording."""

    backend: VadBackend | None
    """Silero's network; None for engines whose input is no speech."""

    def __call__(self, vad: Vad) -> Detector:
        if self.backend is None or vad == "off":
            return EnergyDetector()
        return SileroDetector(self.backend)
