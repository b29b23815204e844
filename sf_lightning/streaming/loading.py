"""One way to load a trained decoder: from a checkpoint of `sf-fit`, an exported folder, or the Hugging Face hub.

Independent of Lightning.
"""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from sf_lightning.files.hub import local_path
from sf_lightning.files.identify import DECODERS, Kind, require_kind
from sf_lightning.files.records import from_plain, shown
from sf_lightning.model.checkpoint import read_checkpoint
from sf_lightning.model.pretrained import Description, ModelConfig, Pretrained, TokenizerName, load_export
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig


def load_decoder(
    name: str | Path,
    *,
    vocoder: str | VocoderConfig | None = None,
    device: str = "cpu",
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **decode_options: Any,
) -> StreamingDecoder:
    """Returns a decoder that is ready to stream, with the settings that it was validated with.

    Args:
        name: A checkpoint of `sf-fit`, of which the averaged weights are loaded; a folder that `sf-export` wrote;
            or the id of a repository of the Hugging Face hub that holds one, `OWNER/NAME` or
            `OWNER/NAME@REVISION`.
        vocoder: The vocoder: "griffin_lim", or another value of `VocoderConfig.checkpoint`; None for the one of
            training.
        device: Device of the network and the vocoder, such as "cuda".
        revision: Branch, tag or commit of the repository, unless the id names one.
        token: Access token of the hub; by default that of `hf auth login` or of HF_TOKEN.
        cache_dir: Folder of downloaded repositories; by default that under HF_HOME.
        **decode_options: Fields of `DecodeConfig` to change, such as `steps=8` or `lookahead=4`.

    Raises:
        FileNotFoundError: if decoder or vocoder do not exist, or a file in one is missing.
        ValueError: if it is not a decoder, damaged or of a newer format, if an option is unknown or out of range,
            or if the vocoder was made for another mel.

    >>> stream = load_decoder("tests/model/exports/format-1").open()  # or a checkpoint of sf-fit, or a hub id
    >>> import torch
    >>> waves = [stream.push(torch.tensor([3, 1, 4])), stream.push(torch.tensor([1, 5])), stream.flush()]
    >>> torch.cat(waves).shape  # 5 tokens of 40 ms at 16 kHz
    torch.Size([3200])
    """
    trained = load_pretrained(name, revision=revision, token=token, cache_dir=cache_dir)
    trained.model.to(device)
    return make_decoder(trained, VocoderConfig(vocoder) if isinstance(vocoder, str) else vocoder, **decode_options)


def make_decoder(
    trained: Pretrained, vocoder: VocoderConfig | None = None, **decode_options: Any
) -> StreamingDecoder:
    """Returns a decoder of a trained model, on the model's device; arguments and errors as in `load_decoder`."""
    description = trained.description
    settings = from_plain(DecodeConfig, description.decode, "decode")
    known = {field.name for field in fields(DecodeConfig)}
    if unknown := sorted(decode_options.keys() - known):
        raise ValueError(f"decode option {unknown[0]} is unknown: expected one of {', '.join(sorted(known))}")
    vocoder = vocoder or from_plain(VocoderConfig, description.vocoder, "vocoder")
    mel_to_wave = vocoder.make(trained.model.mel.config)
    if isinstance(mel_to_wave, nn.Module):
        mel_to_wave = mel_to_wave.to(trained.model.dit.from_mel.weight.device)
    return StreamingDecoder(trained.model, mel_to_wave, replace(settings, **decode_options))


def load_pretrained(name: str | Path, average: bool = True, **hub_options: Any) -> Pretrained:
    """Returns a trained model with its description, on the CPU; `name` and errors are those of `load_decoder`.

    Args:
        name: As in `load_decoder`.
        average: Whether to load the averaged or the raw weights of a checkpoint; an exported folder has only one.
        **hub_options: `revision`, `token` and `cache_dir` of `local_path`.
    """
    path = local_path(name, **hub_options)
    if require_kind(path, *DECODERS) is Kind.DECODER_EXPORT:
        return load_export(path)
    return _load_checkpoint(path, average)


def _load_checkpoint(path: Path, average: bool) -> Pretrained:
    weights, options, digest, origin = read_checkpoint(path, average)
    try:
        if missing := {"tokenizer", "decode", "vocoder"} - options.keys():
            raise ValueError(f"its hyperparameters have no {min(missing)}")
        if not isinstance(options["tokenizer"], str):
            raise ValueError(f"its tokenizer is {shown(options['tokenizer'])}: expected a name")
        names = {field.name for field in fields(ModelConfig)} & options.keys()
        description = Description(
            model=from_plain(ModelConfig, {name: options[name] for name in names}, "model"),
            tokenizer=TokenizerName(options["tokenizer"], digest),
            weights=origin,
            # Every default is resolved, because a later version may change it.
            decode=asdict(from_plain(DecodeConfig, options["decode"], "decode")),
            vocoder=asdict(from_plain(VocoderConfig, options["vocoder"], "vocoder")),
        )
        return Pretrained(description.model.build(weights), description)
    except (ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{path}: {error}") from error
