"""`sf-decode` in a pipe: audio while it is decoded, a clean end whichever side closes first, and option errors."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sf_lightning.cli import decode
from sf_lightning.data.shards import ShardSet
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder


@pytest.fixture(scope="module")
def checkpoint(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the checkpoint of a decoder after two steps."""
    folder = tmp_path_factory.mktemp("decoder")
    fit_decoder(folder, decoder_module(), decoder_data(shards), 2)
    return folder / "last.ckpt"


def command(checkpoint: Path, *more: str) -> list[str]:
    """Returns the command line of `sf-decode` as a process."""
    return [sys.executable, "-m", "sf_lightning.cli.decode", f"--ckpt={checkpoint}", *more]


@pytest.mark.parametrize("kind", ["int16", pytest.param("lines", marks=pytest.mark.slow)])
def test_a_pipe_outputs_the_audio_of_the_file(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 50, 33)
    np.save(tmp_path / "tokens.npy", tokens)
    decode.main([f"--ckpt={checkpoint}", f"--tokens={tmp_path}/tokens.npy", f"--out={tmp_path}/file.wav"])
    given = "\n".join(map(str, tokens)).encode() if kind == "lines" else tokens.astype("<i2").tobytes()
    arguments = command(checkpoint, "--stdin", "--stdout", f"--stdin_format={kind}", f"--out={tmp_path}/pipe.wav")
    done = subprocess.run(arguments, input=given, capture_output=True, check=True)
    samples = np.frombuffer(done.stdout, "<i2")
    assert len(samples) == 33 * 640 and np.abs(samples).max() > 100
    for name in ("file.wav", "pipe.wav"):
        saved, rate = soundfile.read(tmp_path / name, dtype="int16")
        assert rate == 16000 and np.abs(saved.astype(int) - samples).max() <= 2
    assert b"stdout" not in done.stderr and b"1.32 s of audio at 16000 Hz" in done.stderr


def test_audio_is_written_before_the_tokens_end(checkpoint: Path) -> None:
    with subprocess.Popen(
        command(checkpoint, "--stdin", "--stdout"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"1 2 3 4 5 6\n7 8 9 10 11 12\n")  # a block, and the one that it looks ahead to
        process.stdin.flush()
        assert len(process.stdout.read(2 * 24 * 160)) == 2 * 24 * 160
        process.stdin.close()
        assert len(process.stdout.read()) == 2 * 24 * 160
        assert process.wait() == 0


def test_a_closed_pipe_and_ctrl_c_end_sf_decode_without_a_traceback(checkpoint: Path) -> None:
    arguments = command(checkpoint, "--stdin", "--stdout")
    for ending in ("closed pipe", "ctrl-c", "unread output"):
        with subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin and process.stdout and process.stderr
            # Thirty seconds of audio exceed the buffer of a pipe.
            process.stdin.write(b"1 2 3 4 5 6 7 8 9 10 11 12\n" * (60 if ending == "unread output" else 1))
            process.stdin.flush()
            process.stdout.read(100)
            if ending == "closed pipe":
                process.stdout.close()
                process.stdin.write(b"1 2 3 4 5 6 7 8 9 10 11 12\n")
                process.stdin.close()
            else:
                time.sleep(0.5)  # it is then blocked, on more tokens or on its output
                process.send_signal(signal.SIGINT)
            messages = process.stderr.read().decode()
            assert process.wait() == (0 if ending == "closed pipe" else 130)
            assert "Traceback" not in messages and "Exception" not in messages and "error" not in messages


def test_a_clip_of_a_shard_set_is_decoded_with_its_own_speaker(
    checkpoint: Path, shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    row = shards.read_index(2)[1]
    args = [f"--ckpt={checkpoint}", f"--tokens={shards.folder}", f"--clip={row.key}", f"--out={tmp_path}/a.wav"]
    decode.main([*args, "--latency", "--token_rate=100"])
    assert soundfile.info(tmp_path / "a.wav").frames == row.tokens * 640
    report = capsys.readouterr().err
    assert "first packet" in report and "= 120 waiting for tokens" in report  # 480 ms at four times the token rate


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tokens=a.npy", "--stdin", "--stdout"], "give either --tokens or --stdin"),
        (["--stdin"], "no output: give --out, --stdout or --latency"),
        (["--stdin", "--stdout", "--token_rate=25"], "--token_rate requires --latency"),
        (["--tokens=a.npy", "--out=a.wav", "--clip=a"], "--clip requires --tokens SHARD_SET"),
        (["--tokens=a.npy", "--out=a.wav", "--stdin_format=int16"], "--stdin_format requires --stdin"),
        (["--stdin", "--stdout", "--seed=-1"], "decode.seed is -1: expected an integer from 0"),
        (["--tokens=a.npy", "--latency"], "--tokens: no file a.npy"),
    ],
)
def test_incompatible_options_are_refused_in_one_line(
    checkpoint: Path, capsys: pytest.CaptureFixture, args: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        decode.main([f"--ckpt={checkpoint}", *args])
    out = capsys.readouterr().err
    assert stop.value.code == 2 and out.count("\n") == 1 and message in out


def test_words_on_standard_input_are_refused_in_one_line(checkpoint: Path) -> None:
    done = subprocess.run(command(checkpoint, "--stdin", "--stdout"), input=b"1 2\nhello\n", capture_output=True)
    message = "error: --stdin is 'hello': expected integers, or --stdin_format=int16"
    assert done.returncode == 2
    assert done.stderr.decode().strip().splitlines()[-1] == message
