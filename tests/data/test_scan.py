"""Files of a corpus: all that looks like speech is read, or left out under a cause."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.cli import shards as command
from sf_lightning.cli.options import read_names, split_list
from sf_lightning.data.build import build, fit_tokenizer
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import TarPart, find_parts
from sf_lightning.data.filters import Filters
from sf_lightning.data.scan import scan
from sf_lightning.data.shards import ShardSet
from tests.toys.audio import write_corpus
from tests.toys.corpora import mp3


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder of six clips, three of each of two speakers."""
    return write_corpus(tmp_path_factory.mktemp("speech"), clips=6)


@pytest.fixture
def corpus(speech: Path, tmp_path: Path) -> Path:
    """Returns a copy that a test may change."""
    return Path(shutil.copytree(speech, tmp_path / "corpus"))


@pytest.fixture
def config(speech: Path) -> BuildConfig:
    """Returns a configuration with a k-means tokenizer."""
    parts = find_parts(speech, 9)
    return BuildConfig(fit_tokenizer(parts, 20, BuildConfig.mel), shard_samples=9)


def test_linked_folders_are_read_at_any_depth_once_and_without_a_loop(speech: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "deep" / "er").mkdir(parents=True)
    (corpus / "deep" / "er" / "linked").symlink_to(speech / "voice0")
    (corpus / "all").symlink_to(speech)
    (corpus / "deep" / "loop").symlink_to(corpus)
    found = scan(corpus)
    assert len(found.audio) == 6
    assert set(found.left_out.values()) == {"link to a folder that is read already"}
    shutil.copytree(speech / "voice1", corpus / "voice1")  # of a link and a folder, the folder keeps its path
    (corpus / "a_link").symlink_to(corpus / "voice1")
    assert scan(corpus).left_out[corpus / "a_link"] == "link to a folder that is read already"


def test_a_linked_tar_is_read(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.tar").symlink_to(write(tmp_path / "store.tar", [("a.mp3", mp3(1.0))]))
    (part,) = find_parts(tmp_path / "corpus", 9)
    assert [clip.key for clip in part.read()] == ["a"]


def test_everything_that_is_left_out_has_a_cause(
    corpus: Path, config: BuildConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.m4a", "b.AAC", "c.m4a", "d.tar.gz"):
        (corpus / name).write_bytes(b"?")
    (corpus / "gone.wav").symlink_to("/annex/objects/gone.wav")
    os.mkfifo(corpus / "pipe.wav")
    (corpus / "locked").mkdir()
    (corpus / "notes.txt").touch()
    scandir = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "locked":
            raise PermissionError(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan(corpus)
    assert found.counts == {
        "left out: of another kind (.m4a)": 2,
        "left out: of another kind (.aac)": 1,
        "left out: of another kind (.tar.gz)": 1,
        "left out: dangling link": 1,
        "left out: no regular file": 1,
        "left out: folder without read permission": 1,
    }
    assert f"left out: 2 files of another kind (.m4a), such as {corpus / 'a.m4a'}" in found.lines
    assert f"left out: {corpus / 'gone.wav'}: dangling link" in found.lines
    manifest = build(find_parts(corpus, 9), corpus.with_name("set"), config, left_out=found.counts)
    assert manifest is not None and manifest.skipped["left out: dangling link"] == 1
    assert sum(info.samples for info in manifest.shards) == 6


def test_shard_sets_in_the_folder_are_no_part_of_the_corpus(corpus: Path, config: BuildConfig) -> None:
    for _ in range(2):
        manifest = build(find_parts(corpus, 9), corpus / "shards", config)
        assert manifest is not None and sum(info.samples for info in manifest.shards) == 6
    shutil.copytree(corpus / "shards", corpus / "other.partial")
    found = scan(corpus)
    assert len(found.audio) == 6 and found.left_out == {}  # a resumed build counts what an uninterrupted one does
    for k in (1, 2):
        build(find_parts(corpus, 3), corpus / "sliced", config, (k, 2))
    assert ShardSet(corpus / "sliced").samples == 6


@pytest.mark.parametrize("content", [b'{"speaker": "ren\xe9"}', b'{"speaker": "anna",}', b"[1]", b"", b"null"])
def test_a_clip_whose_json_cannot_be_read_is_counted_and_not_given_to_another_speaker(
    corpus: Path, config: BuildConfig, content: bytes
) -> None:
    next(corpus.rglob("*.wav")).with_suffix(".json").write_bytes(content)
    manifest = build(find_parts(corpus, 9), corpus.with_name("set"), config)
    assert manifest is not None and manifest.skipped == {"unreadable JSON": 1}


def test_files_beside_the_audio_may_be_links_within_the_corpus_only(
    corpus: Path, config: BuildConfig, tmp_path: Path
) -> None:
    inside, outside, *_ = sorted(corpus.rglob("*.wav"))
    (tmp_path / "secret.json").write_text('{"key": "hunter2"}')
    (corpus / "store").mkdir()
    (corpus / "store" / "x").write_text('{"language": "en"}')
    inside.with_suffix(".json").symlink_to(corpus / "store" / "x")
    outside.with_suffix(".json").symlink_to(tmp_path / "secret.json")
    manifest = build(find_parts(corpus, 9), tmp_path / "set", config)
    assert manifest is not None and manifest.skipped == {"link out of the corpus": 1}
    content = (tmp_path / "set" / "shard-000000.tar").read_bytes()
    assert b"hunter2" not in content and content.count(b'"language": "en"') == 1


def write(path: Path, members: list[tuple[str, bytes | str]], kind: bytes = tarfile.SYMTYPE) -> Path:
    """Writes a tar; a text is the target of a link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


CLIPS = [(f"EN_{i:03d}.mp3", mp3(0.5, i)) for i in range(4)]


@pytest.mark.parametrize(
    ("members", "keys", "skipped"),
    [
        ([*CLIPS[:2], CLIPS[1], CLIPS[2]], ["EN_000", "EN_001", "EN_002"], {"duplicate key": 1}),
        (
            [(f"talk.2021.{i}.mp3", data) for i, (_, data) in enumerate(CLIPS)],
            [f"talk-2021-{i}" for i in range(4)],
            {},
        ),
        (
            [*CLIPS, ("EN_000.json", b'{"speaker": "a"}'), ("EN_001.json", b"{}")],
            [f"EN_{i:03d}" for i in range(4)],
            {},
        ),
        ([*CLIPS[:1], ("b/x.mp3", "../EN_000.mp3")], ["EN_000", "b_x"], {}),
        ([*CLIPS[:1], ("b/x.mp3", "/data/x.mp3")], ["EN_000"], {"link out of the tar": 1}),
        ([*CLIPS[:1], ("b.m4a", b"?"), ("c.d.m4a", b"?")], ["EN_000"], {"incomplete": 2}),
        ([*CLIPS[:1], ("._EN_000.mp3", b"?"), ("EN_000.txt", b"?"), ("__index__", b"?")], ["EN_000"], {}),
        ([*CLIPS[:2], ("EN_000.json", b"{")], ["EN_001"], {"unreadable JSON": 1}),
    ],
    ids=["twice", "dots", "by suffix", "symlink", "link out", "other kind", "other files", "no JSON"],
)
def test_no_member_of_a_tar_is_lost_without_a_count(
    config: BuildConfig, tmp_path: Path, members: list, keys: list[str], skipped: dict[str, int]
) -> None:
    write(tmp_path / "in" / "a.tar", members)
    manifest = build(find_parts(tmp_path / "in", 9), tmp_path / "set", config)
    assert manifest is not None and manifest.skipped == skipped
    assert [row.key for row in ShardSet(tmp_path / "set").read_index(0)] == keys


def test_hard_links_in_a_tar_are_the_files_that_they_link_to(tmp_path: Path) -> None:
    tar = write(tmp_path / "a.tar", [*CLIPS[:1], ("b/x.mp3", "EN_000.mp3")], tarfile.LNKTYPE)
    first, second = TarPart("a", tar).read()
    assert (second.key, second.audio) == ("b_x", first.audio)


def test_emilia_and_emilia_yodas_are_read_from_one_folder(config: BuildConfig, tmp_path: Path) -> None:
    for name in ("Emilia", "Emilia-YODAS"):
        write(tmp_path / "hub" / name / "EN" / "EN-B000000.tar", CLIPS)
    manifest = build(find_parts(tmp_path / "hub", 9), tmp_path / "set", config)
    assert manifest is not None and sum(info.samples for info in manifest.shards) == 8 and manifest.skipped == {}
    assert [info.name for info in manifest.shards] == ["Emilia_EN_EN-B000000.tar", "Emilia-YODAS_EN_EN-B000000.tar"]


def test_blocked_speakers_may_have_a_byte_order_mark_and_those_that_no_clip_has_are_named(
    corpus: Path, tmp_path: Path, config: BuildConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "blocked.txt").write_bytes(b"\xef\xbb\xbfvoice0\r\nnobody\r\n")
    blocked = read_names(str(tmp_path / "blocked.txt"), "--blocked_speakers")
    assert blocked == {"voice0", "nobody"}
    config = BuildConfig(config.tokenizer, filters=Filters(blocked_speakers=blocked), shard_samples=2)
    manifest = build(find_parts(corpus, 2), tmp_path / "set", config)
    assert manifest is not None and sum(info.samples for info in manifest.shards) == 3
    assert "no clip is of 1 of the blocked speakers: nobody" in caplog.text


def test_norwegian_is_a_language(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert split_list("[en,no]") == split_list("en,no") == split_list(["en", "no"]) == ("en", "no")
    with pytest.raises(ValueError, match="has a boolean; expected names"):
        split_list(["en", True])
    for i, path in enumerate(sorted(corpus.rglob("*.wav"))):
        path.with_suffix(".json").write_text(json.dumps({"language": ("en", "no", "sv")[i % 3]}))
    (tmp_path / "c.yaml").write_text(
        f"audio: {corpus}\nout: {tmp_path}/yaml\nvocabulary: 20\nlanguages: [no, sv]\n"
    )
    command.main(["build", "--config", str(tmp_path / "c.yaml")])
    command.main(["build", f"--audio={corpus}", f"--out={tmp_path}/set", "--vocabulary=20", "--languages=[no,sv]"])
    assert capsys.readouterr().out.count(" 4 clips, ") == 2
    assert np.array_equal(*(np.load(tmp_path / name / "lookup.npy") for name in ("yaml", "set")))
