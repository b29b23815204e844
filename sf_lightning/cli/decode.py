"""`sf-decode`: tokens to audio with a trained decoder, streaming."""

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
    """Decodes tokens to audio as a live stream would be decoded; settings default to those of training.

    Args:
        ckpt: Checkpoint of `sf-fit`, whose averaged weights are used; a directory written by `sf-export`; or
            OWNER/NAME[@REVISION] of the Hugging Face hub (HF_TOKEN and HF_HOME set access token and cache).
        tokens: Tokens to decode: a `.npy` file of integers [L], or the directory of a shard set.
        out: Audio file to write, 16-bit `.wav` or `.flac`, at the vocoder's sample rate.
        clip: Key of the clip in the shard set; by default the first clip. Its own speaker is used unless
            `--speaker` is given.
        stdin: Read tokens from standard input as they arrive.
        stdin_format: Format of standard input: "lines", integers in text, any number on a line; or "int16", raw,
            little-endian.
        stdout: Write audio to standard output while it is decoded: raw 16-bit PCM, little-endian, mono.
        latency: Print first-packet latency and real-time factor; with `--stdin` after the end of the input.
        token_rate: Tokens per second that the language model produces, for `--latency`; by default the
            real-time rate.
        speaker: Speaker of the output: an audio file, or an embedding in a `.npy` file; by default no speaker (null
            embedding).
        x_vector: Speaker's x-vector, a `.npy` file, in addition to an audio file; only for models that use
            x-vectors.
        mode: "cached" reuses keys and values of past blocks, "windowed" computes a window of them again, "offline"
            decodes all tokens at once.
        steps: Solver steps from noise to mel.
        method: Solver: "euler", "midpoint" or "rk4", of 1, 2 or 4 network evaluations per step.
        guidance: Strength of classifier-free guidance; 0 turns it off and halves the cost.
        temperature: Scale of the initial noise; below 1 gives less varied speech.
        chunk: Blocks decoded and emitted together; a block is 0.24 s in the layouts that come with the package.
        first_chunk: Blocks in the first chunk; a small one lowers the first-packet latency.
        lookahead: Blocks of look-ahead beyond a chunk.
        exact_vocoder: Whether the vocoder delays audio until the mel of its right context is final.
        seed: Random seed of the initial noise.
        vocoder: Vocoder; by default the one of training. "griffin_lim", the name of a shipped one ("small"), a
            checkpoint of a vocoder, its exported directory, the directory of Qwen2.5-Omni, or OWNER/NAME[@REVISION]
            of the Hugging Face hub.
        device: Device to decode on, such as "cpu" or "cuda".
        bf16: Cast the network's weights to bfloat16: half the memory, and faster on hardware with bf16 arithmetic.
    """
    _check_options(**locals())
    require_device(device)
    require_positive(steps=steps, chunk=chunk, first_chunk=first_chunk)
    token_path = Path(tokens) if tokens is not None else None
    settings = {
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
    decoder = make_decoder(trained, VocoderConfig(checkpoint=vocoder) if vocoder is not None else None, **settings)
    embedding = embed_speaker(model, Path(speaker), x_vector) if speaker is not None else None
    if token_path is None:
        pieces = read_stdin(stdin_format)
    elif token_path.suffix == ".npy":
        pieces = iter([load_tokens(token_path)])
    else:
        drawn = find_clip(ShardSet(token_path), clip, trained)
        pieces = iter([torch.from_numpy(drawn.clip.tokens)])
        if embedding is None:
            embedding = embed(model, drawn.reference, torch.from_numpy(drawn.clip.x_vector))
    decoded: list[Tensor] = []
    if out is not None or stdout:
        _write_audio(decoder, embedding, _recorded(pieces, decoded) if latency else pieces, out, stdout)
    if latency:
        decoded.extend(pieces if out is None and not stdout else ())
        all_tokens = torch.cat(decoded)
        # Warm-up: the first call in a process is slower than any other.
        measure_latency(decoder, all_tokens[: 4 * decoder.tokens_per_block], embedding)
        print(latency_summary(measure_latency(decoder, all_tokens, embedding, token_rate)), file=sys.stderr)


def _check_options(
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
    """Checks, before anything is loaded, that the options of `decode` are compatible and their files exist."""
    if (tokens is None) == (not stdin):
        raise ValueError("give either --tokens or --stdin")
    if out is None and not stdout and not latency:
        raise ValueError("no output: give --out, --stdout or --latency")
    file = Path(tokens) if tokens is not None and Path(tokens).suffix == ".npy" else None
    for name, is_given, required, is_met in (
        ("token_rate", token_rate is not None, "--latency", latency),
        ("clip", clip is not None, "--tokens SHARD_SET", not stdin and file is None),
        ("stdin_format", stdin_format != "lines", "--stdin", stdin),
        ("x_vector", x_vector is not None, "--speaker AUDIO_FILE", speaker is not None),
    ):
        if is_given and not is_met:
            raise ValueError(f"--{name} requires {required}")
    if out is not None and Path(out).suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"--out is {out}: expected a name that ends in .wav or .flac")
    for name, path in (("tokens", file), ("speaker", speaker), ("x_vector", x_vector)):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{name}: no file {path}")
    if tokens is not None and file is None and Path(tokens).is_file():
        raise ValueError(
            f"--tokens: {tokens} is a file: expected a .npy of integers, or the directory of a shard set"
        )


def _write_audio(
    decoder: StreamingDecoder, speaker: Tensor | None, pieces: Iterator[Tensor], out: str | None, stdout: bool
) -> None:
    """Decodes pieces of tokens as they arrive and writes the audio to `out` and to standard output."""
    rate, count = decoder.vocoder.sample_rate, 0
    with ExitStack() as stack:
        file = None
        for wave in _decode_stream(decoder.open(speaker), pieces):
            # The file is opened only when there is audio, so that invalid tokens leave no file behind.
            if len(wave) and out is not None and file is None:
                file = stack.enter_context(open_wave(Path(out), rate))
            samples = to_pcm(wave.cpu().numpy())
            count += len(samples)
            if file is not None:
                file.write(samples)
            if stdout:
                sys.stdout.buffer.write(samples.astype("<i2").tobytes())
                sys.stdout.buffer.flush()
    if not count:
        raise ValueError("no tokens received: expected at least one")
    print(f"{out or 'stdout'}: {count / rate:.2f} s of audio at {rate} Hz", file=sys.stderr)


def _decode_stream(stream: Stream, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    for piece in pieces:
        yield stream.push(piece)
    yield stream.flush()


def _recorded(pieces: Iterator[Tensor], decoded: list[Tensor]) -> Iterator[Tensor]:
    """Yields tokens and appends them to `decoded`."""
    for piece in pieces:
        decoded.append(piece)
        yield piece


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command_parser("sf-decode", decode, flags=("stdin", "stdout", "latency", "bf16"))
    try:
        decode(**vars(parser.parse_args(args)))
    except BrokenPipeError:
        _discard_stdout()
    except KeyboardInterrupt:
        _discard_stdout()
        raise


def _discard_stdout() -> None:
    """Redirects standard output to nowhere: at exit Python would write the rest, and block or print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
