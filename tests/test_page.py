"""The page in a real Chromium, before the real server."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import axe_playwright_python
import httpx
import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    expect,
    sync_playwright,
)

import parakeet_worker
from http_server import Process, running_server
from parakeet_worker import errors
from parakeet_worker.engine.base import Samples
from parakeet_worker.language import LANGUAGES
from programs import require
from recordings import encode, silence, tone, wav
from speech import SAMPLES, sample
from voices import conversation

PACKAGE = Path(parakeet_worker.__file__).parent
PAGE = PACKAGE / "entrypoints" / "http" / "page"
SPEECH_INTO_THE_MICROPHONE = SAMPLES / "bg.wav"
TEXT = {"name": "talk.mp3", "mimeType": "audio/mpeg", "buffer": b"This is text, not audio.\n" * 40}
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
NARROWEST = {"viewport": {"width": 320, "height": 600}}

expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = require("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={SPEECH_INTO_THE_MICROPHONE}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with the demo checkpoint."""
    home = tmp_path_factory.mktemp("demo")
    with running_server(home, {"PARAKEET_MODEL": "demo"}) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def demo(demo_server: Process) -> str:
    """Its address."""
    return demo_server.url


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the tone engine that requires a key."""
    variables = {"PARAKEET_ENGINE": "tones", "PARAKEET_API_KEYS": "open sesame"}
    with running_server(tmp_path_factory.mktemp("tones"), variables) as server:
        server.wait_until_ready()
        yield server.url


@dataclass(frozen=True, slots=True)
class Visit:
    """A page, and the errors that the browser logs."""

    page: Page
    context: BrowserContext
    problems: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Locator:
        return self.page.locator(f"#{name}")

    @property
    def text(self) -> str:
        words = self.page.locator(".word").all_inner_texts()
        return " ".join(words)

    def transcribe(self, file: Any) -> None:
        self["file"].set_input_files(file)

    def transcribe_whole(self, file: Any) -> None:
        self.transcribe(file)
        expect(self["outcome"]).to_be_visible()

    def saved(self, name: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=name).click()
        return download.value.path().read_bytes()


@contextmanager
def visit(
    browser: Browser, address: str, *, refused: bool = False, **options: Any
) -> Iterator[Visit]:
    """Open the page; at the end there must be no logged error and no request to another origin.

    With `refused`, the browser's own remark on an answer that is no success is expected.
    """
    with browser.new_context(**options) as context:
        page = context.new_page()
        visitor = Visit(page, context)

        def note(message: ConsoleMessage) -> None:
            expected = refused and message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not expected:
                visitor.problems.append(message.text)

        page.on("console", note)
        page.on("dialog", lambda dialog: dialog.accept())
        page.on("pageerror", lambda error: visitor.problems.append(str(error)))
        context.on("request", lambda request: visitor.requested.append(request.url))
        page.goto(f"{address}/")
        yield visitor
        assert visitor.problems == []
        assert len(visitor.requested) > 5
        assert [
            url for url in visitor.requested if not url.startswith((f"{address}/", "blob:"))
        ] == []


def until(page: Page, met: Callable[[], bool]) -> None:
    """Wait for it; playwright's own way evaluates text in the page, which the page forbids."""
    for _ in range(600):
        if met():
            return
        page.wait_for_timeout(20)
    raise AssertionError


DROP = """(files) => {
    const transfer = new DataTransfer();
    for (const [name, content] of files) {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        transfer.items.add(new File([bytes], name));
    }
    const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
    const target = document.querySelector("main");
    target.dispatchEvent(new DragEvent("dragover", options));
    target.dispatchEvent(new DragEvent("drop", options));
}"""


def answer_of(address: str, path: Path, **fields: str) -> Any:
    """The server's answer without the page."""
    with path.open("rb") as file:
        answer = httpx.post(
            f"{address}/transcribe", data=fields, files={"file": file}, timeout=60.0
        )
    assert answer.status_code == HTTPStatus.OK, answer.text
    return answer.json()


LIT = """() => {
    window.lit = [];
    const position = document.querySelector("#position");
    const note = (changes) => {
        for (const { target } of changes) {
            const current = target.classList.contains("current");
            if (current) lit.push([target.innerText, Number(position.value)]);
        }
    };
    const all = { subtree: true, attributeFilter: ["class"] };
    new MutationObserver(note).observe(document.querySelector("#transcript"), all);
}"""


def test_a_dropped_recording_is_transcribed_played_and_saved(chromium, demo):
    english = sample("en")
    with visit(chromium, demo) as there:
        there.page.evaluate(DROP, [[english.file, english.base64]])
        expect(there["outcome"]).to_be_visible()
        whole = answer_of(demo, english.path, format="verbose_json")
        assert there.text == whole["text"] == english.text
        facts = f"English · 0:{int(english.seconds):02} · {len(whole['words'])} words"
        expect(there["facts"]).to_have_text(facts)
        expect(there["transcript"]).to_have_attribute("lang", "en")

        there.page.evaluate(LIT)
        chosen = whole["words"][3]
        there.page.locator(".word").nth(3).click()
        expect(there["play"]).to_have_accessible_name("Pause")
        until(there.page, lambda: there.page.evaluate("lit.length > 2"))
        positions = [position for _, position in there.page.evaluate("lit")]
        assert [word for word, _ in there.page.evaluate("lit")][:3] == whole["text"].split()[3:6]
        assert chosen["start"] <= positions[0] < positions[1] < positions[2] < english.seconds

        assert there.saved("TXT: download as plain text").decode() == f"{whole['text']}\n"
        assert json.loads(there.saved("JSON: download with times")) == whole
        for name, written in (
            ("SRT: download as subtitles", "srt"),
            ("VTT: download as WebVTT subtitles", "vtt"),
        ):
            own = answer_of(demo, english.path, format=written)[written]
            assert there.saved(name).decode() == own
            assert "-->" in own


WATCH = """() => {
    window.seen = [];
    const note = (changes) => {
        for (const { addedNodes } of changes) {
            for (const node of addedNodes) seen.push([node.innerText, document.body.dataset.stage]);
        }
    };
    new MutationObserver(note).observe(document.querySelector("#transcript"), { childList: true });
}"""


def test_sentences_appear_before_the_whole_is_there(chromium, demo):
    with visit(chromium, demo) as there:
        there.page.evaluate(WATCH)
        there.transcribe(SAMPLES / "minute.mp3")
        expect(there["working"]).to_be_visible()
        expect(there["outcome"]).to_be_visible()
        seen = there.page.evaluate("seen")
        assert len(seen) == there.page.locator("#transcript li").count() > 20
        # Each was put there while there was work, and none was put there again at the end.
        assert {stage for _, stage in seen} == {"working"}
        expect(there["announcement"]).to_have_text(re.compile(r"Done\. English"))


def test_cancelling_ends_the_work_and_leaves_nothing_behind(chromium, demo_server):
    with visit(chromium, demo_server.url) as there:
        there.transcribe(SAMPLES / "languages.opus")
        until(there.page, lambda: list(demo_server.scratch.iterdir()) != [])
        there["cancel"].click()
        expect(there["choosing"]).to_be_visible()
        expect(there["choose"]).to_be_focused()
        expect(there["player"]).to_be_hidden()
        until(there.page, lambda: list(demo_server.scratch.iterdir()) == [])
        there.transcribe_whole(sample("de").path)
        assert there.text == sample("de").text


def test_search_counts_its_hits_and_goes_from_one_to_the_next(chromium, demo):
    with visit(chromium, demo) as there:
        there.transcribe_whole(sample("cs").path)
        assert "Přítel ano dům." in there.text
        hit = there.page.locator(".word.hit")
        there["query"].fill("PRITEL")
        expect(there["hits"]).to_have_text("1 of 1")
        expect(hit).to_have_text("Přítel")
        there["query"].fill("ano  dum")
        expect(hit).to_have_text(["ano", "dům."])
        there["query"].fill("se")
        expect(there["hits"]).to_have_text("1 of 2")
        expect(hit).to_have_text("šest")
        there["next"].click()
        expect(there["hits"]).to_have_text("2 of 2")
        expect(hit).to_have_text("sedm")
        there["query"].press("Enter")
        expect(there["hits"]).to_have_text("1 of 2")
        there["query"].press("Shift+Enter")
        expect(there["hits"]).to_have_text("2 of 2")
        there["query"].fill("missing")
        expect(there["hits"]).to_have_text("no hits")
        expect(hit).to_have_count(0)
        there["query"].press("Escape")
        expect(there["hits"]).to_be_hidden()


def test_a_text_file_is_refused_with_its_code_and_the_next_file_is_transcribed(chromium, demo):
    with visit(chromium, demo, refused=True) as there:
        there.transcribe(TEXT)
        failure = there.page.get_by_role("alert")
        expect(failure).to_contain_text("This file is not audio")
        expect(failure).to_contain_text("talk.mp3")
        expect(failure.locator("code")).to_have_text("audio_undecodable")
        expect(there["retry"]).to_be_hidden()
        there.transcribe_whole(sample("fr").path)
        expect(failure).to_be_hidden()


def test_a_recording_without_words_has_a_warning(chromium, demo):
    with visit(chromium, demo) as there:
        there.transcribe_whole(
            {"name": "hush.wav", "mimeType": "audio/wav", "buffer": wav(silence(3.0))}
        )
        expect(there["warnings"]).to_contain_text("No words were found")
        expect(there["words"]).to_be_hidden()


def chord(strongest: float, *others: float) -> Samples:
    """Simultaneous tones; the tone engine recognises one with low confidence."""
    rest = [tone(hertz, 0.8, level=0.25) for hertz in others]
    return np.sum([tone(strongest, 0.8), *rest], axis=0, dtype=np.float32)


def test_words_that_the_model_is_unsure_of_are_marked_and_explained(chromium, scripted):
    clear, doubtful = tone(440, 0.8), chord(520, 310, 730)
    talk = wav(np.concatenate([silence(0.4), clear, silence(0.8), doubtful, silence(0.4)]))
    with visit(chromium, scripted, refused=True) as there:
        there.transcribe({"name": "tones.wav", "mimeType": "audio/wav", "buffer": talk})
        failure = there.page.get_by_role("alert")
        expect(failure.locator("code")).to_have_text("invalid_api_key")
        expect(there["failure-title"]).to_have_text("This server requires an API key")
        expect(there["key"]).to_be_focused()
        there.page.get_by_label("API key").fill("guess")
        there.page.get_by_role("button", name="Use this key").click()
        expect(there["failure-title"]).to_have_text("The API key is wrong")
        expect(failure.locator("code")).to_have_text("invalid_api_key")
        there.page.get_by_label("API key").fill("open sesame")
        there["key"].press("Enter")
        expect(there["outcome"]).to_be_visible()
        assert there.text == "440. 520."
        unsure = there.page.locator(".word.unsure")
        expect(unsure).to_have_text("520.")
        expect(unsure).to_have_attribute("title", re.compile(r"^[1-5]?\d % sure$"))
        expect(there["unsure"]).to_contain_text("1 word is underlined like this")
        assert there.saved("SRT: download as subtitles").startswith(b"1\n00:00:00,")


def test_channels_are_transcribed_separately_if_selected(chromium, scripted, tmp_path):
    left = np.concatenate([silence(0.4), tone(440, 0.8), silence(1.6)])
    right = np.concatenate([silence(1.6), tone(520, 0.8), silence(0.4)])
    call = encode(tmp_path / "call.wav", samples=np.stack([left, right], 1).ravel(), channels=2)
    with visit(chromium, scripted) as there:
        there.page.evaluate("sessionStorage.setItem('parakeet-key', 'open sesame')")
        there.page.get_by_text("Options").click()
        there.page.get_by_label("Transcribe each channel separately").check()
        there.transcribe_whole(call)
        sentences = there.page.locator("#transcript li p")
        expect(sentences).to_have_text(["Channel 1 440.", "Channel 2 520."])
        assert b"[Channel 2] 520." in there.saved("SRT: download as subtitles")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    path.write_bytes(wav(conversation()))
    return path


def test_speakers_are_coloured_renamed_and_filtered(chromium, demo, talk):
    with visit(chromium, demo) as there:
        there.page.get_by_text("Options").click()
        there.page.get_by_label("Speakers", exact=True).select_option("2 speakers")
        there.transcribe_whole(talk)
        names = there.page.locator("#speakers input")
        expect(names).to_have_count(2)
        labels = there.page.locator("#transcript .speaker:not(.spoken)")
        expect(labels).to_have_text(["Speaker 1", "Speaker 2"])
        colours = [
            labels.nth(index).evaluate("(label) => getComputedStyle(label).color")
            for index in range(2)
        ]
        assert len(set(colours)) == 2

        names.nth(1).fill("  Ben   B. ")
        names.nth(1).press("Enter")
        expect(labels).to_have_text(["Speaker 1", "Ben B."])
        expect(there["announcement"]).to_have_text("Renamed.")
        text = there.saved("TXT: download as plain text").decode()
        assert [line.partition(": ")[0] for line in text.splitlines()] == ["Speaker 1", "Ben B."]
        assert b"<v Ben B.>" in there.saved("VTT: download as WebVTT subtitles")
        assert b"[Ben B.] " in there.saved("SRT: download as subtitles")
        answer = json.loads(there.saved("JSON: download with times"))
        assert {each["speaker"] for each in answer["words"]} == {"Speaker 1", "Ben B."}
        assert {each["speaker"] for each in answer["segments"]} == {"Speaker 1", "Ben B."}
        names.nth(1).fill("")
        names.nth(1).press("Enter")
        expect(names.nth(1)).to_have_value("Speaker 2")

        every = there.page.locator("#transcript li:visible").count()
        only = there.page.get_by_role("button", name="Only Speaker 2")
        only.click()
        expect(only).to_have_attribute("aria-pressed", "true")
        visible = there.page.locator("#transcript li:visible")
        assert 0 < visible.count() < every
        assert {line.get_attribute("data-speaker") for line in visible.all()} == {"Speaker 2"}
        expect(there["announcement"]).to_have_text("1 speaker shown: Speaker 2.")
        # Keys and search pass over what is hidden.
        there.page.locator(".word:visible").first.focus()
        there.page.keyboard.press("End")
        there.page.keyboard.press("Home")
        expect(there.page.locator(".word:visible").first).to_be_focused()
        hidden = there.page.locator(".word").first.inner_text()
        hits = sum(hidden in word for word in there.page.locator(".word:visible").all_inner_texts())
        there["query"].fill(hidden)
        expect(there["hits"]).to_have_text(f"1 of {hits}" if hits else "no hits")
        only.click()
        assert there.page.locator("#transcript li:visible").count() == every


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_speaker_colour_can_be_read(chromium, faulty, scheme):
    words = [
        {"word": f"w{index}.", "start": index + 0.0, "end": index + 0.5, "confidence": 0.9,
         "speaker": f"Speaker {index + 1}"}
        for index in range(9)
    ]  # fmt: skip
    segments = [
        {**SEGMENT, "id": index, "start": word["start"], "end": word["end"], "text": word["word"],
         "speaker": word["speaker"]}
        for index, word in enumerate(words)
    ]  # fmt: skip
    whole = {**WHOLE, "words": words, "segments": segments, "warnings": []}
    faulty.body = event("result", whole)
    with visit(chromium, faulty.address, color_scheme=scheme, reduced_motion="reduce") as there:
        there.transcribe_whole(sample("en").path)
        for index in range(8):
            selector = f'#transcript [data-colour="{index}"] .speaker'
            text, ground = there.page.evaluate(LUMINANCE, selector)
            lighter, darker = max(text, ground), min(text, ground)
            assert (lighter + 0.05) / (darker + 0.05) > 4.5, selector
        expect(there.page.locator("#transcript li").nth(8)).to_have_attribute("data-colour", "0")


def test_several_files_are_transcribed_in_order_and_each_can_be_shown(chromium, demo):
    with visit(chromium, demo, refused=True) as there:
        files = [
            {"name": each.file, "mimeType": "audio/ogg", "buffer": each.path.read_bytes()}
            for each in (sample("en"), sample("fr"))
        ]
        there.transcribe([files[0], TEXT, files[1]])
        states = there.page.locator("#files .state")
        expect(states).to_have_text(["done", "failed", "done"])
        expect(there["outcome-title"]).to_have_text(sample("en").file)
        assert there.text == sample("en").text
        there.page.locator("#files button").nth(2).click()
        expect(there["outcome-title"]).to_have_text(sample("fr").file)
        assert there.text == sample("fr").text
        there.page.locator("#files button").nth(1).click()
        expect(there["failure"].locator("code")).to_have_text("audio_undecodable")


def test_an_unsaved_transcript_is_discarded_only_after_a_question(chromium, demo):
    with visit(chromium, demo) as there:
        questions: list[str] = []
        there.page.on("dialog", lambda dialog: questions.append(dialog.message))
        there.transcribe_whole(sample("en").path)
        there["another"].click()
        assert len(questions) == 1
        there.transcribe_whole(sample("en").path)
        there.context.grant_permissions(["clipboard-read", "clipboard-write"])
        there["copy"].click()
        expect(there["announcement"]).to_have_text("Copied.")
        assert there.page.evaluate("navigator.clipboard.readText()") == sample("en").text
        there["another"].click()
        expect(there["choosing"]).to_be_visible()
        assert len(questions) == 1


def test_the_page_names_the_model_and_claims_no_languages_for_the_demo(chromium, demo, faulty):
    with visit(chromium, demo) as there:
        expect(there["model"]).to_contain_text("demo model")
        assert "25" not in there["drop"].inner_text()
    with visit(chromium, faulty.address) as there:
        expect(there["model"]).to_contain_text("25 European languages. Model: nvidia/parakeet-tdt")


def test_selecting_the_transcript_selects_no_times(chromium, demo):
    with visit(chromium, demo) as there:
        there.transcribe_whole(sample("en").path)
        there.page.evaluate(
            "getSelection().selectAllChildren(document.querySelector('ol#transcript'))"
        )
        assert there.page.evaluate("getSelection().toString()").split() == sample("en").text.split()


def test_the_transcript_prints_without_controls(chromium, demo):
    with visit(chromium, demo) as there:
        there.transcribe_whole(sample("en").path)
        there.page.emulate_media(media="print")
        for name in ("player", "tools", "another"):
            expect(there[name]).to_be_hidden()
        expect(there["transcript"]).to_be_visible()


AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"


def violations(page: Page) -> list[str]:
    """Rules of axe-core that the page violates, with the elements; runs outside the page's CSP."""
    broken = page.evaluate(
        f"async () => {{ {AXE.read_text()}; return (await axe.run()).violations }}"
    )
    return [f"{each['id']}: {[node['html'] for node in each['nodes']][:3]}" for each in broken]


def test_axe_finds_nothing_in_any_state(chromium, demo):
    with visit(chromium, demo, refused=True) as there:
        there.page.get_by_text("Options").click()
        assert violations(there.page) == []
        there.transcribe(TEXT)
        expect(there["failure"]).to_be_visible()
        assert violations(there.page) == []
        there.transcribe_whole([sample("en").path, sample("fr").path])
        expect(there.page.locator("#files .state")).to_have_text(["done", "done"])
        there["query"].fill("o")
        there.page.locator(".word").first.focus()
        assert violations(there.page) == []
        there["another"].click()
        there.context.grant_permissions(["microphone"])
        there["record"].click()
        expect(there["recording"]).to_be_visible()
        assert violations(there.page) == []
        there["discard"].click()
        there.transcribe(SAMPLES / "languages.opus")
        expect(there["working"]).to_be_visible()
        assert violations(there.page) == []
        there["cancel"].click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_a_transcript_with_speakers(chromium, demo, talk, scheme):
    options = {"color_scheme": scheme, "reduced_motion": "reduce"}
    with visit(chromium, demo, **options, **PHONE) as there:
        there.page.get_by_text("Options").click()
        there.page.get_by_label("Speakers", exact=True).select_option("2 speakers")
        there.transcribe_whole(talk)
        expect(there.page.locator("#speakers li")).to_have_count(2)
        assert violations(there.page) == []
        there.page.get_by_role("button", name="Only Speaker 1").click()
        assert violations(there.page) == []
        assert width(there.page) == PHONE["viewport"]["width"]


def test_the_reference_is_accessible_dark_and_fits_a_phone(chromium, demo):
    with visit(chromium, demo, color_scheme="dark", **PHONE) as there:
        there.page.goto(f"{demo}/docs")
        assert violations(there.page) == []
        assert width(there.page) == PHONE["viewport"]["width"]
        ground = there.page.evaluate(LUMINANCE, "h1")
        assert ground[0] > ground[1]


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id || document.activeElement.className"))


def test_everything_can_be_done_with_the_keyboard(chromium, demo):
    with visit(chromium, demo) as there:
        keyboard = there.page.keyboard
        there.page.on("filechooser", lambda chooser: chooser.set_files(sample("en").path))
        for _ in range(2):
            keyboard.press("Tab")
        assert focused(there.page) == "choose"
        keyboard.press("Enter")
        expect(there["outcome-title"]).to_be_focused()
        order = []
        for _ in range(11):
            keyboard.press("Tab")
            order.append(focused(there.page))
        assert order == ["another", "query", "copy", *[""] * 4, "word", "play", "position", "speed"]
        for _ in range(3):
            keyboard.press("Shift+Tab")
        words = there.page.locator(".word")
        expect(words.nth(0)).to_be_focused()
        keyboard.press("ArrowRight")
        expect(words.nth(1)).to_be_focused()
        expect(words.nth(1)).to_have_role("button")
        assert there.page.get_by_role("button", name=re.compile("at .*second")).count() == 1
        keyboard.press("End")
        expect(words.last).to_be_focused()
        keyboard.press("ArrowUp")
        keyboard.press("Home")
        keyboard.press("ArrowDown")
        second = there.page.locator("#transcript li").nth(1).locator(".word").first
        expect(second).to_be_focused()
        keyboard.press("Enter")
        expect(second).to_have_class(re.compile("current"))
        there["play"].focus()
        keyboard.press("Space")
        expect(there["play"]).to_have_accessible_name("Play")
        there["position"].focus()
        keyboard.press("ArrowLeft")
        expect(there["position"]).to_have_value("0")
        there["another"].focus()
        keyboard.press("Enter")
        expect(there["choose"]).to_be_focused()


def test_every_control_has_a_name_and_every_change_is_announced(chromium, demo):
    roles = ("button", "textbox", "searchbox", "slider", "combobox", "checkbox", "progressbar")
    with visit(chromium, demo) as there:
        inspector = there.context.new_cdp_session(there.page)

        def nameless() -> list[str]:
            nodes = inspector.send("Accessibility.getFullAXTree")["nodes"]
            controls = [
                node for node in nodes
                if not node["ignored"] and node.get("role", {}).get("value") in roles
            ]  # fmt: skip
            assert len(controls) >= 2
            return [str(node) for node in controls if not node["name"]["value"]]

        there.page.get_by_text("Options").click()
        assert nameless() == []
        there.transcribe(SAMPLES / "languages.opus")
        expect(there["announcement"]).to_have_text(re.compile("Uploading|Transcribed|Transcribing"))
        assert nameless() == []
        there["cancel"].click()
        expect(there["announcement"]).to_have_text("Cancelled.")
        there.transcribe_whole(sample("en").path)
        there["query"].fill("o")
        assert nameless() == []
        for name in ("announcement", "readiness"):
            expect(there[name]).to_have_role("status")
        assert there.page.locator("main h2:visible").count() == 1


def width(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth"))


@pytest.mark.parametrize("narrow", [PHONE, NARROWEST], ids=["phone", "narrowest"])
def test_nothing_is_wider_than_a_phone(chromium, demo, narrow):
    long_name = {
        "name": "Interview_with_a_very_long_name_that_nobody_has_ever_shortened_2026-11-24.ogg",
        "mimeType": "audio/ogg",
        "buffer": sample("en").path.read_bytes(),
    }
    wide = narrow["viewport"]["width"]
    with visit(chromium, demo, refused=True, **narrow) as there:
        there.page.get_by_text("Options").click()
        assert width(there.page) == wide
        there.transcribe(TEXT)
        expect(there["failure"]).to_be_visible()
        assert width(there.page) == wide
        there.transcribe_whole(long_name)
        there["query"].fill("o")
        assert width(there.page) == wide
        expect(there["player"]).to_be_in_viewport()


LUMINANCE = """(selector) => {
    const luminance = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255);
        const [red, green, blue] = parts.map((part) =>
            part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const element = document.querySelector(selector);
    let ground = element;
    const clear = (node) => /, 0\\)$/.test(getComputedStyle(node).backgroundColor);
    while (clear(ground)) ground = ground.parentElement;
    return [
        luminance(getComputedStyle(element).color),
        luminance(getComputedStyle(ground).backgroundColor),
    ];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read_in_light_and_dark(chromium, demo, scheme):
    with visit(chromium, demo, refused=True, color_scheme=scheme, reduced_motion="reduce") as there:
        chosen = there.page.evaluate("getComputedStyle(document.documentElement).colorScheme")
        assert chosen == "light dark"

        def check(*selectors: str) -> None:
            for selector in selectors:
                text, ground = there.page.evaluate(LUMINANCE, selector)
                assert (ground < 0.2) == (scheme == "dark" and selector != "#choose"), selector
                lighter, darker = max(text, ground), min(text, ground)
                assert (lighter + 0.05) / (darker + 0.05) > 4.5, selector

        if scheme == "light":
            check("h1", "#drop h2", "#drop .hint", "#record", "summary")
        else:
            check("h1", "#drop h2", "#drop .hint", "#record", "summary", "#choose")
        there.transcribe(TEXT)
        expect(there["failure"]).to_be_visible()
        check("#failure-title", "#failure-advice", "#failure-code", "#failure-sentence")
        there.transcribe_whole(sample("en").path)
        there.page.locator(".word").nth(2).click()
        expect(there.page.locator(".word.current")).to_have_count(1)
        check("#facts", ".time", ".word", ".word.current", "#clock", "#downloads button")


def test_reduced_motion_disables_transitions(chromium, demo):
    durations = (
        "[...document.querySelectorAll('*')].map(e => getComputedStyle(e).transitionDuration)"
    )
    with visit(chromium, demo, reduced_motion="no-preference") as there:
        assert set(there.page.evaluate(durations)) != {"0s"}
    with visit(chromium, demo, reduced_motion="reduce") as there:
        assert set(there.page.evaluate(durations)) == {"0s"}


def test_a_recording_from_the_microphone_is_transcribed_and_saved(chromium, demo):
    with visit(chromium, demo) as there:
        there.context.grant_permissions(["microphone"])
        there["record"].click()
        expect(there["recording"]).to_be_visible()
        until(there.page, lambda: there["level"].evaluate("meter => meter.value") > 0.1)
        expect(there["elapsed"]).to_have_text("0:04")
        there["stop"].click()
        expect(there["outcome"]).to_be_visible()
        words = set(there.text.split())
        assert words & set(sample("bg").text.split())
        expect(there["outcome-title"]).to_contain_text("Recording 20")
        kept = there.saved("Audio: download the recording")
        assert kept.startswith(b"\x1aE\xdf\xa3")  # how every webm begins


def test_a_microphone_that_may_not_be_used_is_explained(chromium, demo):
    with visit(chromium, demo) as there:
        there["record"].click()
        expect(there["failure"].locator("code")).to_have_text("microphone_refused")
        expect(there["choosing"]).to_be_visible()


def test_the_page_forbids_frames_and_caching(demo):
    for path in ("/", "/page/page.js", "/page/page.css"):
        headers = httpx.get(f"{demo}{path}").headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-content-type-options"] == "nosniff"
        fresh = httpx.get(f"{demo}{path}", headers={"If-None-Match": headers["etag"]})
        assert path == "/" or fresh.status_code == HTTPStatus.NOT_MODIFIED


def test_the_browser_lets_nothing_out(chromium, demo):
    """The content security policy blocks requests to other origins."""
    blocked = """async () => {
        let directive = "nothing was blocked";
        addEventListener("securitypolicyviolation", (event) => {
            directive = event.effectiveDirective;
        });
        await fetch("http://127.0.0.2:9/").catch(() => {});
        await new Promise((resolve) => setTimeout(resolve, 200));
        return directive;
    }"""
    with visit(chromium, demo) as there:
        assert there.page.evaluate(blocked) == "connect-src"
        assert any("Content Security Policy" in text for text in there.problems)
        there.problems.clear()


class Faulty(ThreadingHTTPServer):
    """A server that shows the page, and then does what a good one never does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _FaultyHandler)
        self.warming = False
        self.body: bytes | None = b""
        """The response before the connection is closed; None for no response."""
        self.taken: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _FaultyHandler(BaseHTTPRequestHandler):
    server: Faulty

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the library's name
        """No log."""

    def do_GET(self) -> None:
        if self.path == "/ping":
            self.server.taken.append("ping")
            self.send_response(HTTPStatus.NO_CONTENT if self.server.warming else HTTPStatus.OK)
            self.end_headers()
            return
        name = self.path.removeprefix("/page/").strip("/") or "index.html"
        if name == "health":
            self.send_response(HTTPStatus.OK)
            self.end_headers()
            self.wfile.write(b'{"status": "ready", "model": "nvidia/parakeet-tdt-0.6b-v3"}')
            return
        kinds = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kinds.get(name.rpartition(".")[2], "text/html"))
        self.end_headers()
        self.wfile.write((PAGE / name).read_bytes())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append("transcribe")
        if self.server.body is None:
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write(self.server.body)


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with Faulty() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def event(name: str, document: object) -> bytes:
    return f": keep-alive\r\n\r\nevent: {name}\r\ndata: {json.dumps(document)}\r\n\r\n".encode()


SEGMENT = {
    "id": 0, "start": 0.5, "end": 1.0, "text": "Hello.", "avg_logprob": -0.1,
    "words": [{"word": "Hello.", "start": 0.5, "end": 1.0, "confidence": 0.9}],
}  # fmt: skip
WHOLE = {
    "task": "transcribe", "language": "english", "language_probability": 0.4, "duration": 4.0,
    "text": "Hello.", "segments": [SEGMENT], "words": SEGMENT["words"],
    "uncovered": [{"start": 2.0, "end": 3.75}],
    "warnings": [{
        "code": "speech_without_words", "start": 2.0, "end": 3.75,
        "message": "no words were found in 1.8 s of speech, at 2.0 s",
    }],
}  # fmt: skip


def test_a_broken_connection_is_reported_and_loses_no_word(chromium, faulty):
    faulty.body = event("progress", {"audio_seconds": 0.4}) + event("segment", SEGMENT)
    with visit(chromium, faulty.address, refused=True) as there:
        there.transcribe(sample("en").path)
        code = there["failure"].locator("code")
        expect(code).to_have_text("stream_ended")
        expect(there.page.locator(".word")).to_have_text("Hello.")
        expect(there["outcome"]).to_be_visible()
        assert there.saved("TXT: download as plain text") == b"Hello.\n"
        faulty.body = None
        there["retry"].click()
        expect(code).to_have_text("connection_lost")
        faulty.body = event("error", errors.Overloaded(21_000.0, 21_600.0).document())
        there["retry"].click()
        expect(code).to_have_text("overloaded")
        expect(there["failure-sentence"]).to_have_text("21000 s of audio are queued, limit 21600 s")
        faulty.body = event("segment", SEGMENT) + event("result", WHOLE)
        there["retry"].click()
        expect(there["outcome"]).to_be_visible()
        expect(there["failure"]).to_be_hidden()


def test_speech_without_words_is_warned_of_and_can_be_listened_to(chromium, faulty):
    faulty.body = event("segment", SEGMENT) + event("result", WHOLE)
    with visit(chromium, faulty.address) as there:
        there.transcribe_whole(sample("en").path)
        expect(there["facts"]).to_have_text("English (a guess) · 0:04 · 1 word")
        expect(there["warnings"]).to_contain_text("no words were found in 1.8 s of speech")
        there["warnings"].get_by_role("button", name="0:02, play from 2 seconds").click()
        until(there.page, lambda: float(there["position"].input_value()) > 2)


def test_times_of_long_recordings_are_on_one_line(chromium, faulty):
    late = {**SEGMENT, "start": 13_507.5, "end": 13_508.0}
    late["words"] = [{"word": "Goodbye.", "start": 13_507.5, "end": 13_508.0, "confidence": 0.9}]
    faulty.body = event("segment", SEGMENT) + event("segment", late)
    with visit(chromium, faulty.address, **PHONE) as there:
        there.transcribe(sample("en").path)
        times = there.page.locator(".time")
        expect(times).to_have_text(["0:00", "3:45:07"])
        boxes = [times.nth(index).bounding_box() for index in range(2)]
        word = there.page.locator(".word").nth(1).bounding_box()
        assert boxes[0]["height"] == boxes[1]["height"]
        assert boxes[1]["x"] + boxes[1]["width"] <= word["x"]


def test_nothing_is_sent_before_the_model_is_loaded(chromium, faulty):
    faulty.warming = True
    faulty.body = event("segment", SEGMENT) + event("result", WHOLE)
    with visit(chromium, faulty.address) as there:
        expect(there["readiness"]).to_have_text("The model is loading…")
        there.transcribe(sample("en").path)
        expect(there["stage"]).to_have_text("Waiting for the model to load…")
        assert "transcribe" not in faulty.taken
        faulty.warming = False
        expect(there["outcome"]).to_be_visible()
        expect(there["readiness"]).to_have_text("")


UPLOAD_PASSES = (
    "audio", "batcher.py", "recognition", "pipeline.py", "formats", "answers.py",
    "entrypoints/http", "outputs/__init__.py",
)  # fmt: skip


def codes_in(module: str) -> Iterator[str]:
    """The codes of the errors that are named in a module, or in those of a folder."""
    path = PACKAGE / module
    for file in [path] if path.is_file() else path.glob("*.py"):
        for name in set(re.findall(r"\b[A-Z]\w+", file.read_text())):
            kind = getattr(errors, name, None)
            if hasattr(kind, "code") and not issubclass(kind, errors.SetupError):
                yield kind.code


def test_every_error_that_an_upload_may_meet_has_words_on_the_page():
    written = (PAGE / "failures.js").read_text()
    meant = set(re.findall(r"^  (\w+): (?:\{|later)", written, flags=re.MULTILINE))
    codes = {code for module in UPLOAD_PASSES for code in codes_in(module)}
    assert len(codes) > 15
    assert codes <= meant


def test_the_page_lists_the_languages_of_the_model():
    page = (PAGE / "index.html").read_text()
    select = page.partition('<select id="language"')[2].partition("</select>")[0]
    assert dict(re.findall(r'value="(\w\w)">(\w+)<', select)) == dict(LANGUAGES)


def test_every_file_of_the_page_is_used_and_every_address_is_its_own():
    texts = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert {"index.html", "page.css", "page.js", "player.js", "search.js"} <= set(texts)
    everything = "".join(texts.values())
    for name in set(texts) - {"index.html"}:
        assert f'page/{name}"' in everything or f'"./{name}"' in everything, name
    for name, text in texts.items():
        addresses = re.findall(r"https?://[^\s\"')]+", text)
        assert [url for url in addresses if url != "http://www.w3.org/2000/svg"] == [], name
        assert not re.search(r"innerHTML|eval\(|\bon\w+=\"|style=\"", text), name
