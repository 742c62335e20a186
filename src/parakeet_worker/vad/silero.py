"""Silero's voice activity network in plain PyTorch, with the weights of the package `silero-vad`.

The package itself is never imported: it sets torch's thread count for the whole process and calls
the network once per frame. Its `.jit` contains the weights used by default; its `.safetensors` are
of an older version.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from parakeet_worker.errors import WeightsCorrupt, WeightsMissing
from parakeet_worker.vad.base import CONTEXT_SAMPLES, FRAME_SAMPLES

_FFT_SAMPLES = 256
_HOP_SAMPLES = 128
_WIDTH = 128
# Frames encoded per step: enough to occupy a GPU; 100 MB.
_FRAMES_PER_STEP = 8192

State = tuple[Tensor, Tensor]
"""State of the LSTM between frames, (1, B, 128) each."""


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

    def forward(
        self, samples: Tensor, state: State, frames: Sequence[int] | None = None
    ) -> tuple[Tensor, State]:
        """(B, 64 + 512 T) samples and state to (B, T) probabilities and the next state.

        If rows are padded at their ends, `frames` has the number of frames of each; the returned
        state is the one after these.
        """
        batch = len(samples)
        every = samples.unfold(1, CONTEXT_SAMPLES + FRAME_SAMPLES, FRAME_SAMPLES).flatten(0, 1)
        parts = every.split(_FRAMES_PER_STEP)
        encoded = torch.cat([self.encoder(self._spectrum(part)) for part in parts])
        states, state = self._recurrent(encoded.view(batch, -1, _WIDTH), state, frames)
        logits = self.output(functional.relu(states).transpose(1, 2))
        return torch.sigmoid(logits.squeeze(1)), state

    def _recurrent(
        self, encoded: Tensor, state: State, frames: Sequence[int] | None
    ) -> tuple[Tensor, State]:
        if frames is None or len(set(frames)) == 1:
            result: tuple[Tensor, State] = self.rnn(encoded, state)
            return result
        packed = pack_padded_sequence(
            encoded, torch.tensor(frames), batch_first=True, enforce_sorted=False
        )
        states, state = self.rnn(packed, state)
        padded, _ = pad_packed_sequence(states, batch_first=True, total_length=encoded.shape[1])
        return padded, state

    def initial_state(self, batch: int = 1) -> State:
        """State at the start of a recording."""
        zeros = self.window.new_zeros(1, batch, _WIDTH)
        return zeros, zeros

    def _spectrum(self, frames: Tensor) -> Tensor:
        """(N, 576) samples -> (N, 129, 4) magnitudes."""
        mirrored = functional.pad(frames, (0, _HOP_SAMPLES // 2), mode="reflect")
        windows = mirrored.unfold(1, _FFT_SAMPLES, _HOP_SAMPLES) * self.window
        spectrum: Tensor = torch.fft.rfft(windows)
        return spectrum.abs().transpose(1, 2)


def load(device: str = "cpu", path: Path | None = None) -> Silero:
    """Load the network to `device`, from the package or from another `.jit` of the same layout.

    Raises `WeightsMissing` or `WeightsCorrupt`.
    """
    path = path or _packaged()
    if not path.is_file():
        raise WeightsMissing("silero-vad", [str(path)])
    network = Silero()
    try:
        stored = torch.jit.load(path, map_location="cpu").state_dict()
        network.load_state_dict({name: stored[stored_name] for name, stored_name in _NAMES.items()})
    except (RuntimeError, KeyError) as failure:
        raise WeightsCorrupt(str(path), f"{type(failure).__name__}: {failure}") from failure
    return network.to(device).eval().requires_grad_(False)


def _packaged() -> Path:
    try:
        package = distribution("silero-vad")
    except PackageNotFoundError as failure:
        raise WeightsMissing("silero-vad", ["the installed packages"]) from failure
    return Path(str(package.locate_file("silero_vad/data/silero_vad.jit")))


# Parameter names here to those in Silero's file. The Fourier transform, stored there as a
# convolution, is computed.
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
