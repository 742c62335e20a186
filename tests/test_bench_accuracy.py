"""Speech sets in every layout, text as it is compared, and word errors as they are counted."""

import json
import shutil
import wave
from itertools import repeat
from pathlib import Path

import pytest

from bench import accuracy
from bench.normalisation import normalised
from bench.utterances import Unreadable, Utterance, read
from bench.word_errors import Errors, compared, difference

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
REFERENCES = {
    each["file"]: each["text"] for each in json.loads((SAMPLES / "manifest.json").read_text())
}

# Python warns when it compiles the normaliser, once per environment.
pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")


def written(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def silence(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(2 * int(16_000 * seconds)))
    return path


def test_a_nemo_manifest(tmp_path):
    adjacent, elsewhere = silence(tmp_path / "set/audio/a.wav"), silence(tmp_path / "b.wav")
    lines = [
        {"audio_filepath": "audio/a.wav", "text": "Ja.", "duration": 1.0, "lang": "de"},
        {"audio_filepath": str(elsewhere), "text": "", "language": "sv-SE"},
        {"audio_filepath": "audio/a.wav", "text": "Vad?"},
    ]
    content = "\n\n".join(json.dumps(line) for line in lines)
    assert read(written(tmp_path / "set/manifest.jsonl", content)) == (
        Utterance(adjacent, "Ja.", "de"),
        Utterance(elsewhere, "", "sv"),
        Utterance(adjacent, "Vad?", None),
    )
    assert len(read(written(tmp_path / "set/manifest.json", content))) == 3


def test_the_projects_own_manifest():
    utterances = read(SAMPLES / "manifest.json")
    assert Utterance(SAMPLES / "en.ogg", REFERENCES["en.ogg"], "en") in utterances
    assert {"mul", None, "uk"} <= {utterance.language for utterance in utterances}


def test_common_voice(tmp_path):
    audio = silence(tmp_path / "sl/clips/common_voice_sl_1.wav")
    content = (
        "client_id\tpath\tsentence_id\tsentence\tup_votes\tlocale\n"
        'f00\tcommon_voice_sl_1.wav\t7\tRekel je "dober dan\t2\tsl\n'
        "f00\tcommon_voice_sl_1.wav\t8\tNe.\t2\t\n"
    )
    assert read(written(tmp_path / "sl/test.tsv", content)) == (
        Utterance(audio, 'Rekel je "dober dan', "sl"),
        Utterance(audio, "Ne.", "sl"),
    )


def test_fleurs(tmp_path):
    audio = silence(tmp_path / "de_de/audio/test/141.wav")
    content = "1674\t141.wav\tEr sagte: „Ja.“\ter sagte ja\te r | j a |\t16000\tMALE\n"
    assert read(written(tmp_path / "de_de/test.tsv", content)) == (
        Utterance(audio, "er sagte ja", "de"),
    )


def test_a_table_with_commas(tmp_path):
    audio = silence(tmp_path / "a.wav")
    content = '\ufeffaudio,text,language\r\na.wav,"Well, ""yes""\nI do.",en_gb\r\n'
    assert read(written(tmp_path / "set.csv", content)) == (
        Utterance(audio, 'Well, "yes"\nI do.', "en"),
    )


def test_librispeech(tmp_path):
    folder = tmp_path / "test-clean/61/70968"
    audio = silence(folder / "61-70968-0000.flac"), silence(folder / "61-70968-0001.flac")
    written(
        folder / "61-70968.trans.txt",
        "61-70968-0000 HE BEGAN A CONFUSED COMPLAINT\n61-70968-0001 YES\n",
    )
    assert read(tmp_path / "test-clean") == (
        Utterance(audio[0], "HE BEGAN A CONFUSED COMPLAINT", None),
        Utterance(audio[1], "YES", None),
    )


def test_a_folder_of_recordings_with_a_text_each(tmp_path):
    one, other = silence(tmp_path / "fr/a.wav"), silence(tmp_path / "fr/deep/b.1.mp3")
    written(tmp_path / "fr/a.txt", "Oui.\n")
    written(tmp_path / "fr/deep/b.1.txt", "Non.")
    written(tmp_path / "fr/notes.txt", "Recorded at home.")
    assert read(tmp_path / "fr") == (
        Utterance(one, "Oui.", "fr"),
        Utterance(other, "Non.", "fr"),
    )


def test_the_error_names_an_unreadable_set(tmp_path):
    silence(tmp_path / "a.wav")
    missing = written(tmp_path / "missing.jsonl", '{"audio_filepath": "b.wav", "text": "x"}')
    mute = written(tmp_path / "mute.jsonl", '{"audio_filepath": "a.wav"}')
    written(tmp_path / "libri/1.trans.txt", "1-1 YES")
    for place, message in (
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path, "no transcripts|no such audio"),
        (tmp_path / "libri", r"no such audio.*1-1"),
        (missing, r"no such audio.*b\.wav"),
        (mute, "without text"),
        (written(tmp_path / "set.xml", "<a/>"), "neither"),
        (written(tmp_path / "empty.csv", ""), "no transcripts"),
    ):
        with pytest.raises(Unreadable, match=message):
            read(place)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Mr. Smith's colour TV [noise] (laughs), uh, okay?", "mister smith is color tv okay"),
        ("It isn't 1,000; it's two thousand and five.", "it is not 1000 it is 2005"),
        ("At the theatre — he'll realise!", "at the theater he will realize"),
        ("Cause I dunno", "cause i dunno"),
        ("twenty one percent of £5 million", "21% of £5000000"),
        ("Naïve café", "naive cafe"),
        ("Hmm.", ""),
    ],
)
def test_english_is_normalised_as_by_whisper(text, plain):
    assert normalised(text, "en") == plain


@pytest.mark.parametrize(
    ("text", "language", "plain"),
    [
        ("Où est l’hôtel ? (rires)", "fr", "où est l hôtel"),
        ("„Größe“ – 12,5 %", "de", "größe 12 5"),
        ("Добрий день, п'ять!", "uk", "добрий день п ять"),
        ("Πού είναι;", "el", "πού είναι"),
        ("Il-ħabib\u00ad ta' Għawdex", "mt", "il ħabib ta għawdex"),
        ("s\u030c <unk> colour", "mul", "š colour"),
        ("…", "pl", ""),
    ],
)
def test_other_languages_keep_their_letters(text, language, plain):
    assert normalised(text, language) == plain


@pytest.mark.parametrize(
    ("reference", "hypothesis", "errors"),
    [
        ("one two three", "one two three", Errors(3, 0, 0, 0)),
        ("one two three", "one too three", Errors(3, 1, 0, 0)),
        ("one two three", "one three", Errors(3, 0, 0, 1)),
        ("one two three", "one two and three", Errors(3, 0, 1, 0)),
        ("one two three", "", Errors(3, 0, 0, 3)),
        ("one", "two one three four", Errors(1, 0, 3, 0)),
    ],
)
def test_word_errors_are_counted(reference, hypothesis, errors):
    assert compared(reference, hypothesis) == errors


def test_the_rate_can_exceed_100_percent_and_sums_are_weighted_by_words():
    assert compared("one", "two three").percent == 200
    assert (Errors(9, 1, 0, 0) + Errors(1, 0, 1, 1)) == Errors(10, 1, 1, 1)
    assert (Errors(9, 1, 0, 0) + Errors(1, 0, 1, 1)).percent == 30
    assert Errors().percent == 0


def test_a_difference_is_in_points_and_has_an_interval():
    first = list(repeat(Errors(10, 1, 0, 0), 100))
    other = [*repeat(Errors(10, 2, 0, 0), 5), *first[5:]]
    result = difference(first, other)
    assert result.points == pytest.approx(0.5)
    assert 0 <= result.interval_points[0] < 0.5 < result.interval_points[1] < 1.5
    assert result.utterances == 5
    assert difference(other, first).points == pytest.approx(-0.5)
    assert difference(first, first).interval_points == (0, 0)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two sets that the demo checkpoint transcribes without errors, except for those added here."""
    folder = tmp_path_factory.mktemp("sets")
    rows = [
        ("en.ogg", "en", "uh " + REFERENCES["en.ogg"]),
        ("nl.m4a", "nl", REFERENCES["nl.m4a"] + " Extra."),
    ]
    lines = []
    for file, language, text in rows:
        shutil.copy(SAMPLES / file, folder)
        lines.append({"audio_filepath": file, "text": text, "language": language})
    lines.append({"audio_filepath": silence(folder / "t.wav", 0.01).name, "text": "Yes it is."})
    lines.append({"audio_filepath": "t.wav", "text": "[silence]"})
    manifest = written(folder / "one.jsonl", "\n".join(json.dumps(line) for line in lines))
    (folder / "two").mkdir()
    shutil.copy(SAMPLES / "nl.m4a", folder / "two")
    written(folder / "two/nl.txt", REFERENCES["nl.m4a"].upper())
    return manifest, folder / "two"


@pytest.fixture(scope="module")
def measured(sets, tmp_path_factory):
    """The JSON, and the utterances with an error, of two precisions."""
    folder = tmp_path_factory.mktemp("results")
    errors = folder / "errors.jsonl"
    options = ["--device", "cpu", "--precision", "fp32,int8", "--list-errors", str(errors)]
    options += ["--results", str(folder), "--language", "en", "--together", "3"]
    accuracy.main([*map(str, sets), *options])
    (result,) = folder.glob("accuracy-demo-*.json")
    listed = [json.loads(line) for line in errors.read_text(encoding="utf-8").splitlines()]
    return json.loads(result.read_text(encoding="utf-8")), listed


def test_the_demo_checkpoint_is_measured(measured, sets):
    document, _ = measured
    fp32 = document["figures"][0]
    one, two = f"{sets[0].parent.name}/one", "two"
    assert [(row["set"], row["language"], row["utterances"]) for row in fp32["rows"]] == [
        (one, "en", 2),
        (one, "nl", 1),
        (two, "en", 1),
    ]
    english, dutch, shouted = (row["errors"] for row in fp32["rows"])
    assert english["deletions"] == 3, "a recording that is too short counts as silence"
    assert dutch == {**dutch, "deletions": 1, "substitutions": 0, "insertions": 0}
    assert shouted == {**shouted, "deletions": 0, "substitutions": 0, "insertions": 0}
    assert fp32["refused"] == 1
    assert fp32["audio_seconds"] > 10
    assert fp32["rtfx"] == pytest.approx(fp32["audio_seconds"] / fp32["wall_seconds"])


def test_the_mean_of_the_rows_and_the_pooled_rate_are_reported(measured):
    fp32 = measured[0]["figures"][0]
    rates = [row["wer_percent"] for row in fp32["rows"]]
    words = sum(row["errors"]["words"] for row in fp32["rows"])
    assert fp32["mean_wer_percent"] == pytest.approx(sum(rates) / 3)
    assert fp32["pooled"]["words"] == words
    assert fp32["pooled_wer_percent"] == pytest.approx(100 * 4 / words)


def test_other_precisions_are_compared_with_the_first(measured):
    fp32, int8 = measured[0]["figures"]
    assert fp32["difference"] is None
    assert int8["difference"]["points"] == pytest.approx(
        int8["pooled_wer_percent"] - fp32["pooled_wer_percent"]
    )


def test_utterances_with_an_error_are_listed_the_worst_first(measured):
    listed = [line for line in measured[1] if line["precision"] == "fp32"]
    assert [(line["errors"], Path(line["audio"]).name) for line in listed] == [
        (3, "t.wav"),
        (1, "nl.m4a"),
    ]
    assert listed[0]["refusal"].startswith("audio_too_short")
    assert listed[1]["reference"] == listed[1]["hypothesis"] + " Extra."


def test_a_set_without_words_is_rejected(tmp_path):
    silence(tmp_path / "a.wav")
    written(tmp_path / "a.txt", "ignore time segment in scoring")
    with pytest.raises(Unreadable, match="no words"):
        accuracy.main([str(tmp_path)])


def test_without_a_set_the_samples_are_measured():
    references = accuracy.collected([accuracy.SAMPLES], "en")
    assert len({one.language for one in references}) == 26
    assert all(one.words for one in references)
