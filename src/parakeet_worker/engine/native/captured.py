"""The greedy search of `decoder` on buffers that never move, so that a CUDA graph can hold it.

A step writes in place and asks the host nothing; a graph of several steps is replayed until a
flag, read one replay late so that the GPU never waits for it, says that no row is active.
`GreedyDecoder` stays the definition of correct.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from parakeet_worker.engine.native.decoder import Emission, GreedyDecoder, Scorer

_STEPS_PER_REPLAY = 16
_ROWS = (1, 4, 16, 32, 64, 128, 256)
_FRAMES_STEP = 128
# Speech has three to four tokens a second and 12.5 frames: a token on every frame is far beyond.
_TOKENS_PER_FRAME = 1


class CapturedDecoder:
    """Decodes like `GreedyDecoder`; batches are rounded up to buckets with a graph each.

    A graph is captured when its bucket is first used. Without `capture` the same steps run one
    by one, on any device.
    """

    def __init__(
        self, scorer: Scorer, durations: tuple[int, ...], max_symbols: int, *, capture: bool
    ) -> None:
        self._scorer = scorer
        self._durations = durations
        self._max_symbols = max_symbols
        self._capture = capture
        self._plain = GreedyDecoder(scorer, durations, max_symbols)
        self._buckets: dict[tuple[int, int], _Bucket] = {}

    @torch.inference_mode()
    def decode(
        self, states: Tensor, lengths: Tensor, forbidden: Tensor | None = None
    ) -> list[tuple[Emission, ...]]:
        """As `GreedyDecoder.decode`, which has the batches that no graph is made for."""
        batch, frames = states.shape[:2]
        if batch > _ROWS[-1] or frames == 0 or forbidden is not None:
            return self._plain.decode(states, lengths, forbidden)
        bucket = self._bucket(batch, frames, states)
        bucket.fill(self._scorer.encode(states), lengths)
        bucket.run()
        if bucket.overflowed(batch):
            return self._plain.decode(states, lengths)
        return bucket.emissions(batch)

    def _bucket(self, batch: int, frames: int, states: Tensor) -> "_Bucket":
        rows = next(size for size in _ROWS if size >= batch)
        padded = -(-frames // _FRAMES_STEP) * _FRAMES_STEP
        if (rows, padded) not in self._buckets:
            step = _Step(self._scorer, self._durations, self._max_symbols, states.device)
            self._buckets[rows, padded] = _Bucket(step, rows, padded, states, self._capture)
        return self._buckets[rows, padded]


class _Buffers:
    """Where a bucket's search stands, and what it has emitted; every tensor keeps its place."""

    def __init__(self, scorer: Scorer, rows: int, frames: int, like: Tensor) -> None:
        self.tokens_per_row = frames * _TOKENS_PER_FRAME
        whole = like.new_zeros(rows, dtype=torch.long)
        # One place more than there are tokens: rows that emit nothing write there.
        emitted = whole.new_zeros(rows, self.tokens_per_row + 1)
        self.encoded = like.new_zeros(rows, frames, scorer.width, dtype=torch.float32)
        self.lengths, self.frame, self.symbols_here, self.count = (whole.clone() for _ in range(4))
        self.rows = torch.arange(rows, device=like.device)
        self.hidden, self.cell = scorer.silence(rows, like)
        self.predicted = like.new_zeros(rows, scorer.width, dtype=torch.float32)
        self.tokens, self.frames, self.durations = (emitted.clone() for _ in range(3))
        self.logprobs = emitted.to(torch.float32)
        self.running = whole.new_zeros(1)


class _Step:
    """One decision of every row, in place."""

    def __init__(
        self, scorer: Scorer, durations: tuple[int, ...], max_symbols: int, device: torch.device
    ) -> None:
        self.scorer = scorer
        self._durations = torch.tensor(durations, device=device)
        self._max_symbols = max_symbols
        self._blank = scorer.blank

    def start(self, at: _Buffers) -> None:
        """Forget the last batch: every row at its first frame, with nothing said."""
        for cleared in (at.frame, at.symbols_here, at.count, at.hidden, at.cell):
            cleared.zero_()
        start = torch.full_like(at.frame, self._blank)
        self._say(at, start, torch.ones_like(start, dtype=torch.bool))

    def __call__(self, at: _Buffers) -> None:
        active = at.frame < at.lengths
        here = at.frame.clamp(max=at.encoded.shape[1] - 1)
        scores = self.scorer.score(at.encoded[at.rows, here], at.predicted)
        token_scores = scores[:, : self._blank + 1]
        best, tokens = token_scores.max(dim=1)
        durations = self._durations[scores[:, self._blank + 1 :].argmax(dim=1)]
        emitted = active & (tokens != self._blank)
        self._write(at, emitted, tokens, durations, best - token_scores.logsumexp(dim=1))
        self._move(at, active, emitted, durations)
        self._say(at, tokens, emitted)
        at.running.copy_((at.frame < at.lengths).any())

    def _write(
        self, at: _Buffers, emitted: Tensor, tokens: Tensor, durations: Tensor, logprobs: Tensor
    ) -> None:
        rubbish = at.tokens_per_row
        place = torch.where(emitted, at.count.clamp(max=rubbish), rubbish).unsqueeze(1)
        for kept, values in (
            (at.tokens, tokens),
            (at.frames, at.frame),
            (at.durations, durations),
            (at.logprobs, logprobs),
        ):
            kept.scatter_(1, place, values.unsqueeze(1))
        at.count += emitted

    def _move(self, at: _Buffers, active: Tensor, emitted: Tensor, durations: Tensor) -> None:
        moved = torch.where(emitted, durations, durations.clamp(min=1))
        symbols = torch.where(emitted & (moved == 0), at.symbols_here + 1, 0)
        stuck = symbols >= self._max_symbols
        at.symbols_here.copy_(symbols.masked_fill(stuck, 0))
        at.frame += torch.where(active, moved + stuck, 0)

    def _say(self, at: _Buffers, tokens: Tensor, emitted: Tensor) -> None:
        hidden, cell = self.scorer.say(tokens, at.hidden, at.cell)
        said = emitted[None, :, None]
        at.hidden.copy_(torch.where(said, hidden, at.hidden))
        at.cell.copy_(torch.where(said, cell, at.cell))
        at.predicted.copy_(self.scorer.predict(at.hidden))


class _Bucket:
    """Buffers for up to `rows` rows of up to `frames` frames, and a way to run steps on them."""

    def __init__(self, step: _Step, rows: int, frames: int, like: Tensor, capture: bool) -> None:
        self._at = _Buffers(step.scorer, rows, frames, like)
        self._step = step
        self._advance: Callable[[], None] = self._captured() if capture else self._steps
        self._flags = _Flags(self._at.running, overlapped=capture)

    def fill(self, encoded: Tensor, lengths: Tensor) -> None:
        """Put a batch in; rows that are not used have no frames."""
        batch, frames = encoded.shape[:2]
        self._at.encoded[:batch, :frames].copy_(encoded)
        self._at.lengths.zero_()
        self._at.lengths[:batch].copy_(lengths.clamp(max=frames))
        self._step.start(self._at)

    def run(self) -> None:
        """Advance until no row is active."""
        self._flags.reset()
        while True:
            self._advance()
            if self._flags.ended():
                return

    def overflowed(self, batch: int) -> bool:
        """Whether a row emitted more than there was place for."""
        return int(self._at.count[:batch].max()) > self._at.tokens_per_row

    def emissions(self, batch: int) -> list[tuple[Emission, ...]]:
        at = self._at
        counts = at.count[:batch].tolist()
        longest = max(counts)
        columns = [
            kept[:batch, :longest].tolist()
            for kept in (at.tokens, at.frames, at.durations, at.logprobs)
        ]
        return [
            tuple(
                Emission(*emission)
                for emission in zip(*(column[row][:count] for column in columns), strict=True)
            )
            for row, count in enumerate(counts)
        ]

    def _steps(self) -> None:
        for _ in range(_STEPS_PER_REPLAY):
            self._step(self._at)

    def _captured(self) -> Callable[[], None]:
        """A graph of the steps; they run once before, so that nothing is set up inside it."""
        self._step.start(self._at)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self._steps()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Others may use the GPU meanwhile: speech is detected in threads beside the engine's.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._steps()
        return graph.replay


class _Flags:
    """Tells that all rows have ended, one replay late where asking at once would stall the GPU."""

    def __init__(self, running: Tensor, *, overlapped: bool) -> None:
        self._running = running
        self._overlapped = overlapped
        if overlapped:
            self._copies = [torch.empty(1, dtype=running.dtype).pin_memory() for _ in range(2)]
            self._events = [torch.cuda.Event() for _ in range(2)]
        self._asked = 0

    def reset(self) -> None:
        self._asked = 0

    def ended(self) -> bool:
        if not self._overlapped:
            return not bool(self._running)
        turn = self._asked % 2
        self._copies[turn].copy_(self._running, non_blocking=True)
        self._events[turn].record()
        self._asked += 1
        if self._asked == 1:
            return False
        self._events[1 - turn].synchronize()
        return not bool(self._copies[1 - turn])
