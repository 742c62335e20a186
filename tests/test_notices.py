"""Warnings: their shape on the wire, and their number."""

from parakeet_worker.notices import MAX_PER_CODE, Notice, limited, messages


def test_a_warning_is_sent_with_its_code_and_the_place_that_it_is_about() -> None:
    notice = Notice("audio_gap", "0.5 s are missing", 1.23456, 1.73456)
    assert notice.document() == {
        "code": "audio_gap", "message": "0.5 s are missing", "start": 1.235, "end": 1.735,
    }  # fmt: skip
    assert Notice("tracks", "2 tracks").document() == {"code": "tracks", "message": "2 tracks"}


def test_the_sentences_of_answers_old_and_new_are_read() -> None:
    assert messages([{"code": "a", "message": "b"}, "c", {}]) == ("b", "c", "")
    assert messages(None) == ()


def test_of_many_warnings_of_a_kind_the_last_counts_the_omitted_ones() -> None:
    gaps = [Notice("audio_gap", "x", float(at), at + 0.5) for at in range(MAX_PER_CODE + 7)]
    shown = limited([*gaps, Notice("tracks", "y")])
    assert shown[:MAX_PER_CODE] == tuple(gaps[:MAX_PER_CODE])
    assert shown[MAX_PER_CODE].code == "tracks"
    assert shown[MAX_PER_CODE + 1 :] == (
        Notice(
            "audio_gap", "7 more warnings of this kind", float(MAX_PER_CODE), MAX_PER_CODE + 6.5
        ),
    )
    assert limited(gaps[:MAX_PER_CODE]) == tuple(gaps[:MAX_PER_CODE])
