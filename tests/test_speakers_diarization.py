"""From samples to turns, with the real networks and with made windows."""

import itertools
import tracemalloc
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest

from parakeet_worker.options import SpeakerCount
from parakeet_worker.speakers import networks
from parakeet_worker.speakers.clustering import unit
from parakeet_worker.speakers.diarization import Diarization, activity
from parakeet_worker.speakers.recording import RecordingDiarization
from parakeet_worker.speakers.windows import (
    FRAME_SAMPLES,
    HOP_FRAMES,
    LONG,
    PITCH_FRAMES,
    WINDOW_FRAMES,
    Window,
    cut,
    slide,
    step_centre,
)
from recordings import decode, noise, silence, tone
from speech import named

RATE = 16_000
ANY = SpeakerCount()
ALL = (0, WINDOW_FRAMES)
SILENT = np.zeros((WINDOW_FRAMES, 3), dtype=bool)
UNVOICED = np.full(PITCH_FRAMES, np.nan, np.float16)


@pytest.fixture(scope="module")
def both():
    created = networks.Networks()
    yield created
    created.close()


@pytest.fixture(scope="module")
def several():
    """18 s of one reader, then 6 s of another."""
    samples = decode(named("minute").path)
    return np.concatenate((samples[: 9 * RATE], samples[18 * RATE : 24 * RATE]))


def diarized(both, samples, count=ANY, step=RATE):
    recording = RecordingDiarization(both, count)
    for begin in range(0, len(samples), step):
        recording.feed(samples[begin : begin + step])
    recording.finish()
    return recording.identified()


def speakers(recording):
    return list(dict.fromkeys(turn.speaker for turn in recording.turns))


def window_of(active, voices=None, used=ALL):
    """A window with the mean of the orthogonal embeddings of the `voices` in each span."""
    pieces, steps = cut(active, LONG, used), slide(active, used)
    numbers = np.array([step.number for step in steps], dtype=np.int64)
    embeddings, of_steps = (embedded(spans, voices) for spans in (pieces, steps))
    return Window(active, UNVOICED, pieces, embeddings, numbers, of_steps.astype(np.float16), used)


def embedded(spans, voices):
    vectors = np.zeros((len(spans), 192), dtype=np.float32)
    for vector, span in zip(vectors, spans, strict=True):
        np.add.at(vector, voices[span.first : span.after], 1.0)
    return unit(vectors)


def test_two_readers_are_two_speakers_with_turns_of_their_own(both, several):
    recording = diarized(both, several)
    assert speakers(recording) == ["Speaker 1", "Speaker 2"]
    first = [turn for turn in recording.turns if turn.speaker == "Speaker 1"]
    assert max(turn.end_seconds for turn in first) < 10
    assert all(0 <= turn.start_seconds < turn.end_seconds <= 15.1 for turn in recording.turns)
    assert all(0.5 < turn.confidence <= 1 for turn in recording.turns)


def test_the_confidence_is_of_the_similarity_and_not_constant(both, several):
    """A single speaker has no other to be confused with, and yet no certainty."""
    alone = diarized(both, several[: 8 * RATE]).turns
    forced = diarized(both, several, SpeakerCount(1, 1)).turns
    assert all(0.5 < turn.confidence < 1 for turn in alone)
    assert len({turn.confidence for turn in (*alone, *forced)}) > 2
    # Two people under one label are less alike than one person.
    assert min(turn.confidence for turn in forced) < min(turn.confidence for turn in alone)


def test_blocks_of_any_length_give_the_same_turns(both, several):
    assert diarized(both, several, step=7_777).turns == diarized(both, several, step=10**6).turns


def test_one_reader_is_split_if_two_are_required_and_many_are_merged(both, several):
    one = several[: 8 * RATE]
    assert speakers(diarized(both, one)) == ["Speaker 1"]
    assert len(speakers(diarized(both, one, SpeakerCount(2, 2)))) == 2
    assert speakers(diarized(both, several, SpeakerCount(1, 1))) == ["Speaker 1"]


def test_channels_are_diarized_separately_and_numbered_through(both, several):
    left, right = several[: 8 * RATE], several[9 * RATE : 15 * RATE]
    stereo = np.stack((left, np.pad(right, (0, len(left) - len(right)))), axis=1)
    recording = diarized(both, stereo)
    assert {(turn.channel, turn.speaker) for turn in recording.turns} == {
        (1, "Speaker 1"), (2, "Speaker 2"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "samples",
    [silence(12), noise(3, 0.001), tone(440, 3), noise(0.01, 0.1)],
    ids=["silence", "quiet noise", "tone", "10 ms"],
)
def test_audio_without_speech_has_no_speaker_and_a_warning_if_some_are_required(both, samples):
    recording = RecordingDiarization(both, SpeakerCount(2, 4))
    recording.feed(samples)
    recording.finish()
    assert recording.identified().turns == ()
    assert [notice.code for notice in recording.warnings] == ["fewer_speakers"]


def test_samples_that_are_no_numbers_are_silence(both, several):
    broken = several[: 8 * RATE].copy()
    broken[100:200] = np.nan
    assert speakers(diarized(both, broken)) == ["Speaker 1"]


def melody(seconds):
    """Chords of three harmonic notes each, a new one every half second, as an organ plays them."""
    random = np.random.default_rng(5)
    clock = np.arange(RATE // 2) / RATE
    fade = np.minimum(1, np.minimum(clock, clock[::-1]) / 0.02)
    chords = []
    for _ in range(round(2 * seconds)):
        notes = 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11, 12], 3, replace=False) / 12)
        partials = [np.sin(2 * np.pi * note * k * clock) / k for note in notes for k in (1, 2, 3)]
        chords.append(0.05 * fade * np.sum(partials, axis=0))
    return np.concatenate(chords).astype(np.float32)


@pytest.mark.parametrize("samples", [melody(15), noise(12, 0.1)], ids=["music", "loud noise"])
def test_music_and_noise_have_no_speaker(both, samples):
    recording = RecordingDiarization(both, ANY)
    recording.feed(samples)
    recording.finish()
    assert recording.identified().turns == ()
    assert recording.warnings == ()


def test_music_before_speech_does_not_change_who_speaks(both, several):
    recording = diarized(both, np.concatenate((melody(10), several)))
    assert speakers(recording) == ["Speaker 1", "Speaker 2"]
    assert min(turn.start_seconds for turn in recording.turns) > 9.5


def test_a_recording_of_three_seconds_has_its_speaker(both, several):
    assert speakers(diarized(both, several[: 3 * RATE])) == ["Speaker 1"]


def test_times_start_at_the_first_sample(both, several):
    plain = diarized(both, several)
    recording = RecordingDiarization(both, SpeakerCount(), start_seconds=100.0)
    recording.feed(several)
    recording.finish()
    moved = recording.identified()
    assert [turn.start_seconds - 100 for turn in moved.turns] == pytest.approx(
        [turn.start_seconds for turn in plain.turns], abs=2e-3
    )
    times = np.arange(0.0, 15.0, 0.1)
    (before,), (after,) = plain.similarities, moved.similarities
    assert after.at(times + 100) == pytest.approx(before.at(times), abs=1e-5, nan_ok=True)


def test_the_voice_at_any_time_is_that_of_its_speaker(both, several):
    (similarities,) = diarized(both, several).similarities
    assert similarities.speakers == ("Speaker 1", "Speaker 2")
    assert similarities.confidences == (1.0, 1.0)
    assert similarities.at(np.array([2.0, 13.0])).argmax(axis=1).tolist() == [0, 1]
    assert np.isnan(similarities.at(np.array([-5.0, 60.0]))).all()


def test_a_recording_that_ends_early_cancels_its_windows():
    submitted = []

    class Never:
        def submit(self, *_):
            submitted.append(Future())
            return submitted[-1]

    recording = RecordingDiarization(Never(), SpeakerCount())
    recording.feed(silence(25))
    recording.close()
    assert submitted
    assert all(future.cancelled() for future in submitted)


class Silent:
    """Windows without speech, computed immediately."""

    def __init__(self):
        self.submitted = 0

    def submit(self, *_):
        self.submitted += 1
        done = Future()
        done.set_result(window_of(SILENT))
        return done


def test_a_deferred_recording_computes_after_its_start():
    networks_ = Silent()
    recording = RecordingDiarization(networks_, ANY, deferred=True)
    recording.feed(silence(25))
    assert networks_.submitted == 0
    finishing = Thread(target=recording.finish)
    finishing.start()
    finishing.join(0.2)
    assert finishing.is_alive()
    assert networks_.submitted == 0
    recording.start()
    finishing.join(60)
    assert networks_.submitted == 5
    assert recording.identified().turns == ()


def test_after_its_start_a_recording_computes_each_window():
    networks_ = Silent()
    recording = RecordingDiarization(networks_, ANY, deferred=True)
    recording.feed(silence(12))
    recording.start()
    recording.feed(silence(10))
    assert networks_.submitted == 3


def test_windows_that_wait_are_limited():
    networks_ = Silent()
    recording = RecordingDiarization(networks_, ANY, deferred=True)
    for _ in range(20):
        recording.feed(silence(10))
    assert networks_.submitted >= 33
    recording.close()


def test_a_closed_recording_neither_waits_nor_computes():
    networks_ = Silent()
    recording = RecordingDiarization(networks_, ANY, deferred=True)
    recording.feed(silence(25))
    recording.close()
    with pytest.raises(CancelledError):
        recording.finish()
    assert networks_.submitted == 0


def test_recordings_in_flight_share_batches(several):
    sizes = []

    class Counting(networks.Networks):
        def _windows(self, batch):
            sizes.append(len(batch))
            return super()._windows(batch)

    counting = Counting()
    window = np.pad(several[: 8 * RATE], (0, 2 * RATE))
    futures = [counting.submit(window, ALL) for _ in range(6)]
    results = [future.result() for future in futures]
    counting.close()
    assert max(sizes) > 1
    assert all(np.array_equal(each.active, results[0].active) for each in results)


def test_only_spans_of_the_used_frames_are_embedded(both, several):
    window = several[: 10 * RATE]
    whole = both.submit(window, ALL).result()
    middle = both.submit(window, (200, 400)).result()
    assert np.array_equal(middle.active, whole.active)
    kept = [each.after > 200 and each.first < 400 for each in whole.pieces]
    assert 0 < sum(kept) < len(kept)
    assert middle.pieces == tuple(itertools.compress(whole.pieces, kept))
    assert middle.embeddings == pytest.approx(whole.embeddings[kept], abs=1e-4)
    of_middle = np.isin(whole.steps, middle.steps)
    assert 0 < sum(of_middle) < len(of_middle)
    assert set(middle.steps) <= set(whole.steps)
    assert middle.step_embeddings == pytest.approx(whole.step_embeddings[of_middle], abs=2e-3)


def test_a_window_has_the_pitch_of_its_samples(both):
    sawtooth = (np.arange(10 * RATE) * 120 / RATE % 1 - 0.5).astype(np.float32)
    pitch = both.submit(sawtooth, ALL).result().pitch
    assert pitch.shape == (PITCH_FRAMES,)
    assert pitch.astype(np.float32) == pytest.approx(12 * np.log2(120), abs=0.2)
    assert np.isnan(both.submit(silence(10), ALL).result().pitch).all()


def test_every_frame_is_used_in_one_window():
    submitted = []

    class Listed:
        def submit(self, _, used):
            submitted.append(used)
            done = Future()
            done.set_result(window_of(SILENT, used=used))
            return done

    for samples in (1, 160_000, 160_001, 160_000 + 296 * 270, 400_000):
        submitted.clear()
        diarization = Diarization(Listed())
        diarization.feed(np.zeros(samples, np.float32))
        frames = len(diarization.finish(ANY).active)
        spans = [
            (row * HOP_FRAMES + a, row * HOP_FRAMES + b) for row, (a, b) in enumerate(submitted)
        ]
        assert spans[0][0] == 0
        assert min(frames, spans[-1][0] + WINDOW_FRAMES) >= spans[-1][1] >= frames - 4
        assert all(one[1] == other[0] for one, other in itertools.pairwise(spans))


def test_closed_networks_cancel_windows_that_no_batch_contains(several):
    started, proceed = Event(), Event()

    class Waiting(networks.Networks):
        def _windows(self, batch):
            started.set()
            proceed.wait(60)
            return super()._windows(batch)

    waiting = Waiting()
    window = np.pad(several[: 8 * RATE], (0, 2 * RATE))
    first = waiting.submit(window, ALL)
    started.wait(60)
    second = waiting.submit(window, ALL)
    waiting.close()
    proceed.set()
    assert second.cancelled()
    assert first.result().active.any()
    with pytest.raises(RuntimeError):
        waiting.submit(window, ALL)


def made_windows(speakers, windows):
    """Windows in which each of `speakers` has one second in turn, with orthogonal embeddings."""
    per_second = RATE // FRAME_SAMPLES
    total = HOP_FRAMES * (windows - 1) + WINDOW_FRAMES
    who = (np.arange(total) // per_second) % speakers
    windows_made = []
    for row in range(windows):
        local = who[row * HOP_FRAMES :][:WINDOW_FRAMES]
        active = np.zeros((WINDOW_FRAMES, 3), dtype=bool)
        active[np.arange(WINDOW_FRAMES), local % 3] = True
        used = (0 if row == 0 else 146, WINDOW_FRAMES if row == windows - 1 else 442)
        windows_made.append(window_of(active, local, used))
    return windows_made, who


@pytest.mark.parametrize(("semitones", "speakers"), [(0, 1), (6, 2)])
def test_similar_voices_of_different_pitch_are_two_speakers(semitones, speakers):
    windows, who = made_windows(2, 20)
    chance = np.random.default_rng(0)
    for row, window in enumerate(windows):
        for part in (window.embeddings, window.step_embeddings):
            similar = unit(part.astype(np.float32) + 2.2 * np.eye(192, dtype=np.float32)[100])
            noise = chance.standard_normal(similar.shape) * np.sqrt(0.5 / 192)
            part[:] = unit((similar + noise).astype(np.float32))
        at = (np.arange(PITCH_FRAMES) * 320 + 320) // FRAME_SAMPLES
        pitch = 84 + semitones * who[row * HOP_FRAMES + np.minimum(at, WINDOW_FRAMES - 1)]
        windows[row] = replace(window, pitch=(pitch + chance.standard_normal(len(at))).astype("f2"))
    result = activity(windows, ANY, len(who))
    assert result.speakers == speakers
    if speakers == 2:
        assert np.mean(result.active.argmax(axis=1) == who) > 0.95


def test_twenty_speakers_are_distinguished():
    windows, who = made_windows(20, 20)
    result = activity(windows, SpeakerCount(), len(who))
    assert result.speakers == 20
    labels = result.active.argmax(axis=1)
    assert np.mean(labels == who) > 0.95


def test_a_small_speaker_is_a_part_of_the_others_unless_that_many_are_required():
    windows, who = made_windows(2, 12)
    other = np.eye(192, dtype=np.float32)[100]
    few = list(windows)
    embeddings = few[6].embeddings.copy()
    embeddings[[250 < piece.centre < 400 for piece in few[6].pieces]] = other
    of_steps = few[6].step_embeddings.copy()
    of_steps[[250 < step_centre(number) < 400 for number in few[6].steps]] = other
    few[6] = replace(few[6], embeddings=embeddings, step_embeddings=of_steps)
    assert activity(few, SpeakerCount(), len(who)).speakers == 2
    assert activity(few, SpeakerCount(3, 3), len(who)).speakers == 3


def test_a_change_of_speakers_within_a_run_is_where_the_voice_changes():
    """The segmentation has both as one local speaker; long pieces contain both voices."""
    windows, who = made_windows(2, 12)
    turn = slice(300, 336)
    merged = []
    for row, window in enumerate(windows):
        active = np.zeros_like(window.active)
        active[:, 0] = True
        voices = (np.arange(WINDOW_FRAMES) + row * HOP_FRAMES) // 600 % 2
        if row == 5:
            voices[turn] = 1 - voices[turn]
        merged.append(window_of(active, voices, window.used))
    result = activity(merged, SpeakerCount(), len(who))
    assert result.speakers == 2
    row = 5 * HOP_FRAMES
    inside = result.active[row + 300 : row + 336].argmax(axis=1)
    around = result.active[row + 200 : row + 280].argmax(axis=1)
    assert np.mean(inside != around[0]) > 0.6
    assert np.all(around == around[0])


def test_similarities_are_those_of_the_recording_in_all_windows():
    windows, who = made_windows(2, 12)
    result = activity(windows, ANY, len(who))
    frames = np.arange(30, len(who) - 30, 60)  # in the middle of every second
    similar = result.similarities.at(frames * FRAME_SAMPLES / RATE + 0.03)
    assert not np.isnan(similar).any()
    assert np.array_equal(similar.argmax(axis=1), who[frames])


def test_speech_after_the_last_step_has_the_speaker_of_its_piece():
    active = SILENT.copy()
    active[100:300, 0] = active[450:480, 0] = True
    window = window_of(active, np.zeros(WINDOW_FRAMES, dtype=int), (0, 454))
    result = activity([window], ANY, 454)
    assert np.isnan(result.similarities.at(np.array([7.8]))).all()
    assert result.active[450:454].all()
    assert np.all(result.confidence[450:454] > 0.9)


def test_memory_of_an_hour_is_bounded():
    windows, _ = made_windows(3, 20)
    many = windows * 36
    frames = HOP_FRAMES * (len(many) - 1) + WINDOW_FRAMES
    tracemalloc.start()
    result = activity(many, SpeakerCount(), frames)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.speakers == 3
    assert peak < 100 << 20


def test_windows_queued_ahead_are_limited():
    class Slow:
        def __init__(self):
            self.waiting = 0
            self.most = 0

        def submit(self, *_):
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            outer = self

            class Result(Future):
                def result(self, _=None):
                    outer.waiting -= 1
                    return window_of(SILENT)

            return Result()

    slow = Slow()
    diarization = Diarization(slow)
    diarization.feed(silence(400))
    assert 1 < slow.most <= 33
