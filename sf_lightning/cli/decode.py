"""`sf-decode`: tokens to sound with a trained checkpoint, streaming."""

import sys
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from torch import Tensor

from sf_lightning.audio.wave import write_wave
from sf_lightning.cli.errors import one_line, one_line_errors
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.vocoder.config import VocoderConfig


def decode(
    ckpt: str,
    tokens: str,
    out: str,
    speaker: str | None = None,
    x_vector: str | None = None,
    offline: bool = False,
    steps: int | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    chunk: int | None = None,
    lookahead: int | None = None,
    seed: int | None = None,
    vocoder: str | None = None,
    device: str = "cpu",
) -> None:
    """Decodes tokens to a wave as they would be decoded live; what is not given is as in training.

    Args:
        ckpt: Checkpoint of `sf-fit`; its averaged weights are used.
        tokens: File of tokens, a `.npy` of whole numbers [L].
        out: Wave to write, 16-bit, `.wav` or `.flac`, at the vocoder's rate.
        speaker: Whose voice: audio of the speaker, or an embedding saved as `.npy`; by default nobody's.
        x_vector: The speaker's x-vector, a `.npy`, beside the audio of a speaker, where the model takes them.
        offline: Decode the whole utterance at once instead of streaming.
        steps: Solver steps.
        guidance: Strength of guidance.
        temperature: Scale of the noise at the start.
        chunk: Blocks of a chunk.
        lookahead: Blocks waited for beyond a chunk.
        seed: Of the noise.
        vocoder: BigVGAN checkpoint, or folder of Qwen2.5-Omni, to use instead of the vocoder of training.
        device: Where to decode, such as "cpu" or "cuda".
    """
    for what, path in (("ckpt", ckpt), ("tokens", tokens), ("speaker", speaker), ("x_vector", x_vector)):
        if path is not None and not Path(path).is_file():
            raise FileNotFoundError(f"--{what}: no file {path}")
    if Path(out).suffix.lower() not in (".wav", ".flac"):
        raise ValueError(f"--out {out}: wanted a name that ends in .wav or .flac")
    codes = _load_tokens(Path(tokens))
    try:
        module = StreamFlowModule.load_from_checkpoint(ckpt, map_location=device).use_average()
    except (UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"--ckpt: {ckpt} is no checkpoint of sf-fit ({one_line(error)[:80]})") from error
    if vocoder is not None:
        module.vocoder = VocoderConfig(checkpoint=vocoder)
    given: dict[str, Any] = {
        "steps": steps,
        "guidance": guidance,
        "temperature": temperature,
        "chunk": chunk,
        "lookahead": lookahead,
        "seed": seed,
    }
    config = replace(module.decode, **{name: value for name, value in given.items() if value is not None})
    decoder = module.decoder(decode=config)
    who = _speaker(module, Path(speaker), x_vector) if speaker is not None else None
    if offline:
        wave = decoder.offline([codes], [who])[0].wave
    else:
        stream = decoder.open(who)
        wave = torch.cat([stream.push(codes), stream.flush()])
    write_wave(Path(out), wave.cpu().numpy(), decoder.vocoder.sample_rate)
    print(f"{out}: {len(wave) / decoder.vocoder.sample_rate:.2f} s of sound from {len(codes)} tokens")


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no .npy array ({error})") from error


def _load_tokens(path: Path) -> Tensor:
    array = _load_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"--tokens: {path} holds {array.dtype}: wanted whole numbers [L]")
    return torch.from_numpy(array.astype(np.int64))


@torch.inference_mode()
def _speaker(module: StreamFlowModule, path: Path, x_vector: str | None) -> Tensor:
    """Returns the embedding [S] in a `.npy`, or that of the first seconds of an audio file and an x-vector."""
    if path.suffix == ".npy":
        if x_vector is not None:
            raise ValueError(f"--speaker {path} is a whole embedding: leave --x_vector out")
        return torch.from_numpy(_load_array(path)).float()
    mel = module.model.mel.config
    try:
        wave = read_speech(path.read_bytes(), mel)
    except BadSample as error:
        raise ValueError(f"--speaker: {path} is no voice to speak in: {error}") from error
    # Crops have one length, always: a shorter one is repeated, as in training.
    crop = np.resize(wave, module.model.speaker.crop_samples(mel.sample_rate))
    stored = None if x_vector is None else torch.from_numpy(_load_array(Path(x_vector))).to(module.device)[None]
    return module.model.encode_speaker(torch.from_numpy(crop)[None].to(module.device), stored)[0]


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    auto_cli(decode, args=sys.argv[1:] if args is None else args, as_positional=False, exit_on_error=False)


if __name__ == "__main__":
    main()
