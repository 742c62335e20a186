"""The SentencePiece vocabulary of a checkpoint."""

import re
from dataclasses import dataclass

WORD_START = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Pieces by token id; the blank is the id after the last piece."""

    pieces: tuple[str, ...]

    @property
    def blank(self) -> int:
        return len(self.pieces)

    def text(self, token: int) -> str:
        """The piece of a token id; the empty string for control pieces (`<unk>`, `<pad>`, ...).

        Byte pieces (`<0xE2>`) are returned unchanged: several of them encode one character.
        """
        piece = self.pieces[token]
        return "" if _is_control(piece) else piece


def _is_control(piece: str) -> bool:
    if _BYTE.fullmatch(piece):
        return False
    return len(piece) > 2 and piece.startswith("<") and piece.endswith(">")
