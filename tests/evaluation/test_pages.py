"""The report and the listening test in a browser: one file each, readable on a phone, and the test is blind."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import write_wave
from sf_lightning.evaluation.listening import (
    Item,
    _read_at_level,
    add_ratings,
    listening_items,
    write_test,
)
from sf_lightning.evaluation.pictures import draw_mels
from sf_lightning.evaluation.report import write_evaluation_report
from sf_lightning.evaluation.results import ClipScores, Identity, Results
from sf_lightning.evaluation.systems import System, join_labels
from sf_lightning.evaluation.table import Findings
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.audio import synthetic_voice

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)

OUTPUT = VocoderConfig("griffin_lim"), MelConfig()

SYSTEMS = (
    System("copy_synthesis", *OUTPUT),
    System("offline", *OUTPUT, "runs/a/checkpoints/last.ckpt", "own", 4, 0.5),
    *(System("streamed", *OUTPUT, "runs/a/checkpoints/last.ckpt", "own", 4, 0.5, ahead) for ahead in (1, 2, 4)),
)

KEYS = ("first", "</script><script>alert(1)</script>", "third")
"""Keys of clips; a key is shown as text even if it is HTML."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Returns an evaluation folder with made-up scores."""
    identity = Identity("clips", "1", 3, "", (), "cpu")
    results = Results.open(tmp_path_factory.mktemp("eval") / "out", identity, SYSTEMS, {}, {"data": ("a" * 200,)})
    for number, key in enumerate(KEYS):
        for system in SYSTEMS:
            scores = {"pesq_wb": 1.5, "stoi": 0.8 + 0.01 * number, "visqol": 3.0 + (system.lookahead or 0) / 10}
            if system.kind == "streamed":
                scores |= {"first_packet_ms": 300.0 * (system.lookahead or 0), "gap": 0.01}
            results.add(ClipScores(system.id, key, "", 100, scores, (10.0, 12.0, 11.0) if system.lookahead else ()))
            if number < 2:
                write_wave(results.sample_path(key, f"{system.id}.flac"), synthetic_voice(1.0, seed=number), 16000)
            if number == 0 and system.lookahead == 1:
                mels = {"reference": torch.randn(100, 80), "streamed": torch.randn(100, 80)}
                draw_mels(mels, torch.tensor([24, 48]), 100, results.sample_path(key, f"{system.id}.webp"))
        if number < 2:
            for name in ("reference", "voice"):
                write_wave(
                    results.sample_path(key, f"{name}.flac"), synthetic_voice(1.0, 150.0, seed=number), 16000
                )
    results.close()
    return results


def items(results: Results) -> list[Item]:
    """Returns the first two clips as items of a listening test."""
    rows = Findings.from_results(results).rows
    return [
        Item(
            key,
            results.sample_path(key, "voice.flac"),
            {join_labels(row.labels): results.sound_path(row.system, key) for row in rows},
        )
        for key in KEYS[:2]
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Starts a headless Chromium."""
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """Collects messages of the console and requests to the network."""
    return []


@pytest.fixture
def page(browser, complaints: list[str]) -> Iterator:  # type: ignore[no-untyped-def]
    """Opens a page of a phone's size, in dark mode, without network."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", offline=True)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda ask: complaints.append(ask.url[:80]) if ask.url[:5] not in ("data:", "file:") else None
    )
    yield page
    context.close()


def test_a_report_opens_from_disk_with_players_plots_and_pictures_and_fits_a_phone(
    results: Results, page, complaints: list[str]
) -> None:  # type: ignore[no-untyped-def]
    path = results.folder / "report.html"
    write_evaluation_report(path, Findings.from_results(results))
    page.goto(f"file://{path}")
    page.wait_for_function("[...document.querySelectorAll('audio')].every(element => element.readyState > 0)")
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map(element => element.duration)")
    assert lengths == [pytest.approx(1.0, abs=0.01)] * 2 * 6  # two clips: the recording and five systems
    assert page.evaluate("[...document.images].every(element => element.complete && element.naturalWidth > 0)")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plots svg')].map(element => element.getBoundingClientRect().height)"
    )
    assert len(drawn) == 4 and min(drawn) > 100
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    text = page.inner_text("body")
    for words in ("Quality", "Streaming", "copy-synthesis", "3: streamed, look-ahead 1", "first packet", KEYS[1]):
        assert words in text
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert sum(eval(ink[3:])) > 3 * 180 and sum(eval(paper[3:])) < 3 * 60  # light on dark
    # Starting a sound pauses the other.
    page.evaluate("for (const audio of document.querySelectorAll('audio')) audio.muted = true")
    playing = page.evaluate(
        "(async () => { const [a, b] = document.querySelectorAll('audio'); await a.play(); await b.play();"
        " return [a.paused, b.paused]; })()"
    )
    assert playing == [True, False]
    assert complaints == []


def test_a_listener_rates_all_sounds_blindly_and_saves_the_ratings(
    results: Results, page, complaints: list[str], tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    test = write_test(results.folder, items(results), seed=1)
    path = results.folder / "listening.html"
    text = path.read_text()
    for words in (
        "streamed",
        "offline",
        "synthesis",
        "look-ahead",
        "first",
        "last.ckpt",
        *(system.id for system in SYSTEMS),
    ):
        assert words not in text.replace("base64", ""), words
    orders = {}
    for listener in ("Ada", "Ben", "Ada"):
        page.goto(f"file://{path}")
        page.evaluate("localStorage.clear()")
        page.fill("#listener", listener)
        page.click("#start")
        played = []
        for number in range(1, 11):
            assert page.inner_text("#place") == f"{number} of 10"
            played.append(page.evaluate("order[place].id"))
            page.check(f"input[name=naturalness][value='{number % 5 + 1}']")
            page.check("input[name=similarity][value='3']")
            assert page.is_disabled("#next")  # a piece must be played before it can be rated
            page.evaluate("at('sound').muted = true; at('sound').play()")
            page.wait_for_function("!at('next').disabled")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.click("#next")
        assert "10 of 10 pieces are rated" in page.inner_text("#count")
        assert sorted(played) == [f"{i:03d}" for i in range(1, 11)]
        assert orders.setdefault(listener, played) == played
    assert orders["Ada"] != orders["Ben"]
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == "ratings-Ada.json" and json.loads(saved.read_text())["test"] == test
    ratings = add_ratings(results.folder, [saved])
    assert len(ratings) == 10 and {rating.listener for rating in ratings} == {"Ada"}
    key = json.loads((results.folder / "listening-key.json").read_text())
    answers = {sound["system"]: [] for sound in key["sounds"].values()}
    for number, name in enumerate(orders["Ada"], 1):
        answers[key["sounds"][name]["system"]].append(number % 5 + 1)
    for system, numbers in answers.items():
        assert sorted(rating.naturalness for rating in ratings if rating.system == system) == sorted(numbers)
    assert complaints == []


def test_a_listening_test_is_reproducible_has_one_level_and_is_not_overwritten(
    results: Results, tmp_path: Path
) -> None:
    first = write_test(tmp_path, items(results), seed=1)
    page = (tmp_path / "listening.html").read_text()
    assert write_test(tmp_path, items(results), seed=1) == first
    assert (tmp_path / "listening.html").read_text() == page
    with pytest.raises(FileExistsError, match=f"is the key of test {first}, and this is test "):
        write_test(tmp_path, items(results), seed=2)
    assert json.loads((tmp_path / "listening-key.json").read_text())["test"] == first
    write_wave(tmp_path / "quiet.flac", 0.01 * synthetic_voice(1.0), 16000)
    (quiet, _), (loud, _) = _read_at_level(tmp_path / "quiet.flac"), _read_at_level(items(results)[0].voice)
    levels = [float(np.sqrt(np.mean((wave / 32767.0) ** 2))) for wave in (quiet, loud)]
    assert levels == [pytest.approx(10 ** (-26 / 20), rel=0.01)] * 2


def test_a_listening_test_has_the_clips_kept_for_all_systems_whose_speaker_has_another_recording(
    results: Results, tmp_path: Path
) -> None:
    shutil.copytree(results.folder, tmp_path / "out")
    findings = Findings.from_results(Results.read(tmp_path / "out"))
    last = findings.rows[-1]
    assert [(item.clip, len(item.systems)) for item in listening_items(findings)] == [(key, 6) for key in KEYS[:2]]
    findings.results.sound_path(last.system, KEYS[0]).unlink()
    assert [(item.clip, len(item.systems)) for item in listening_items(findings)] == [(KEYS[1], 6)]
    findings.results.sound_path(last.system, KEYS[1]).unlink()
    with pytest.raises(
        ValueError, match=f"kept for every row, and '{join_labels(last.labels)}' has the fewest: evaluate"
    ):
        listening_items(findings)
    for key in KEYS[:2]:
        findings.results.sample_path(key, "voice.flac").unlink()
    with pytest.raises(ValueError, match="needs clips with another recording of the same speaker"):
        listening_items(findings)


def test_differing_files_of_one_listener_are_refused_and_none_is_stored(results: Results, tmp_path: Path) -> None:
    test = write_test(tmp_path, items(results))
    for name, number in (("a", 3), ("b", 4), ("c", 6)):
        ratings = {"001": {"naturalness": number, "similarity": 3}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"test": test, "listener": "Ada", "ratings": ratings}))
    with pytest.raises(ValueError, match=r"b\.json and .*a\.json are both from listener 'Ada' and differ"):
        add_ratings(tmp_path, [tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(ValueError, match=r"sound 001 has .*expected integers from 1 to 5"):
        add_ratings(tmp_path, [tmp_path / "c.json"])
    assert not (tmp_path / "ratings").exists()
    assert len(add_ratings(tmp_path, [tmp_path / "a.json"])) == 1
    assert len(add_ratings(tmp_path, [tmp_path / "a.json"])) == 1  # adding a file again changes nothing
