"""`sf-decode`: tokens to sound with a trained checkpoint, streaming."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sf_lightning.audio.wave import open_wave, to_pcm
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.inputs import embed, embed_speaker, find_clip, load_tokens, read_stdin
from sf_lightning.cli.options import require_device, require_positive
from sf_lightning.cli.parser import command_parser
from sf_lightning.data.shards import ShardSet
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import latency_summary, measure_latency
from sf_lightning.streaming.loading import load_pretrained, make_decoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.streaming.stream import Stream
from sf_lightning.vocoder.config import VocoderConfig


def decode(
    ckpt: str,
    tokens: str | None = None,
    out: str | None = None,
    clip: str | None = None,
    stdin: bool = False,
    stdin_format: Literal["lines", "int16"] = "lines",
    stdout: bool = False,
    latency: bool = False,
    token_rate: float | None = None,
    speaker: str | None = None,
    x_vector: str | None = None,
    mode: Literal["cached", "windowed", "offline"] | None = None,
    steps: int | None = None,
    method: Literal["euler", "midpoint", "rk4"] | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    first_chunk: int | None = None,
    lookahead: int | None = None,
    exact_vocoder: bool | None = None,
    seed: int | None = None,
    vocoder: str | None = None,
    device: str = "cpu",
    bf16: bool = False,
) -> None:
    """Decodes tokens to a wave as they would be decoded live; what is not given is as in training.

    Args:
        ckpt: Checkpoint of `sf-fit`, of which the averaged weights are used; folder of `sf-export`; or
            OWNER/NAME[@REVISION] of the Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache).
        tokens: File of tokens, a `.npy` of whole numbers [L]; or the folder of a shard set.
        out: Wave to write, 16-bit, `.wav` or `.flac`, at the vocoder's rate.
        clip: Key of the clip of the shard set; by default its first. It is spoken in its own speaker's voice.
        stdin: Read tokens from standard input as they come.
        stdin_format: "lines": whole numbers, a token or more to a line; "int16": raw, little-endian.
        stdout: Write the sound to standard output as it is made: raw 16-bit PCM, little-endian, mono.
        latency: Print when the first packet leaves and what a second of sound costs; of a pipe when it has ended.
        token_rate: Tokens a second that the language model makes, for the account of latency; by default as
            many as are spoken.
        speaker: Whose voice: audio of the speaker, or an embedding saved as `.npy`; by default nobody's.
        x_vector: The speaker's x-vector, a `.npy`, beside the audio of a speaker, where the model takes them.
        mode: How the past is taken into account, or "offline", everything at once; see `DecodeConfig`.
        steps: Solver steps.
        method: Solver.
        guidance: Strength of guidance.
        temperature: Scale of the noise at the start.
        chunk: Blocks of a chunk.
        first_chunk: Blocks of the first chunk.
        lookahead: Blocks waited for beyond a chunk.
        exact_vocoder: Whether the vocoder waits for final mel.
        seed: Of the noise.
        vocoder: Vocoder; by default the one of training. "griffin_lim", the name of a shipped one ("small"), a
            checkpoint of a vocoder, its exported folder, the folder of Qwen2.5-Omni, or OWNER/NAME[@REVISION] of
            the Hugging Face hub.
        device: Where to decode, such as "cpu" or "cuda".
        bf16: Keep the network's weights in bfloat16: half the memory, and faster where the machine multiplies it.
    """
    _require_sense(**locals())
    require_device(device)
    require_positive(steps=steps, chunk=chunk, first_chunk=first_chunk)
    codes = Path(tokens) if tokens is not None else None
    given = {
        name: value
        for name, value in locals().items()
        if value is not None and name in {field.name for field in fields(DecodeConfig)}
    }
    try:
        trained = load_pretrained(ckpt)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"--ckpt: {error}") from error
    model = trained.model.to(device)
    if bf16:
        model.dit.to(torch.bfloat16)
    decoder = make_decoder(trained, VocoderConfig(checkpoint=vocoder) if vocoder is not None else None, **given)
    who = embed_speaker(model, Path(speaker), x_vector) if speaker is not None else None
    if codes is None:
        pushes = read_stdin(stdin_format)
    elif codes.suffix == ".npy":
        pushes = iter([load_tokens(codes)])
    else:
        drawn = find_clip(ShardSet(codes), clip, trained)
        pushes = iter([torch.from_numpy(drawn.clip.tokens)])
        if who is None:
            who = embed(model, drawn.reference, torch.from_numpy(drawn.clip.x_vector))
    heard: list[Tensor] = []
    if out is not None or stdout:
        _play(decoder, who, _noted(pushes, heard) if latency else pushes, out, stdout)
    if latency:
        heard.extend(pushes if out is None and not stdout else ())
        spoken = torch.cat(heard)
        # Once for nothing: the first call of all is slower than any other.
        measure_latency(decoder, spoken[: 4 * decoder.tokens_per_block], who)
        print(latency_summary(measure_latency(decoder, spoken, who, token_rate)), file=sys.stderr)


def _require_sense(
    ckpt: str,
    tokens: str | None,
    out: str | None,
    clip: str | None,
    stdin: bool,
    stdin_format: str,
    stdout: bool,
    latency: bool,
    token_rate: float | None,
    speaker: str | None,
    x_vector: str | None,
    **_: object,
) -> None:
    """Checks before anything is loaded that the options of `decode` go together and their files are there.

    Raises:
        ValueError, FileNotFoundError: if not.
    """
    if (tokens is None) == (not stdin):
        raise ValueError("give either --tokens or --stdin")
    if out is None and not stdout and not latency:
        raise ValueError("give --out, --stdout or --latency, or nothing would come of it")
    file = Path(tokens) if tokens is not None and Path(tokens).suffix == ".npy" else None
    for name, is_given, wanted, has in (
        ("token_rate", token_rate is not None, "--latency", latency),
        ("clip", clip is not None, "--tokens with the folder of a shard set", not stdin and file is None),
        ("stdin_format", stdin_format != "lines", "--stdin", stdin),
    ):
        if is_given and not has:
            raise ValueError(f"--{name} says something only beside {wanted}: give that too, or leave it out")
    for what, path in (("speaker", speaker), ("x_vector", x_vector)):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{what}: no file {path}")
    if x_vector is not None and speaker is None:
        raise ValueError("--x_vector goes beside the audio of a --speaker: give that too")
    if out is not None and Path(out).suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"--out {out}: wanted a name that ends in .wav or .flac")
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"--tokens: no file {tokens}")
    if tokens is not None and file is None and Path(tokens).is_file():
        raise ValueError(
            f"--tokens: {tokens} is a file: wanted a .npy of whole numbers, or the folder of a shard set"
        )


def _play(
    decoder: StreamingDecoder, who: Tensor | None, pushes: Iterator[Tensor], out: str | None, stdout: bool
) -> None:
    """Decodes tokens as they come, and writes the sound to where it is wanted."""
    rate, count = decoder.vocoder.sample_rate, 0
    with ExitStack() as stack:
        file_out = None
        for wave in _live(decoder.open(who), pushes):
            # Not before there is sound: a mistake in the tokens leaves no file.
            if len(wave) and out is not None and file_out is None:
                file_out = stack.enter_context(open_wave(Path(out), rate))
            sound = to_pcm(wave.cpu().numpy())
            count += len(sound)
            if file_out is not None:
                file_out.write(sound)
            if stdout:
                sys.stdout.buffer.write(sound.astype("<i2").tobytes())
                sys.stdout.buffer.flush()
    if not count:
        raise ValueError("no sound: no token came")
    print(f"{out or 'stdout'}: {count / rate:.2f} s of sound at {rate} Hz", file=sys.stderr)


def _live(stream: Stream, pushes: Iterator[Tensor]) -> Iterator[Tensor]:
    for push in pushes:
        yield stream.push(push)
    yield stream.flush()


def _noted(pushes: Iterator[Tensor], heard: list[Tensor]) -> Iterator[Tensor]:
    """Passes tokens on, and notes them."""
    for push in pushes:
        heard.append(push)
        yield push


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command_parser("sf-decode", decode, flags=("stdin", "stdout", "latency", "bf16"))
    try:
        decode(**vars(parser.parse_args(args)))
    except BrokenPipeError:
        _forget_stdout()
    except KeyboardInterrupt:
        _forget_stdout()
        raise


def _forget_stdout() -> None:
    """Lets go of whoever listened: Python would write what is left to them at exit, and wait or complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
