"""A text's language is found, with its probability, among the model's 25."""

import json
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet_worker import language as languages
from parakeet_worker.language import LANGUAGES, Script, Spoken, allowed, find, script

SENTENCES = {
    "bg": (
        "Добро утро, как спахте?",
        "Къде е най-близката аптека?",
        "Вчера валя цял ден и останахме вкъщи.",
        "Влакът за Пловдив тръгва след десет минути от втори коловоз.",
        "Не знам какво да кажа.",
    ),
    "hr": (
        "Dobro jutro, kako ste spavali?",
        "Gdje je najbliža ljekarna?",
        "Jučer je cijeli dan padala kiša pa smo ostali kod kuće.",
        "Vlak za Zagreb kreće za deset minuta s drugog kolosijeka.",
        "Tko je otvorio prozor u kuhinji?",
    ),
    "cs": (
        "Dobré ráno, jak jste se vyspali?",
        "Kde je nejbližší lékárna?",
        "Včera celý den pršelo, a tak jsme zůstali doma.",
        "Vlak do Brna odjíždí za deset minut z druhé koleje.",
        "Nevím, co mám říct.",
    ),
    "da": (
        "Godmorgen, har du sovet godt?",
        "Hvor er det nærmeste apotek?",
        "Det regnede hele dagen i går, så vi blev hjemme.",
        "Toget til Aarhus kører om ti minutter fra spor to.",
        "Jeg ved ikke, hvad jeg skal sige.",
    ),
    "nl": (
        "Goedemorgen, heb je goed geslapen?",
        "Waar is de dichtstbijzijnde apotheek?",
        "Gisteren regende het de hele dag, dus bleven we thuis.",
        "De trein naar Utrecht vertrekt over tien minuten van spoor twee.",
        "Ik weet niet wat ik moet zeggen.",
    ),
    "en": (
        "Good morning, did you sleep well?",
        "Where is the nearest pharmacy?",
        "It rained all day yesterday, so we stayed at home.",
        "The train to London leaves in ten minutes from platform two.",
        "I don't know what to say.",
    ),
    "et": (
        "Tere hommikust, kas magasid hästi?",
        "Kus on lähim apteek?",
        "Eile sadas terve päeva vihma ja me jäime koju.",
        "Rong Tartusse väljub kümne minuti pärast teiselt teelt.",
        "Ma ei tea, mida öelda.",
    ),
    "fi": (
        "Hyvää huomenta, nukuitko hyvin?",
        "Missä on lähin apteekki?",
        "Eilen satoi koko päivän, joten jäimme kotiin.",
        "Juna Tampereelle lähtee kymmenen minuutin kuluttua raiteelta kaksi.",
        "En tiedä, mitä sanoa.",
    ),
    "fr": (
        "Bonjour, avez-vous bien dormi ?",
        "Où est la pharmacie la plus proche ?",
        "Hier il a plu toute la journée, alors nous sommes restés à la maison.",
        "Le train pour Lyon part dans dix minutes de la voie deux.",
        "Je ne sais pas quoi dire.",
    ),
    "de": (
        "Guten Morgen, haben Sie gut geschlafen?",
        "Wo ist die nächste Apotheke?",
        "Gestern hat es den ganzen Tag geregnet, also blieben wir zu Hause.",
        "Der Zug nach Berlin fährt in zehn Minuten von Gleis zwei ab.",
        "Ich weiß nicht, was ich sagen soll.",
    ),
    "el": (
        "Καλημέρα, κοιμηθήκατε καλά;",
        "Πού είναι το πιο κοντινό φαρμακείο;",
        "Χθες έβρεχε όλη μέρα και μείναμε στο σπίτι.",
        "Το τρένο για τη Θεσσαλονίκη φεύγει σε δέκα λεπτά.",
        "Δεν ξέρω τι να πω.",
    ),
    "hu": (
        "Jó reggelt, jól aludtál?",
        "Hol van a legközelebbi gyógyszertár?",
        "Tegnap egész nap esett az eső, ezért otthon maradtunk.",
        "A vonat Debrecenbe tíz perc múlva indul a második vágányról.",
        "Nem tudom, mit mondjak.",
    ),
    "it": (
        "Buongiorno, avete dormito bene?",
        "Dov'è la farmacia più vicina?",
        "Ieri ha piovuto tutto il giorno e siamo rimasti a casa.",
        "Il treno per Milano parte tra dieci minuti dal binario due.",
        "Non so che cosa dire.",
    ),
    "lv": (
        "Labrīt, vai tu labi gulēji?",
        "Kur ir tuvākā aptieka?",
        "Vakar visu dienu lija, tāpēc mēs palikām mājās.",
        "Vilciens uz Liepāju atiet pēc desmit minūtēm no otrā ceļa.",
        "Es nezinu, ko teikt.",
    ),
    "lt": (
        "Labas rytas, ar gerai miegojai?",
        "Kur yra artimiausia vaistinė?",
        "Vakar visą dieną lijo, todėl likome namuose.",
        "Traukinys į Kauną išvyksta po dešimties minučių iš antro kelio.",
        "Nežinau, ką pasakyti.",
    ),
    "mt": (
        "Bonġu, irqadt tajjeb?",
        "Fejn hi l-eqreb spiżerija?",
        "Ilbieraħ għamlet ix-xita l-ġurnata kollha u bqajna d-dar.",
        "Il-vapur għal Għawdex jitlaq fi żmien għaxar minuti.",
        "Ma nafx x'għandi ngħid.",
    ),
    "pl": (
        "Dzień dobry, jak się spało?",
        "Gdzie jest najbliższa apteka?",
        "Wczoraj cały dzień padało, więc zostaliśmy w domu.",
        "Pociąg do Krakowa odjeżdża za dziesięć minut z toru drugiego.",
        "Nie wiem, co powiedzieć.",
    ),
    "pt": (
        "Bom dia, dormiu bem?",
        "Onde fica a farmácia mais próxima?",
        "Ontem choveu o dia todo, por isso ficámos em casa.",
        "O comboio para o Porto parte daqui a dez minutos da linha dois.",
        "Não sei o que dizer.",
    ),
    "ro": (
        "Bună dimineața, ați dormit bine?",
        "Unde este cea mai apropiată farmacie?",
        "Ieri a plouat toată ziua, așa că am rămas acasă.",
        "Trenul spre Cluj pleacă peste zece minute de la linia doi.",
        "Nu știu ce să spun.",
    ),
    "ru": (
        "Доброе утро, как вам спалось?",
        "Где здесь ближайшая аптека?",
        "Вчера весь день шёл дождь, и мы остались дома.",
        "Поезд на Москву отправляется через десять минут со второго пути.",
        "Я не знаю, что сказать.",
    ),
    "sk": (
        "Dobré ráno, ako ste sa vyspali?",
        "Kde je najbližšia lekáreň?",
        "Včera celý deň pršalo, a tak sme zostali doma.",
        "Vlak do Košíc odchádza o desať minút z druhej koľaje.",
        "Neviem, čo mám povedať.",
    ),
    "sl": (
        "Dobro jutro, kako ste spali?",
        "Kje je najbližja lekarna?",
        "Včeraj je ves dan deževalo, zato smo ostali doma.",
        "Vlak za Maribor odpelje čez deset minut z drugega tira.",
        "Ne vem, kaj naj rečem.",
    ),
    "es": (
        "Buenos días, ¿habéis dormido bien?",
        "¿Dónde está la farmacia más cercana?",
        "Ayer llovió todo el día y nos quedamos en casa.",
        "El tren para Sevilla sale dentro de diez minutos de la vía dos.",
        "No sé qué decir.",
    ),
    "sv": (
        "God morgon, har du sovit gott?",
        "Var ligger närmaste apotek?",
        "Det regnade hela dagen i går, så vi stannade hemma.",
        "Tåget till Göteborg går om tio minuter från spår två.",
        "Jag vet inte vad jag ska säga.",
    ),
    "uk": (
        "Доброго ранку, як вам спалося?",
        "Де тут найближча аптека?",
        "Вчора цілий день ішов дощ, і ми залишилися вдома.",
        "Потяг до Львова вирушає за десять хвилин з другої колії.",
        "Я не знаю, що сказати.",
    ),
}
MISTAKEN = {
    "Добро утро, как спахте?": "ru",
    "Dobro jutro, kako ste spali?": "hr",
    "Де тут найближча аптека?": "bg",
}
"""Sentences with too few words, and the related language that is found instead."""

EVERY_SENTENCE = [
    (language, sentence) for language, texts in SENTENCES.items() for sentence in texts
]
WORDS = {
    language: [word for word in " ".join(texts).split() if word != "?"]  # French puts it apart
    for language, texts in SENTENCES.items()
}
each_language = pytest.mark.parametrize("language", LANGUAGES)
each_script = pytest.mark.parametrize("of", get_args(Script))


def test_there_are_sentences_in_all_the_languages():
    assert set(SENTENCES) == set(LANGUAGES)
    assert len(LANGUAGES) == 25


@each_language
def test_a_sentence_is_recognised(language):
    for sentence in SENTENCES[language]:
        match = find(sentence)
        assert match is not None
        assert match.language == MISTAKEN.get(sentence, language), sentence


@pytest.mark.parametrize("sentence", MISTAKEN)
def test_what_is_mistaken_is_not_claimed_to_be_certain(sentence):
    assert find(sentence).probability < 0.7


@each_language
def test_a_whole_text_is_recognised_with_certainty(language):
    match = find(" ".join(SENTENCES[language]))
    assert match.language == language
    assert match.probability > 0.95


@each_language
def test_case_hardly_matters(language):
    text = " ".join(SENTENCES[language])
    assert find(text.lower()).language == find(text.upper()).language == language


def test_the_name_is_english_and_in_lower_case():
    for language, name in LANGUAGES.items():
        assert Spoken(language, 1.0).name == name.lower()
        assert name.isalpha()


def test_a_text_without_letters_has_no_language():
    for text in ("", " ", "\n", "123", "1.000,50 €", "— … ?!", "▁", "٣", "ª"):
        assert find(text) is None


def test_a_text_in_a_foreign_script_has_no_language():
    for text in ("你好", "مرحبا", "שלום", "नमस्ते", "안녕하세요"):
        assert find(text) is None


def has_a_language_with_its_letters(text):
    match = find(text)
    assert match.language in LANGUAGES, text
    assert allowed(text, script(match.language)), text
    assert 0 < match.probability <= 1, text


def test_of_every_word_the_language_is_one_with_its_letters():
    for word in sorted({word for words in WORDS.values() for word in words}):
        has_a_language_with_its_letters(word)


@each_script
def test_of_any_text_of_a_script_the_language_is_one_with_its_letters(of):
    words = [word for language in LANGUAGES if script(language) == of for word in WORDS[language]]
    letters = sorted({letter for word in words for letter in word if letter.isalpha()})

    @given(
        st.text(letters, min_size=1) | st.lists(st.sampled_from(words), min_size=1).map(" ".join)
    )
    def for_any_text(text):
        has_a_language_with_its_letters(text)

    for_any_text()


def test_a_longer_text_has_a_higher_probability():
    sentences = SENTENCES["sl"]
    probabilities = [find(" ".join(sentences[:count])).probability for count in (2, 3, 5)]
    assert all(before < after for before, after in pairwise(probabilities))


def test_the_script_that_prevails_decides():
    assert find("Σήμερα αγοράσαμε ένα iPhone στο κατάστημα").language == "el"
    assert find("He said привет and went away at once").language == "en"


def test_many_threads_find_what_one_finds():
    sentences = [sentence for _, sentence in EVERY_SENTENCE]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(find, sentences * 4)) == list(map(find, sentences)) * 4


def test_the_data_is_loaded_once_by_any_number_of_threads():
    program = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from parakeet_worker import language
before = "py3langid" in sys.modules
with ThreadPoolExecutor(8) as threads:
    loaded = {id(one) for one in threads.map(lambda _: language.load(), range(16))}
print(json.dumps([before, len(loaded)]))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert json.loads(ran.stdout) == [False, 1]


def test_scripts_are_three():
    assert {script(language) for language in LANGUAGES} == set(get_args(Script))
    assert [code for code in LANGUAGES if script(code) == "Cyrillic"] == ["bg", "ru", "uk"]
    assert [code for code in LANGUAGES if script(code) == "Greek"] == ["el"]


@each_language
def test_all_that_a_language_is_written_with_is_allowed(language):
    for sentence in SENTENCES[language]:
        assert all(allowed(character, script(language)) for character in sentence)
        assert allowed("▁" + sentence, script(language))


@each_script
def test_digits_marks_spaces_and_control_pieces_are_allowed(of):
    for piece in (*string.digits, *string.punctuation, "▁", "▁12", " ", "", "…", "«", "»", "€"):
        assert allowed(piece, of), piece
    for piece in ("<unk>", "<pad>", "<|nospeech|>", "ª", "º", "µ", "ʼ"):
        assert allowed(piece, of), piece


@each_language
def test_letters_of_another_script_are_refused(language):
    for other in LANGUAGES:
        same = script(other) == script(language)
        assert all(allowed(word, script(language)) == same for word in WORDS[other])


@each_script
def test_a_piece_of_two_scripts_and_one_of_a_foreign_script_are_refused(of):
    for piece in ("aа", "▁Aα", "αа", "好", "ش", "א", "あ"):
        assert not allowed(piece, of), piece


def test_a_language_outside_the_model_has_no_script():
    for unknown in ("tr", "EN", ""):
        with pytest.raises(KeyError):
            script(unknown)
        with pytest.raises(KeyError):
            script(unknown)


def test_every_language_is_understood_by_its_codes_and_names():
    for two, name in LANGUAGES.items():
        assert languages.code(two) == languages.code(name.upper()) == two
    codes = languages._ISO_639_2
    assert set(codes.values()) == set(LANGUAGES)
    assert all(languages.code(three) == two for three, two in codes.items())
    assert set(languages._NAMES.values()) <= set(LANGUAGES)
    assert all(name == name.casefold() for name in languages._NAMES)
    for unknown in ("tr", "tur", "Turkish", "", "x-klingon", "engl"):
        assert languages.code(unknown) is None
