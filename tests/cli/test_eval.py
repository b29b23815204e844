"""The command `sf-eval`: its files, resuming, and one line for each mistake."""

import csv
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import wandb

from sf_lightning.audio.mel import MelConfig
from sf_lightning.cli import eval as command
from sf_lightning.cli import export
from sf_lightning.data.build import build, fit_tokenizer
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.shards import ShardSet
from sf_lightning.evaluation import run
from sf_lightning.evaluation.clips import open_clips
from sf_lightning.evaluation.results import Results
from sf_lightning.evaluation.systems import DecodingGrid, plan_systems
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.tokens.load import load_tokenizer
from tests.toys.audio import synthetic_voice, write_corpus
from tests.toys.cli import error_line
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder
from tests.toys.ecapa import write_ecapa
from tests.toys.networks import randomize_weights
from tests.toys.vocoder_files import write_vocoder


@pytest.fixture(scope="module", autouse=True)
def _keep_priority() -> Iterator[None]:
    """Keeps the priority of the scoring processes, which later tests use too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "METRICS_NICE", 0)
        yield


@pytest.fixture(scope="module")
def checkpoint(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains a decoder with random weights, one block of look-ahead and two evaluations: exact at two blocks."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    module = decoder_module(decode=DecodeConfig(steps=2, guidance=0.0))
    fit_decoder(folder, module, decoder_data(shards), 1)
    content = torch.load(folder / "last.ckpt", weights_only=False)
    randomize_weights(module.average, seed=1)
    content["state_dict"] |= {f"average.{name}": value for name, value in module.average.state_dict().items()}
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def evaluation(checkpoint: Path, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole evaluation: its own layout and another, two look-aheads, voices compared, a listening test, W&B."""
    ecapa = write_ecapa(tmp_path_factory.mktemp("ecapa"))
    out = tmp_path_factory.mktemp("eval") / "mine"
    more = ["--layout", "own", "block_only", "--lookahead", "1", "2", "--listening_test", "true"]
    # A W&B run is open already, as in a notebook.
    with wandb.init(mode="offline", dir=tmp_path_factory.mktemp("other"), settings=wandb.Settings(silent=True)):
        command.main(
            [*arguments(checkpoint, shards, out), *more, "--keep=1", f"--similarity={ecapa}", "--wandb=true"]
        )
    return out


def arguments(checkpoint: Path, shards: ShardSet, out: Path) -> list[str]:
    """Returns arguments for three clips with the checkpoint's own settings, without W&B."""
    return [f"--ckpt={checkpoint}", f"--data={shards.folder}", f"--out={out}", "--clips=3", "--wandb=false"]


def table(out: Path) -> list[dict[str, str]]:
    """Returns the rows of `table.csv`."""
    with (out / "table.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_system_has_a_row_with_all_scores(evaluation: Path) -> None:
    rows = table(evaluation)
    systems = [(row["way"], row["layout"], row["lookahead"]) for row in rows]
    kinds = [("offline", ""), ("streamed", "1"), ("streamed", "2")]
    decoded = [(kind, layout, lookahead) for layout in ("own", "block_only") for kind, lookahead in kinds]
    assert systems == [("copy_synthesis", "", ""), *decoded]
    for row in rows:
        assert row["clips"] == "3"
        for name in ("stoi", "mel_l1", "seam_db", "similarity", "level_jump"):
            assert math.isfinite(float(row[name])), name
        for name in ("gap", "first_packet_ms", "wait_ms", "real_time_factor", "chunk_ms"):
            assert (row[name] != "") == (row["way"] == "streamed"), name
        assert not row["chunk_ms"] or float(row["chunk_ms"]) > 0
    copy, offline, first, second = rows[:4]
    assert float(copy["mel_l1"]) == 0.0 and float(copy["stoi"]) > float(offline["stoi"])
    assert [float(row["wait_ms"]) for row in (first, second)] == [480, 720]
    # Two evaluations that look one block ahead each: with a look-ahead of two blocks streaming equals offline.
    assert float(first["gap"]) > 1e-5 and float(second["gap"]) < float(first["gap"]) / 10
    # A layout without look-ahead streams exactly at once; its output differs from that of the own layout.
    assert all(float(row["gap"]) < 1e-5 for row in rows[5:7])
    assert abs(float(rows[4]["mel_l1"]) - float(offline["mel_l1"])) > 1e-6


def test_the_folder_has_tables_pages_sounds_and_an_offline_wandb_run(evaluation: Path) -> None:
    text = (evaluation / "table.md").read_text()
    assert "## Quality" in text and "## Streaming" in text and "*STOI*:" in text and "left out: NISQA" in text
    page = (evaluation / "report.html").read_text()
    assert page.count("<audio") == 8 and page.count("data:image/webp") == 4 and page.count("<svg") == 4
    identity = json.loads((evaluation / "evaluation.json").read_text())["identity"]
    assert re.search(r"ecapa\d+ \(ecapa-[0-9a-f]{8}\)$", identity["similarity"])  # name and digest of its weights
    names = {path.suffix for path in (evaluation / "samples").iterdir()}
    assert names == {".flac", ".webp"}
    assert list(evaluation.glob("wandb/offline-run-*/*.wandb"))
    key = json.loads((evaluation / "listening-key.json").read_text())
    assert len(key["sounds"]) == 8 and key["systems"][0] == "recording"


def test_an_export_and_an_equal_layout_score_as_the_checkpoint_and_join_its_table(
    evaluation: Path, checkpoint: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    export.main([str(checkpoint), str(tmp_path / "decoder")])
    (tmp_path / "again.yaml").write_text("backward: [0]\nforward: [1]\n")
    out = tmp_path / "eval"
    command.main([*arguments(checkpoint, shards, out), "--keep=0"])
    before = (out / "results.jsonl").read_text()
    more = [f"--layout={tmp_path / 'again.yaml'}", "--keep=0"]
    command.main([*arguments(tmp_path / "decoder", shards, out), *more])
    assert (out / "results.jsonl").read_text().startswith(before)
    _, _, mine, _, exported = table(out)
    assert exported["checkpoint"].endswith("decoder") and mine["checkpoint"].endswith("last.ckpt")
    first = table(evaluation)[2]
    for name in ("stoi", "mel_l1", "seam_db", "gap"):
        assert mine[name] == exported[name] and float(mine[name]) == pytest.approx(float(first[name]), abs=1e-4)
    # Sound that is wanted later is decoded then, without scoring the clips again.
    scored, test = (out / "results.jsonl").read_text(), ["--keep=1", "--listening_test=true"]
    message = error_line(capsys, command.main, *arguments(checkpoint, shards, out), *test)
    assert "kept for every row, and 'offline, eval/decoder" in message.replace(tmp_path.name, "eval")
    assert (out / "report.html").read_text().count("<audio") == 4
    command.main([*arguments(tmp_path / "decoder", shards, out), *more[:1], *test])
    assert len(json.loads((out / "listening-key.json").read_text())["systems"]) == 6
    assert (out / "results.jsonl").read_text() == scored


def test_a_checkpoint_or_vocoder_that_changes_during_the_evaluation_is_refused(
    checkpoint: Path, shards: ShardSet, tmp_path: Path
) -> None:
    path = tmp_path / "last.ckpt"
    shutil.copy(checkpoint, path)
    vocoder = tmp_path / "vocoder"
    write_vocoder(vocoder, 0)
    candidate = command.open_candidate(str(path), open_clips(str(shards.folder)))
    groups = plan_systems([candidate], DecodingGrid(vocoders=(str(vocoder),)))
    decoders = run._DecoderCache("cpu", run.input_digests(groups))
    decoders.decoder(groups[0])
    write_vocoder(vocoder, 1)
    with pytest.raises(
        ValueError, match=rf"--vocoder {vocoder} changed during the evaluation: evaluate a copy of it"
    ):
        decoders.decoder(groups[0])
    content = torch.load(path, weights_only=False)
    content["global_step"] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"--ckpt {path} changed during the evaluation: evaluate a copy of it"):
        run._DecoderCache("cpu", {}).decoder(groups[0])


def test_an_interrupted_evaluation_resumes(
    checkpoint: Path, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation: Path
) -> None:
    out, add = tmp_path / "eval", Results.add

    def stop(results: Results, row: object) -> None:
        if len(results.rows) == 4:
            raise KeyboardInterrupt
        add(results, row)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Results, "add", stop)
        with pytest.raises(SystemExit) as exit_:
            command.main([*arguments(checkpoint, shards, out), "--batch=2"])
    assert exit_.value.code == 130
    done = (out / "results.jsonl").read_text()
    assert len(done.splitlines()) == 4
    decoded: list[int] = []
    offline = StreamingDecoder.decode_offline

    def counting(decoder: StreamingDecoder, tokens: list, speakers: list) -> list:
        decoded.append(len(tokens))
        assert not decoder.timed  # reading a GPU's clock would slow every batch
        return offline(decoder, tokens, speakers)

    monkeypatch.setattr(StreamingDecoder, "decode_offline", counting)
    command.main([*arguments(checkpoint, shards, out), "--batch=2"])
    after = (out / "results.jsonl").read_text()
    assert after.startswith(done) and len(after.splitlines()) == 9
    command.main([*arguments(checkpoint, shards, out), "--batch=2"])  # a third time there is nothing to do
    assert (out / "results.jsonl").read_text() == after and sum(decoded) <= 3
    for row, whole in zip(table(out), table(evaluation)[:3], strict=True):
        assert row["clips"] == "3" and float(row["stoi"]) == pytest.approx(float(whole["stoi"]), abs=1e-4)


def test_a_folder_of_audio_is_tokenized_and_silent_clips_are_skipped(
    checkpoint: Path, shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio = write_corpus(tmp_path / "audio", clips=3)
    soundfile.write(audio / "voice0" / "silent.wav", np.zeros(24000), 16000, subtype="PCM_16")
    (audio / "voice1" / "clip001.json").write_text('{"language": "en"}')
    np.save(audio / "voice0" / "lone.tokens.npy", np.zeros(30, np.int64))
    tokenizer = Path(shards.folder).parent / "kmeans-50.npz"
    args = [f"--ckpt={checkpoint}", f"--data={audio}", "--clips=4", "--wandb=false"]
    command.main([*args, f"--tokenizer={tokenizer}", f"--out={tmp_path / 'made'}"])
    rows = table(tmp_path / "made")
    assert [row["clips"] for row in rows if not row["language"]] == ["3", "3", "3"]
    messages = caplog.text
    samples = [path.name.split(".")[1] for path in (tmp_path / "made" / "samples").iterdir()]
    assert (samples.count("reference"), samples.count("voice")) == (3, 2)  # one speaker has no other clip
    assert "cropped from the clip itself for 1 of 3 clips" in (tmp_path / "made" / "table.md").read_text()
    assert "silent" in messages and "skipped 1 files of tokens without audio" in messages
    assert {row["language"] for row in rows} == {"", "en", "unknown"}


def test_files_beside_the_audio_change_the_version_and_take_precedence_over_a_tokenizer(
    checkpoint: Path, shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    audio = write_corpus(tmp_path / "audio", clips=2)
    description = load_pretrained(checkpoint).description
    requirements = ClipRequirements.from_config(description.model, description.tokenizer)
    tokenizer = load_tokenizer(Path(shards.folder).parent / "kmeans-50.npz")
    first = audio / "voice0" / "clip000"
    versions = [open_clips(str(audio)).version]
    for suffix in ("tokens.npy", "speaker.npy", "json"):
        first.with_suffix(f".{suffix}").write_bytes(b"{}")
        versions += [open_clips(str(audio)).version]
    assert len(set(versions)) == 4
    # Another tokenizer is refused for the clip without tokens; where all clips have tokens it is not used.
    tokenizer.spec = replace(tokenizer.spec, digest="other")
    with pytest.raises(ValueError, match="--tokenizer has tokens of kmeans with digest other, the model requires"):
        open_clips(str(audio), tokenizer).check(requirements)
    assert caplog.messages == ["1 of 2 clips have tokens beside them: --tokenizer is not used for them"]
    (audio / "voice1" / "clip001.tokens.npy").write_bytes(b"")
    open_clips(str(audio), tokenizer).check(requirements)
    assert caplog.messages[1:] == ["2 of 2 clips have tokens beside them: --tokenizer is not used for them"]


def test_ratings_become_mean_opinion_scores_in_tables_and_report(evaluation: Path, tmp_path: Path) -> None:
    key = json.loads((evaluation / "listening-key.json").read_text())
    paths = []
    for listener, more in (("Ada", 0), ("Ben", 1)):
        # Both listeners find the recording natural, and all systems unnatural.
        answers = {
            name: {"naturalness": 4 + more if sound["system"] == "recording" else 1 + more, "similarity": 3}
            for name, sound in key["sounds"].items()
        }
        paths.append(tmp_path / f"{listener}.json")
        paths[-1].write_text(json.dumps({"test": key["test"], "listener": listener, "ratings": answers}))
    command.main([f"--out={evaluation}", "--ratings", *map(str, paths)])
    with (evaluation / "mos.csv").open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert list(rows) == key["systems"]
    recording, copy = rows["recording"], rows["copy-synthesis"]
    assert (float(recording["naturalness"]), float(copy["naturalness"])) == (4.5, 1.5)
    # With two listeners the interval is as wide as the scale.
    assert [float(recording[f"naturalness_{end}"]) for end in ("low", "high")] == [1.0, 5.0]
    assert "Mean opinion scores of 2 listeners" in (evaluation / "report.html").read_text()
    assert "| recording | 4.50 (1.00 to 5.00) |" in (evaluation / "mos.md").read_text()


def test_each_mistake_gets_one_clear_line(
    evaluation: Path, checkpoint: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    units = find_parts(write_corpus(tmp_path / "other" / "audio", clips=6), 6)
    tokenizer = fit_tokenizer(units[:1], 50, MelConfig())
    build(units, tmp_path / "other" / "set", BuildConfig(tokenizer, shard_samples=6))
    other = tokenizer.spec.digest
    (tmp_path / "empty").mkdir()
    (tmp_path / "tokens").mkdir()
    np.save(tmp_path / "tokens" / "a.tokens.npy", np.zeros(30, np.int64))
    (tmp_path / "bare").mkdir()
    soundfile.write(tmp_path / "bare" / "a.wav", synthetic_voice(1.5), 16000)
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent" / "a.wav", np.zeros(24000), 16000)
    (tmp_path / "ratings.json").write_text(json.dumps({"test": "000000000000", "listener": "Ada", "ratings": {}}))
    (tmp_path / "words.json").write_text("hello")
    ckpt, out, clips = f"--ckpt={checkpoint}", f"--out={tmp_path / 'new'}", f"--data={shards.folder}"
    test = json.loads((evaluation / "listening-key.json").read_text())["test"]
    tokens, there = f"--tokenizer={Path(shards.folder).parent / 'kmeans-50.npz'}", f"--out={evaluation}"
    before = {path: path.read_bytes() for path in evaluation.rglob("*") if path.is_file()}
    for message, *args in (
        ("give checkpoints with --ckpt and clips with --data", out),
        ("--ckpt: no file or folder nothing.ckpt", "--ckpt=nothing.ckpt", clips, out),
        ("words.json is no readable file of torch weights", f"--ckpt={tmp_path / 'words.json'}", clips, out),
        (f"tokens of kmeans with digest {other}, the", ckpt, f"--data={tmp_path / 'other' / 'set'}", out),
        ("--data: no folder nowhere", ckpt, "--data=nowhere", out),
        ("empty is empty", ckpt, f"--data={tmp_path / 'empty'}", out),
        ("an evaluation needs recordings to compare with", ckpt, f"--data={tmp_path / 'tokens'}", out),
        ("has no tokens beside it: give --tokenizer", ckpt, f"--data={tmp_path / 'bare'}", out),
        ("--data has no clip that can be used", ckpt, f"--data={tmp_path / 'silent'}", out, tokens),
        ("layout 'wide': expected backward_only", ckpt, clips, out, "--layout=wide"),
        ("--clips is 0", ckpt, clips, out, "--clips=0"),
        ("--nfe is 0", ckpt, clips, out, "--nfe=0"),
        ("decode.lookahead is -1", ckpt, clips, out, "--lookahead=-1"),
        ("decode.guidance is -0.5", ckpt, clips, out, "--guidance=-0.5"),
        ("no embedding_model.ckpt in", ckpt, clips, out, f"--similarity={tmp_path}"),
        ("another evaluation: its clips is 3, this command has 2", ckpt, clips, f"--out={evaluation}", "--clips=2"),
        ("holds something other than an evaluation", ckpt, clips, f"--out={tmp_path}"),
        ("leave --ckpt, --nfe out", ckpt, there, "--nfe=3", "--ratings=a.json"),
        ("--clips, --keep, --device, --wandb out",
         there, "--clips=8", "--keep=1", "--device=cuda", "--wandb=false", "--ratings=a.json"),
        (f"test 000000000000, the one in --out is {test}", there, f"--ratings={tmp_path / 'ratings.json'}"),
        ("was not saved by a listening page", there, f"--ratings={tmp_path / 'words.json'}"),
        ("--ratings: no file none.json", there, "--ratings=none.json"),
        ("has no listening test", out, f"--ratings={tmp_path / 'ratings.json'}"),
    ):  # fmt: skip
        assert message in error_line(capsys, command.main, *args), args
    assert {path: path.read_bytes() for path in evaluation.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()
