import pytest

from parakeet_worker.engine.native.tokens import Vocabulary


def test_the_blank_comes_after_the_last_piece() -> None:
    assert Vocabulary(("▁a", "b")).blank == 2


@pytest.mark.parametrize("control", ["<unk>", "<pad>", "<|nospeech|>"])
def test_a_control_piece_is_an_empty_text(control: str) -> None:
    assert Vocabulary((control, "▁a")).text(0) == ""


@pytest.mark.parametrize("piece", ["▁a", "<", ">", "<>", "▁", "."])
def test_other_pieces_are_unchanged(piece: str) -> None:
    assert Vocabulary((piece,)).text(0) == piece
