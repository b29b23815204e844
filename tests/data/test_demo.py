"""The demo corpus: it is speech, balanced over its voices, and reproducible."""

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")


from sf_lightning.data.demo import CLIP_SECONDS, VOICES, synthesize
from sf_lightning.data.espeak import Espeak, Voice
from sf_lightning.data.grammar import GRAMMARS

MANDARIN = GRAMMARS["cmn"]

TOY = {"minutes": 1.5, "held_out": 14, "seed": 3}
TINY = {"minutes": 0.1, "held_out": 2}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a corpus with one or two clips of every voice."""
    out = tmp_path_factory.mktemp("demo") / "corpus"
    synthesize(out, **TOY)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the content of every file below `folder`, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def sentences(folder: Path) -> dict[str, str]:
    """Returns the sentence of each clip, by path."""
    lines = (folder / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t") for line in lines)


def test_the_same_seed_gives_the_same_bytes(toy: Path, tmp_path: Path) -> None:
    """Also after earlier uses of espeak-ng in the process, whose globals would change the samples."""
    synthesize(tmp_path / "again", **TOY)
    assert contents(tmp_path / "again") == contents(toy)


def test_another_seed_gives_other_sentences(toy: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "other", **TINY, seed=4)
    assert not set(sentences(tmp_path / "other").values()) & set(sentences(toy).values())


def test_no_sentence_of_dev_is_in_train(toy: Path) -> None:
    counts = Counter(sentences(toy).values())
    assert max(counts.values()) == 1, "a sentence occurs twice"


def test_every_clip_has_a_json_with_language_and_text(toy: Path) -> None:
    for name, text in sentences(toy).items():
        fields = json.loads((toy / name).with_suffix(".json").read_text(encoding="utf-8"))
        language = "en" if text.isascii() else "zh"
        assert fields == {"language": language, "text": text}


def test_every_clip_is_speech_at_16_khz(toy: Path) -> None:
    for path in toy.rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert CLIP_SECONDS[0] <= info.duration <= CLIP_SECONDS[1]
        samples, _ = soundfile.read(path)
        frames = samples[: len(samples) // 400 * 400].reshape(-1, 400)
        loud = np.square(frames).mean(axis=1) > 1e-5
        assert loud.mean() > 0.6, f"{path.name} is mostly silence"
        assert 0.05 < np.abs(samples).max() < 0.99
        assert np.abs(samples[-160:]).max() < 0.02, f"{path.name} is cut off"


def test_every_clip_on_disk_has_its_sentence(toy: Path) -> None:
    assert sorted(sentences(toy)) == sorted(p.relative_to(toy).as_posix() for p in toy.rglob("*.wav"))


def test_all_voices_get_the_same_amount_of_speech(toy: Path) -> None:
    dev = Counter(Path(path).parent.name for path in sentences(toy) if path.startswith("dev"))
    assert sum(dev.values()) == TOY["held_out"]
    assert set(dev.values()) == {1, 2} and len(dev) == len(VOICES)
    seconds = Counter[str]()
    for path in (toy / "train").rglob("*.wav"):
        seconds[path.parent.name] += soundfile.info(path).duration
    assert seconds.keys() == {voice.name for voice in VOICES}
    assert max(seconds.values()) - min(seconds.values()) <= CLIP_SECONDS[1]


def test_the_figures_are_those_of_the_files(toy: Path) -> None:
    figures = json.loads((toy / "corpus.json").read_text())["figures"]
    for split in ("train", "dev"):
        durations = [soundfile.info(path).duration for path in (toy / split).rglob("*.wav")]
        assert figures[f"{split}_clips"] == len(durations)
        assert figures[f"{split}_minutes"] == pytest.approx(sum(durations) / 60)
    assert TOY["minutes"] <= figures["train_minutes"] < TOY["minutes"] + CLIP_SECONDS[1] / 60
    assert figures["english_minutes"] == pytest.approx(figures["mandarin_minutes"], abs=0.4)


def test_espeak_reads_every_mandarin_character_in_mandarin() -> None:
    """espeak-ng marks a switch of language: 熊 has the phonemes `(en)kS@Nt'u:(cmn)`, "xiong two"."""
    espeak = Espeak(seed=0)
    to_phonemes = espeak._library.espeak_TextToPhonemes
    to_phonemes.restype = ctypes.c_char_p

    def phonemes(text: str) -> bytes:
        return to_phonemes(ctypes.byref(ctypes.c_char_p(text.encode())), 1, 0)

    espeak.synthesize(Voice("cmn", "f1", 50, 50, 200), "你好")
    assert b"(en)" in phonemes("熊")
    alternatives = [a.strip() for key in MANDARIN if key != "sentence" for a in MANDARIN[key].split("|")]
    alternatives += [character for character in MANDARIN["sentence"] if "一" <= character <= "龥"]
    assert not [text for text in alternatives if b"(en)" in phonemes(text)]
    espeak.close()


def test_a_complete_corpus_is_not_changed(toy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in toy.rglob("*")}
    assert synthesize(toy, **TOY) == json.loads((toy / "corpus.json").read_text())["figures"]
    assert {path: path.stat().st_mtime_ns for path in toy.rglob("*")} == before


def test_other_settings_are_refused_and_the_corpus_is_kept(toy: Path) -> None:
    before = contents(toy)
    with pytest.raises(ValueError, match=r"'minutes': 1\.5.* not with .*'minutes': 2\.0.* delete it or choose"):
        synthesize(toy, **{**TOY, "minutes": 2.0})
    assert contents(toy) == before


def test_a_folder_that_is_not_a_corpus_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a demo corpus"):
        synthesize(tmp_path, **TINY)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    assert synthesize(out, **TINY)["dev_clips"] == 2
    assert (out / "corpus.json").is_file()


def test_a_killed_run_leaves_no_corpus_and_the_next_one_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "corpus"
    synthesize_clip = Espeak.synthesize

    def killed_in_the_second_train_clip(self: Espeak, voice: Voice, text: str) -> np.ndarray:
        if voice is VOICES[1] and (tmp_path / "corpus.partial" / "train").exists():
            raise KeyboardInterrupt
        return synthesize_clip(self, voice, text)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Espeak, "synthesize", killed_in_the_second_train_clip)
        synthesize(out, **TINY)
    assert not out.exists() and list((tmp_path / "corpus.partial").rglob("*.wav"))

    synthesize(out, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    synthesize(tmp_path / "uninterrupted", **TINY)
    assert contents(out) == contents(tmp_path / "uninterrupted")


def test_the_error_without_espeak_has_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"espeakng-loader.*pip install 'sf-lightning\[demo\]'"):
        synthesize(tmp_path / "corpus", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_voice_that_espeak_lacks_is_refused_by_name() -> None:
    with pytest.raises(RuntimeError, match=r"no voice en-gb\+f4"):
        Espeak(seed=0).synthesize(Voice("en-gb", "f4", 50, 50, 175), "Hello there.")


def test_silence_is_refused() -> None:
    with pytest.raises(RuntimeError, match="peaks at 0"):
        Espeak(seed=0).synthesize(VOICES[0], " ")


def test_a_grammar_without_new_sentences_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"sentence": "this is the only sentence that anybody here has ever learned to say"}
    monkeypatch.setitem(GRAMMARS, "en", only)
    with pytest.raises(RuntimeError, match=r"no new sentence.*fewer minutes"):
        synthesize(tmp_path / "corpus", minutes=1.0, held_out=0)


@pytest.mark.parametrize("wrong", [{"minutes": 0.0}, {"minutes": float("inf")}, {"held_out": -1}])
def test_a_setting_out_of_range_is_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        synthesize(tmp_path / "corpus", **wrong)
