"""Trains, sweeps and evaluates StreamFlow decoders the way they are used: streaming.

A decoder turns semantic speech tokens into audio while they arrive. The steps, with the package of each::

    tokens 25 Hz ──► frames 100 Hz ──► velocity ──► mel [T, 80] ──► wave 16 kHz
       tokens/          model/           flow/      streaming/       vocoder/

Install, train on your own speech, and decode::

    pip install sf_lightning-*.whl
    sf-shards build --audio speech/train --out shards/train
    sf-shards build --audio speech/dev --out shards/dev
    sf-fit --config demo --data.train=shards/train --data.val=shards/dev
    sf-decode --ckpt runs/fit/checkpoints/last.ckpt --tokens tokens.npy --speaker voice.wav --out out.wav

Stream in Python, without Lightning's Trainer::

    from sf_lightning import load_decoder

    stream = load_decoder("runs/fit/checkpoints/last.ckpt").open()
    for tokens in pushes:            # int64 [L] each, any L
        wave = stream.push(tokens)   # float32 [N], what has become final
    wave = stream.flush()

Public names, each with an example in its docstring; they are imported on first use:

    load_decoder                    decoder from a checkpoint, an exported folder or a hub id
    StreamingDecoder, DecodeConfig  many streams of one model; how they are decoded
    StreamFlow, DiTConfig, Layout   network, its sizes, its attention spans
    StreamFlowModule                LightningModule that trains a decoder
    VocoderModule                   LightningModule that trains a vocoder
    ShardDataModule                 shards of a training run
    MelConfig, MelSpectrogram       the mel spectrogram
    PESQWB, STOI, ViSQOL            torchmetrics of speech quality

Packages, each of which imports only packages above it in this list; training and cli alone import Lightning:

    files/      atomic writes, digests, records, the kind of a file or folder
    audio/      waves and mel spectrograms
    tokens/     tokenizers
    model/      layouts, and the diffusion transformer on a list of blocks
    flow/       conditional flow matching: path, loss, guidance, solver, noise
    vocoder/    mel to wave
    streaming/  a stream of tokens to a stream of audio, chunk by chunk
    data/       WebDataset shards, lanes and packs
    metrics/    PESQ-WB, STOI, ViSQOL, mel distance, edge roughness, jumps
    evaluation/ decoders side by side: tables, report page, listening test
    training/   LightningModules, data module, callbacks
    sweeps/     many training runs of one sweep file, by workers that share a folder
    cli/        sf-fit, sf-shards, sf-decode, sf-eval, sf-export, sf-sweep

Letters in shapes: B utterances (or clips), U utterances of a list of blocks, M blocks, W frames of a block,
L tokens, K tokens of a block, T frames, F mel bands, N samples, D width, H heads, S speaker width.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sf_lightning.audio.mel import MelConfig, MelSpectrogram
    from sf_lightning.metrics.perceptual import PESQWB, STOI, ViSQOL
    from sf_lightning.model.dit import DiTConfig
    from sf_lightning.model.layout import Layout
    from sf_lightning.model.streamflow import StreamFlow
    from sf_lightning.streaming.decoder import StreamingDecoder
    from sf_lightning.streaming.loading import load_decoder
    from sf_lightning.streaming.state import DecodeConfig
    from sf_lightning.training.datamodule import ShardDataModule
    from sf_lightning.training.module import StreamFlowModule
    from sf_lightning.training.vocoder_module import VocoderModule

__version__ = "0.1.0"

_MODULES = {
    "DecodeConfig": "streaming.state",
    "DiTConfig": "model.dit",
    "Layout": "model.layout",
    "MelConfig": "audio.mel",
    "MelSpectrogram": "audio.mel",
    "PESQWB": "metrics.perceptual",
    "STOI": "metrics.perceptual",
    "ShardDataModule": "training.datamodule",
    "StreamFlow": "model.streamflow",
    "StreamFlowModule": "training.module",
    "StreamingDecoder": "streaming.decoder",
    "ViSQOL": "metrics.perceptual",
    "VocoderModule": "training.vocoder_module",
    "load_decoder": "streaming.loading",
}
"""Module of each public name, imported on first use."""

__all__ = [
    "PESQWB",
    "STOI",
    "DecodeConfig",
    "DiTConfig",
    "Layout",
    "MelConfig",
    "MelSpectrogram",
    "ShardDataModule",
    "StreamFlow",
    "StreamFlowModule",
    "StreamingDecoder",
    "ViSQOL",
    "VocoderModule",
    "load_decoder",
]


def __getattr__(name: str) -> Any:
    """Imports a public name (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Lists the public names and the attributes of the module."""
    return sorted({*globals(), *__all__})
