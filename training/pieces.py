"""The tokenizer: a SentencePiece BPE model over the vocabulary's written forms."""

import argparse
import io
from functools import cache
from pathlib import Path

import numpy as np
import sentencepiece

from training.words import capitalised, lexicons, sentence

OTHER_PIECES = 4
"""`<unk>`, and letters without a piece."""
SENTENCES_PER_LANGUAGE = 1200
SEED = 7
LONGEST_WHOLE_LETTERS = 7
WORD_START = "\u2581"


def written_sentences() -> list[str]:
    """Write random sentences of every language, as in the corpus."""
    randomness = np.random.default_rng(SEED)
    written = []
    for lexicon in lexicons().values():
        for _ in range(SENTENCES_PER_LANGUAGE):
            count = int(randomness.integers(1, 9))
            words = tuple(str(word) for word in randomness.choice(lexicon.words, count))
            written.append(sentence(words))
    return written


def own_pieces() -> list[str]:
    """Return the full stop, short words and the halves of long ones, lower case and capitalised.

    A short word may last two frames of 80 ms, too little to spell it in.
    """
    words = {word for lexicon in lexicons().values() for word in lexicon.words}
    own = {part for word in words for form in (word, capitalised(word)) for part in parts(form)}
    return [".", *sorted(own)]


def parts(form: str) -> tuple[str, ...]:
    """Return a short word unchanged, a long one in two parts."""
    if len(form) <= LONGEST_WHOLE_LETTERS:
        return (WORD_START + form,)
    middle = len(form) // 2
    return WORD_START + form[:middle], form[middle:]


def train_tokenizer(model_path: Path) -> None:
    """Train and write `model_path`; `<unk>` is 0, and there are no other control pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(written_sentences()),
        model_writer=model,
        model_type="bpe",
        vocab_size=len(own_pieces()) + OTHER_PIECES,
        character_coverage=1.0,
        byte_fallback=False,
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        user_defined_symbols=own_pieces(),
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    model_path.parent.mkdir(parents=True, exist_ok=True)
    model_path.write_bytes(model.getvalue())


class Pieces:
    """Converts words to piece ids and back."""

    def __init__(self, model_path: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
        self.full_stop = int(self._processor.piece_to_id("."))
        self.word_ids = cache(self._word_ids)

    def __len__(self) -> int:
        return int(self._processor.get_piece_size())

    def vocabulary(self) -> list[str]:
        """All pieces in the order of their ids."""
        return [str(self._processor.id_to_piece(index)) for index in range(len(self))]

    def _word_ids(self, word: str) -> tuple[int, ...]:
        return tuple(self._processor.encode(word))

    def text(self, ids: list[int]) -> str:
        """Return the text of a token sequence."""
        return str(self._processor.decode(ids))


def main() -> None:
    """Train the tokenizer and show how many pieces words have."""
    parser = argparse.ArgumentParser(description="python -m training.pieces --into tokenizer.model")
    parser.add_argument("--into", type=Path, required=True)
    path = parser.parse_args().into
    train_tokenizer(path)
    pieces = Pieces(path)
    forms = {form for lexicon in lexicons().values() for form in lexicon.words}
    forms |= {capitalised(form) for form in forms}
    counts = np.bincount([len(pieces.word_ids(form)) for form in forms])
    print(f"{len(pieces)} pieces; words by number of pieces: {dict(enumerate(counts.tolist()))}")


if __name__ == "__main__":
    main()
