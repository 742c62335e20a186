"""A binding to libespeak-ng: text in, samples and the start of every word out, in one process."""

import ctypes
import ctypes.util
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SYNCHRONOUS_OUTPUT = 2
POSITION_IN_CHARACTERS = 1
UTF8_TEXT = 1
EVENT_LIST_END = 0
EVENT_WORD = 1
CONTINUE = 0
BUFFER_MILLISECONDS = 200

RATE, VOLUME, PITCH, PITCH_RANGE, WORD_GAP = 1, 2, 3, 4, 7


class EspeakError(RuntimeError):
    """A call to libespeak-ng failed."""


class _EventId(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    """`espeak_EVENT` of speak_lib.h, version 1.51."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings of a voice."""

    voice: str
    """A voice with its variant, as in `en-us+f2`."""
    words_per_minute: int
    pitch: int
    """0 to 99; 50 is the voice's own."""
    pitch_range: int
    """0 to 99; 50 is the voice's own, 0 is monotone."""
    word_gap: int
    """Pause between words in units of 10 ms at the normal speed."""


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """Audio and word events of one call."""

    samples: NDArray[np.int16]
    sample_rate: int
    word_starts: tuple[tuple[int, float], ...]
    """For every word event: the word's first character in the text, and its start in seconds."""


class Synthesiser:
    """The library; open it once per process, since its state is global."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("espeak-ng") or "libespeak-ng.so.1"
        self._library = ctypes.CDLL(name)
        self.sample_rate = self._library.espeak_Initialize(
            SYNCHRONOUS_OUTPUT, BUFFER_MILLISECONDS, None, 0
        )
        if self.sample_rate <= 0:
            raise EspeakError("espeak_Initialize failed: is espeak-ng-data installed?")
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)
        self._chunks: list[NDArray[np.int16]] = []
        self._word_starts: list[tuple[int, float]] = []
        self._voice = ""

    def speak(self, text: str, setting: Setting) -> Speech:
        """Synthesise the text without pauses."""
        self._apply(setting)
        self._chunks, self._word_starts = [], []
        spoken = text.encode("utf-8")
        failed = self._library.espeak_Synth(
            spoken, len(spoken) + 1, 0, POSITION_IN_CHARACTERS, 0, UTF8_TEXT, None, None
        )
        if failed:
            raise EspeakError(f"espeak_Synth returned {failed}")
        samples = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Speech(samples, self.sample_rate, tuple(self._word_starts))

    def _apply(self, setting: Setting) -> None:
        if setting.voice != self._voice:
            if self._library.espeak_SetVoiceByName(setting.voice.encode("utf-8")):
                raise EspeakError(f"no such voice: {setting.voice}")
            self._voice = setting.voice
        for parameter, value in (
            (RATE, setting.words_per_minute),
            (VOLUME, 100),
            (PITCH, setting.pitch),
            (PITCH_RANGE, setting.pitch_range),
            (WORD_GAP, setting.word_gap),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)

    def _receive(
        self,
        samples: "ctypes._Pointer[ctypes.c_short]",
        count: int,
        events: "ctypes._Pointer[_Event]",
    ) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        position = 0
        while events[position].type != EVENT_LIST_END:
            event = events[position]
            if event.type == EVENT_WORD:
                self._word_starts.append((event.text_position - 1, event.audio_position / 1000))
            position += 1
        return CONTINUE
