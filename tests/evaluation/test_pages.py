"""Pages as a browser shows them: all from one file, nothing cut off on a phone, a listening test that is blind."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import write_wave
from sf_lightning.evaluation.grid import Way, label
from sf_lightning.evaluation.listening import Item, items_of, keep_ratings, write_test
from sf_lightning.evaluation.pictures import draw_mels
from sf_lightning.evaluation.report import page_of
from sf_lightning.evaluation.results import Identity, Line, Results
from sf_lightning.evaluation.table import Findings
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.audio import synthetic_voice

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)

SOUND = VocoderConfig("griffin_lim"), MelConfig()

WAYS = (
    Way("copy_synthesis", *SOUND),
    Way("offline", *SOUND, "runs/a/checkpoints/last.ckpt", "own", 4, 0.5),
    *(Way("streamed", *SOUND, "runs/a/checkpoints/last.ckpt", "own", 4, 0.5, ahead) for ahead in (1, 2, 4)),
)

KEYS = ("first", "</script><script>alert(1)</script>", "third")
"""A key is no more than a name, whatever it says."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """An evaluation as it lies on disk, of made-up numbers."""
    identity = Identity("clips", "1", 3, "", (), "cpu")
    results = Results.open(tmp_path_factory.mktemp("eval") / "out", identity, WAYS, {}, {"data": ("a" * 200,)})
    for number, key in enumerate(KEYS):
        for way in WAYS:
            scores = {"pesq_wb": 1.5, "stoi": 0.8 + 0.01 * number, "visqol": 3.0 + (way.lookahead or 0) / 10}
            if way.kind == "streamed":
                scores |= {"first_packet_ms": 300.0 * (way.lookahead or 0), "gap": 0.01}
            results.add(Line(way.id, key, "", 100, scores, (10.0, 12.0, 11.0) if way.lookahead else ()))
            if number < 2:
                write_wave(results.sample(key, f"{way.id}.flac"), synthetic_voice(1.0, seed=number), 16000)
            if number == 0 and way.lookahead == 1:
                mels = {"reference": torch.randn(100, 80), "streamed": torch.randn(100, 80)}
                draw_mels(mels, torch.tensor([24, 48]), 100, results.sample(key, f"{way.id}.webp"))
        if number < 2:
            for name in ("reference", "voice"):
                write_wave(results.sample(key, f"{name}.flac"), synthetic_voice(1.0, 150.0, seed=number), 16000)
    results.close()
    return results


def items(results: Results) -> list[Item]:
    every = Findings.of(results).rows
    systems = [{label(row.told): results.sample(key, f"{row.way.id}.flac") for row in every} for key in KEYS[:2]]
    return [Item(key, results.sample(key, "voice.flac"), each) for key, each in zip(KEYS, systems, strict=False)]


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium."""
    if not CHROMIUM:
        pytest.skip("no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the console said, and what was asked of the network."""
    return []


@pytest.fixture
def page(browser, complaints: list[str]) -> Iterator:  # type: ignore[no-untyped-def]
    """A phone in the dark, that has no network."""
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
    page_of(Findings.of(results)).write(path)
    page.goto(f"file://{path}")
    page.wait_for_function("[...document.querySelectorAll('audio')].every(each => each.readyState > 0)")
    lengths = page.evaluate("[...document.querySelectorAll('audio')].map(each => each.duration)")
    assert lengths == [pytest.approx(1.0, abs=0.01)] * 2 * 6  # two clips, as recorded and in five ways
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.plots svg')].map(each => each.getBoundingClientRect().height)"
    )
    assert len(drawn) == 4 and min(drawn) > 100
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    said = page.inner_text("body")
    for words in ("Quality", "Streaming", "copy-synthesis", "3: streamed, look-ahead 1", "first packet", KEYS[1]):
        assert words in said
    ink, paper = (page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    assert sum(eval(ink[3:])) > 3 * 180 and sum(eval(paper[3:])) < 3 * 60  # light on dark
    # One at a time: to start a sound ends the other.
    page.evaluate("for (const each of document.querySelectorAll('audio')) each.muted = true")
    playing = page.evaluate(
        "(async () => { const [a, b] = document.querySelectorAll('audio'); await a.play(); await b.play();"
        " return [a.paused, b.paused]; })()"
    )
    assert playing == [True, False]
    assert complaints == []


def test_a_listener_rates_every_sound_without_being_told_what_it_is_and_saves_it(
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
        *(way.id for way in WAYS),
    ):
        assert words not in text.replace("base64", ""), words
    orders = {}
    for listener in ("Ada", "Ben", "Ada"):
        page.goto(f"file://{path}")
        page.evaluate("localStorage.clear()")
        page.fill("#listener", listener)
        page.click("#start")
        heard = []
        for number in range(1, 11):
            assert page.inner_text("#place") == f"{number} of 10"
            heard.append(page.evaluate("order[place].id"))
            page.check(f"input[name=naturalness][value='{number % 5 + 1}']")
            page.check("input[name=similarity][value='3']")
            assert page.is_disabled("#next")  # nobody judges what he has not heard
            page.evaluate("at('sound').muted = true; at('sound').play()")
            page.wait_for_function("!at('next').disabled")
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.click("#next")
        assert "10 of 10 pieces are rated" in page.inner_text("#count")
        assert sorted(heard) == [f"{i:03d}" for i in range(1, 11)]
        assert orders.setdefault(listener, heard) == heard
    assert orders["Ada"] != orders["Ben"]
    with page.expect_download() as download:
        page.click("#save")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    assert saved.name == "ratings-Ada.json" and json.loads(saved.read_text())["test"] == test
    ratings = keep_ratings(results.folder, [saved])
    assert len(ratings) == 10 and {each.listener for each in ratings} == {"Ada"}
    key = json.loads((results.folder / "listening-key.json").read_text())
    said = {key["sounds"][name]["system"]: [] for name in key["sounds"]}
    for number, name in enumerate(orders["Ada"], 1):
        said[key["sounds"][name]["system"]].append(number % 5 + 1)
    for system, numbers in said.items():
        assert sorted(each.naturalness for each in ratings if each.system == system) == sorted(numbers)
    assert complaints == []


def test_a_test_is_the_same_for_the_same_seed_plays_all_at_one_level_and_is_not_written_over(
    results: Results, tmp_path: Path
) -> None:
    first = write_test(tmp_path, items(results), seed=1)
    page = (tmp_path / "listening.html").read_text()
    assert write_test(tmp_path, items(results), seed=1) == first
    assert (tmp_path / "listening.html").read_text() == page
    with pytest.raises(FileExistsError, match=f"is of test {first}, this one is "):
        write_test(tmp_path, items(results), seed=2)
    assert json.loads((tmp_path / "listening-key.json").read_text())["test"] == first
    from sf_lightning.evaluation.listening import _level

    write_wave(tmp_path / "quiet.flac", 0.01 * synthetic_voice(1.0), 16000)
    (quiet, _), (loud, _) = _level(tmp_path / "quiet.flac"), _level(items(results)[0].voice)
    levels = [float(np.sqrt(np.mean((wave / 32767.0) ** 2))) for wave in (quiet, loud)]
    assert levels == [pytest.approx(10 ** (-26 / 20), rel=0.01)] * 2


def test_listeners_hear_clips_that_were_kept_in_every_way_and_have_a_voice_of_their_own(
    results: Results, tmp_path: Path
) -> None:
    shutil.copytree(results.folder, tmp_path / "out")
    found = Findings.of(Results.read(tmp_path / "out"))
    last = found.rows[-1]
    assert [(each.clip, len(each.systems)) for each in items_of(found)] == [(key, 6) for key in KEYS[:2]]
    found.results.sound(last.way, KEYS[0]).unlink()
    assert [(each.clip, len(each.systems)) for each in items_of(found)] == [(KEYS[1], 6)]
    found.results.sound(last.way, KEYS[1]).unlink()
    with pytest.raises(
        ValueError, match=f"kept in every row, least of all in '{label(last.told)}': ask for that row"
    ):
        items_of(found)
    for key in KEYS[:2]:
        found.results.sample(key, "voice.flac").unlink()
    with pytest.raises(ValueError, match="of no clip that was kept there is another recording of its speaker"):
        items_of(found)


def test_two_files_of_one_listener_that_differ_are_refused_and_none_is_kept(
    results: Results, tmp_path: Path
) -> None:
    test = write_test(tmp_path, items(results))
    for name, number in (("a", 3), ("b", 4), ("c", 6)):
        ratings = {"001": {"naturalness": number, "similarity": 3}}
        (tmp_path / f"{name}.json").write_text(json.dumps({"test": test, "listener": "Ada", "ratings": ratings}))
    with pytest.raises(ValueError, match=r"b\.json and .*a\.json are both of listener 'Ada' and differ"):
        keep_ratings(tmp_path, [tmp_path / "a.json", tmp_path / "b.json"])
    with pytest.raises(ValueError, match=r"sound 001 has .*wanted 1 to 5"):
        keep_ratings(tmp_path, [tmp_path / "c.json"])
    assert not (tmp_path / "ratings").exists()
    assert len(keep_ratings(tmp_path, [tmp_path / "a.json"])) == 1
    assert len(keep_ratings(tmp_path, [tmp_path / "a.json"])) == 1  # once more says nothing new
