"""Token ids to text: the checkpoint's vocabulary of SentencePiece pieces."""

import re
from dataclasses import dataclass

WORD_START = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The pieces by token id; the blank is the id after the last."""

    pieces: tuple[str, ...]

    @property
    def blank(self) -> int:
        return len(self.pieces)

    def text(self, token: int) -> str:
        """The piece as it is written; control pieces (`<unk>`, `<pad>`, ...) are empty.

        A piece that is a byte (`<0xE2>`) is what it is: several together spell a letter.
        """
        piece = self.pieces[token]
        return "" if _is_control(piece) else piece


def _is_control(piece: str) -> bool:
    if _BYTE.fullmatch(piece):
        return False
    return len(piece) > 2 and piece.startswith("<") and piece.endswith(">")
