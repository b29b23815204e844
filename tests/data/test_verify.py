"""`verify`, `repair`, `sample` and `inspect`: problems are reported, and repaired sets are complete."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from sf_lightning.cli.shards import main
from sf_lightning.data import lookup
from sf_lightning.data.lookup import mean_token_mels
from sf_lightning.data.shards import Manifest, ShardSet
from sf_lightning.data.verify import repair, verify, verify_shard, verify_table
from sf_lightning.data.writer import npy_bytes
from tests.toys.shards import copy_shards


def run_command(*args: str) -> None:
    """Runs `sf-shards`."""
    main(list(args))


def test_a_whole_set_has_no_problems(shards: ShardSet, capsys: pytest.CaptureFixture) -> None:
    run_command("verify", f"--shards={shards.folder}")
    assert "23 samples in 5 shards, no problems" in capsys.readouterr().out


def test_damage_is_reported_and_repaired(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    folder = Path(broken.folder)
    tar = folder / "shard-000001.tar"
    data = bytearray(tar.read_bytes())
    row = broken.read_index(1)[2]
    with tarfile.open(tar) as members:
        data[members.getmember(f"{row.key}.wav").offset_data + 1000] ^= 1
    tar.write_bytes(data)
    (folder / "shard-000003.tar").write_bytes(b"")
    with pytest.raises(SystemExit):
        run_command("verify", f"--shards={folder}")
    captured = capsys.readouterr()
    assert "shard-000001.tar: digest" in captured.out and f"{row.key}: damaged" in captured.out
    assert "in 2 of 5 shards" in captured.err and "--repair=true" in captured.err
    run_command("verify", f"--shards={folder}", "--repair=true")
    assert "6 samples removed" in capsys.readouterr().out
    repaired_set = ShardSet(folder)
    assert repaired_set.samples == 17 and len(repaired_set.manifest.shards) == 4
    assert not any(verify_shard(repaired_set, number) for number in range(4))
    good, whole = (
        list(repaired_set.read_samples(1)),
        [raw for raw in shards.read_samples(1) if raw["__key__"] != row.key],
    )
    assert good == whole and len(good) == 4
    # In the same order, and without files of the shard that was dropped.
    names = [info.name for info in shards.manifest.shards]
    assert [info.name for info in repaired_set.manifest.shards] == names[:3] + names[4:]
    assert not list(folder.glob("shard-000003.*")) and not list(folder.glob(".*"))
    run_command("verify", f"--shards={folder}")


def test_a_wrong_manifest_and_a_missing_index_are_reported(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    path = Path(broken.folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["samples"] = 6
    path.write_text(json.dumps(manifest))
    (Path(broken.folder) / "shard-000002.json").write_text("{")
    again = ShardSet(broken.folder)
    assert "5 samples in the index, 6 in the manifest" in str(verify_shard(again, 0)[0])
    assert "cannot be read" in str(verify_shard(again, 2)[0])
    assert repair(again, [0, 2]) == 1 and again.samples == 24  # one that never was
    # The index of an undamaged tar is made again, to the byte.
    for name in ("shard-000002.json", "shard-000002.tar", "shard-000000.tar", "manifest.json"):
        assert (Path(broken.folder) / name).read_bytes() == (Path(shards.folder) / name).read_bytes()


def test_a_shard_whose_tar_and_index_are_both_damaged_is_dropped(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    tar = Path(broken.folder) / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    tar.with_suffix(".json").unlink()
    assert repair(broken, [2]) == 5 and "shard-000002.tar is dropped" in caplog.text
    assert not verify(ShardSet(broken.folder))


def test_a_repair_keeps_the_counts_of_clips_skipped_at_build(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    index = Path(broken.folder) / "shard-000001.json"
    values = json.loads(index.read_text()) | {"skipped": {"silent": 2}}
    values["rows"][1][2] ^= 1
    index.write_text(json.dumps(values))
    assert repair(broken, [1]) == 1
    assert json.loads(index.read_text())["skipped"] == {"silent": 2}


def test_a_repair_killed_before_the_manifest_can_be_repeated_without_loss(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    folder = Path(broken.folder)
    (folder / "shard-000003.tar").write_bytes((folder / "shard-000003.tar").read_bytes()[:60_000])
    left = len(list(broken.read_samples(3)))
    assert 0 < left < 5
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Manifest, "as_json", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        repair(broken, [3])
    problems = verify(ShardSet(folder))
    assert {problem.shard for problem in problems} == {3, None}
    assert repair(ShardSet(folder), [3]) == 5 - left
    assert not verify(ShardSet(folder)) and ShardSet(folder).samples == 18 + left


def test_slices_read_every_shard_and_the_table_once(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = Path(copy_shards(shards, tmp_path / "set").folder)
    for part, message in (
        ("1/2", "13 samples in 3 shards"),
        ("2/2", "10 samples in 2 shards"),
        ("6/6", "0 samples"),
    ):
        run_command("verify", f"--shards={folder}", f"--slice={part}")
        assert f"set, slice {part}: {message}" in capsys.readouterr().out
    (folder / "shard-000001.tar").write_bytes(b"")
    (folder / "lookup.npy").unlink()
    parts = [verify(ShardSet(folder), (number, 3)) for number in (1, 2, 3)]
    assert [{problem.file for problem in part} for part in parts] == [{"lookup.npy"}, {"shard-000001.tar"}, set()]
    assert sorted(str(problem) for part in parts for problem in part) == sorted(map(str, verify(ShardSet(folder))))
    with pytest.raises(SystemExit):
        run_command("verify", f"--shards={folder}", "--slice=2/3")
    assert "set, slice 2/3: 6 problems in 1 of 2 shards" in capsys.readouterr().err


def test_repair_is_refused_in_slices(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = Path(copy_shards(shards, tmp_path / "set").folder)
    (folder / "shard-000001.tar").write_bytes(b"")
    before = (folder / "manifest.json").read_bytes()
    for args, message in (
        (["--repair=true", "--slice=2/2"], "--repair cannot be combined with --slice 2/2"),
        (["--slice=3/2"], "expected 1/2 to 2/2"),
        (["--processes=0"], "--processes is 0; expected 1 or more"),
    ):
        with pytest.raises(SystemExit):
            run_command("verify", f"--shards={folder}", *args)
        assert message in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


def test_several_processes_find_and_repair_the_same_problems_as_one(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    for number in (1, 3):
        (Path(broken.folder) / f"shard-00000{number}.tar").write_bytes(b"")
    alone = verify(broken)
    capsys.readouterr()
    run_command("verify", f"--shards={broken.folder}", "--processes=2", "--repair=true")
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [str(problem) for problem in alone] and last.endswith("repaired, 10 samples removed")
    assert not verify(ShardSet(broken.folder))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "lookup.npy: missing"),
        (np.zeros((50, 4, 81), np.float32), "float32 of shape (50, 4, 81), expected float32 of (50, 4, 80)"),
        (np.zeros((50, 4, 80)), "float64 of shape (50, 4, 80), expected float32"),
        (np.full((50, 4, 80), np.nan, np.float32), "not finite"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "cannot be read"),
    ],
)
def test_a_wrong_lookup_table_is_reported_and_made_again(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture, table: np.ndarray | bytes | None, message: str
) -> None:
    path = Path(copy_shards(shards, tmp_path / "set").folder) / "lookup.npy"
    before = path.read_bytes()
    path.unlink()
    if table is not None:
        path.write_bytes(table if isinstance(table, bytes) else npy_bytes(table))
    with pytest.raises(SystemExit):
        run_command("verify", f"--shards={path.parent}")
    captured = capsys.readouterr()
    assert (
        message in captured.out
        and "the lookup table is missing or wrong: --repair=true makes it again" in captured.err
    )
    run_command("verify", f"--shards={path.parent}", "--repair=true")
    assert path.read_bytes() == before and "repaired, 0 samples removed" in capsys.readouterr().out


def test_a_repaired_set_has_the_table_of_its_remaining_samples(shards: ShardSet, tmp_path: Path) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    folder = Path(broken.folder)
    for number in (0, 1, 2, 3):
        (folder / f"shard-00000{number}.tar").write_bytes(b"")
    repair(broken, range(4))
    table = np.load(folder / "lookup.npy")
    assert np.array_equal(table, mean_token_mels(ShardSet(folder)))
    assert not np.array_equal(table, np.load(Path(shards.folder) / "lookup.npy"))


def test_an_interrupted_repair_leaves_no_table_of_removed_samples(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = copy_shards(shards, tmp_path / "set")
    (Path(broken.folder) / "shard-000001.tar").write_bytes(b"")

    def kill(shards: ShardSet) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lookup, "mean_token_mels", kill)
    with pytest.raises(KeyboardInterrupt):
        repair(broken, [1])
    assert str(*verify_table(ShardSet(broken.folder))) == "lookup.npy: missing"


def test_a_remote_set_cannot_be_repaired(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match="only a set in a local folder can be repaired"):
        repair(ShardSet(f"pipe:cat {shards.folder}/{{}}"), [0])


def test_sampled_clips_have_the_bytes_of_the_set(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run_command("sample", f"--shards={shards.folder}", f"--out={tmp_path}", "--count=4")
    waves = sorted(tmp_path.glob("*.wav"))
    assert len(waves) == 4 and len(list(tmp_path.glob("*.json"))) == 4
    for path in waves:
        speaker, clip = path.stem.split("_")
        source = Path(shards.folder).parent / "audio" / speaker / f"{clip}.wav"
        assert path.read_bytes() == source.read_bytes()
    assert str(waves[0]) in capsys.readouterr().out


def test_inspect_shows_lengths_languages_speakers_and_codes(
    shards: ShardSet, capsys: pytest.CaptureFixture
) -> None:
    run_command("inspect", f"--shards={shards.folder}", "--read=5")
    output = capsys.readouterr().out
    assert "speakers: 2, most clips: voice0 12, voice1 11" in output and "languages: unknown 23" in output
    assert "tokens in 5 of 5 shards: 50 of 50 codes used" in output and "#" in output


def test_the_command_builds_in_slices_and_reports_wrong_options(
    shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    audio = Path(shards.folder).parent / "audio"
    for args, message in (
        (["--slice=3"], "--slice is '3'; expected two integers such as 3/64"),
        (["--slice=3/2"], "expected 1/2 to 2/2"),
        (["--slice=1/0"], "expected at least one slice"),
        (["--vocabulary=0"], "--vocabulary is 0; expected 1 or more"),
        (["--slice=1/2"], "jobs that share a build must share its tokenizer"),
        (["--tokenizer=precomputed"], "requires --vocabulary"),
        (["--processes=0"], "--processes is 0; expected 1 or more"),
        (["--tokenizer_name=s3"], "--tokenizer_name requires --tokenizer=precomputed"),
        (["--x_vector_width=4"], "--x_vector_width requires --x_vectors"),
        (["--device=cuda"], "--device requires an S3 --tokenizer or --speaker_encoder"),
        (["--speaker_encoder=x", "--x_vectors=y", "--vocabulary=50"], "give only one"),
        (["--min_seconds=5", "--max_seconds=1"], "--min_seconds is 5.0: expected 0 to --max_seconds, which is 1.0"),
        (["--min_seconds=-1"], "--min_seconds is -1.0: expected 0 to"),
        (
            ["--blocked_speakers=/nowhere"],
            "--blocked_speakers /nowhere: no such file",
        ),
        ([f"--blocked_speakers={audio}/voice0/clip000.wav"], "clip000.wav is not UTF-8 text"),
        (["--vocabulary=many"], "error: --vocabulary is many; expected an integer\n"),
    ):
        with pytest.raises(SystemExit):
            run_command("build", f"--audio={audio}", f"--out={tmp_path / 'a' / 'set'}", *args)
        assert message in capsys.readouterr().err
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
    run_command("fit", f"--audio={audio}", f"--out={tmp_path}/kmeans-40.npz", "--vocabulary=40")
    for job in ("1/2", "2/2"):
        run_command(
            "build",
            f"--audio={audio}",
            f"--out={tmp_path}/set",
            "--vocabulary=40",
            f"--slice={job}",
            "--shard_samples=5",
        )
    output = capsys.readouterr().out
    assert "slice 1/2 is done; the set is complete when all slices are" in output
    assert "23 clips" in output and "5 shards" in output
    with pytest.raises(SystemExit):
        run_command("fit", f"--audio={audio}", f"--out={tmp_path}/kmeans-40.npz", "--vocabulary=40")
    assert "kmeans-40.npz exists already, and sets may have been built with it" in capsys.readouterr().err
