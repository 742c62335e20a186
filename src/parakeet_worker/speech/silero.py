"""Voice activity by Silero's network, in plain PyTorch, on the weights of the package `silero-vad`.

The package itself is never imported: it sets the number of torch's threads for the whole process
and calls the network once per frame. Its `.jit` holds the weights that it runs by default; the
`.safetensors` beside it are of an older version.
"""

import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from parakeet_worker.engine.base import Samples
from parakeet_worker.errors import WeightsCorrupt, WeightsMissing
from parakeet_worker.speech.base import FRAME_SAMPLES, Detector, Probabilities, gain

CONTEXT_SAMPLES = 64
"""Samples before each frame that the network hears with it."""

_FFT_SAMPLES = 256
_HOP_SAMPLES = 128
_WIDTH = 128

State = tuple[Tensor, Tensor]
"""What the LSTM carries from frame to frame, (1, B, 128) each."""


class Silero(nn.Module):
    """Spectrum, four convolutions, an LSTM over the frames, and one probability for each."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(_FFT_SAMPLES), persistent=False)
        self.encoder = nn.Sequential(
            *(nn.Conv1d(_FFT_SAMPLES // 2 + 1, 128, kernel_size=3, padding=1), nn.ReLU()),
            *(nn.Conv1d(128, 64, kernel_size=3, padding=1, stride=2), nn.ReLU()),
            *(nn.Conv1d(64, 64, kernel_size=3, padding=1, stride=2), nn.ReLU()),
            *(nn.Conv1d(64, _WIDTH, kernel_size=3, padding=1), nn.ReLU()),
        )
        self.rnn = nn.LSTM(_WIDTH, _WIDTH, batch_first=True)
        self.output = nn.Conv1d(_WIDTH, 1, kernel_size=1)

    def forward(self, samples: Tensor, state: State) -> tuple[Tensor, State]:
        """(B, 64 + 512 T) samples and the state before them -> (B, T) and the state after them."""
        batch = len(samples)
        frames = samples.unfold(1, CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES).flatten(0, 1)
        states = self.encoder(self._spectrum(frames)).view(batch, -1, _WIDTH)
        states, state = self.rnn(states, state)
        logits = self.output(functional.relu(states).transpose(1, 2))
        return torch.sigmoid(logits.squeeze(1)), state

    def silence(self, batch: int = 1) -> State:
        """The state before a recording begins."""
        zeros = self.window.new_zeros(1, batch, _WIDTH)
        return zeros, zeros

    def _spectrum(self, frames: Tensor) -> Tensor:
        """(N, 576) samples -> (N, 129, 4) magnitudes."""
        mirrored = functional.pad(frames, (0, _HOP_SAMPLES // 2), mode="reflect")
        windows = mirrored.unfold(1, _FFT_SAMPLES, _HOP_SAMPLES) * self.window
        spectrum: Tensor = torch.fft.rfft(windows)
        return spectrum.abs().transpose(1, 2)


def load(device: str = "cpu", path: Path | None = None) -> Silero:
    """The network on `device`, from the package or another `.jit` like it.

    Raises `WeightsMissing` or `WeightsCorrupt`.
    """
    path = path or _packaged()
    if not path.is_file():
        raise WeightsMissing("silero-vad", [str(path)])
    network = Silero()
    try:
        stored = torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        network.load_state_dict({ours: stored[theirs] for ours, theirs in _NAMES.items()})
    except (RuntimeError, KeyError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    return network.to(device).eval().requires_grad_(False)


def _packaged() -> Path:
    try:
        package = distribution("silero-vad")
    except PackageNotFoundError as failure:
        raise WeightsMissing("silero-vad", ["the installed packages"]) from failure
    return Path(str(package.locate_file("silero_vad/data/silero_vad.jit")))


# Our name of each parameter to Silero's; the Fourier transform, stored there as a convolution,
# is computed here.
_NAMES = {
    **{
        f"encoder.{2 * layer}.{part}": f"_model.encoder.{layer}.reparam_conv.{part}"
        for layer in range(4)
        for part in ("weight", "bias")
    },
    **{
        f"rnn.{part}_l0": f"_model.decoder.rnn.{part}"
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    },
    **{f"output.{part}": f"_model.decoder.decoder.2.{part}" for part in ("weight", "bias")},
}


_here = threading.local()


def _compute_alone() -> None:
    """Let torch compute in this thread and no other, unless it is the program's own.

    The network is small: torch's threads wait for each other longer than they work, and many
    recordings are listened to at once as it is.
    """
    if hasattr(_here, "alone") or threading.current_thread() is threading.main_thread():
        return
    _here.alone = True
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # That counts for this thread, and for all that come to torch after it: another one says what
    # is to count for those.
    others = threading.Thread(target=torch.set_num_threads, args=(threads,))
    others.start()
    others.join()


class SileroDetector(Detector):
    """The network listening to one recording; many may listen through one network.

    Very quiet recordings are raised for it, by the peak of the last two blocks.
    """

    is_sure = True

    def __init__(self, network: Silero) -> None:
        super().__init__(CONTEXT_SAMPLES)
        self._network = network
        self._state = network.silence()
        self._peak = 0.0

    @torch.inference_mode()
    def _hear(self, block: Samples) -> Probabilities:
        _compute_alone()
        peak = float(np.abs(block).max())
        raised = block * np.float32(gain(max(peak, self._peak)))
        self._peak = peak
        samples = torch.from_numpy(raised).to(self._network.window.device)
        probabilities, self._state = self._network(samples[None], self._state)
        found: Probabilities = probabilities[0].cpu().numpy()
        return found
