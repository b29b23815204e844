"""What a path holds, told from file names and headers: no code of a file runs, and no weights are read."""

from enum import Enum
from pathlib import Path

from sf_lightning.files.torch_files import read_torch

EXPORT_WEIGHTS, EXPORT_CONFIG = "model.safetensors", "config.yaml"
"""Files of a decoder's folder that `sf-export` writes."""

VOCODER_WEIGHTS, VOCODER_CONFIG = "bigvgan_generator.safetensors", "config.json"
"""Files of a vocoder's folder that `sf-export` writes."""

BIGVGAN_WEIGHTS = "bigvgan_generator.pt"
"""Weights in a folder of the `bigvgan` package, beside `VOCODER_CONFIG`."""

ECAPA_WEIGHTS = "embedding_model.ckpt"
"""Weights of SpeechBrain's ECAPA-TDNN, in its folder."""

SHARDED_META = "meta.pt"
"""The part of a checkpoint that is not sharded, in the folder of a checkpoint whose weights are."""


QWEN_MARKS = ("code2wav", "transformer_blocks.", "conv_pre.")
"""Parts of the names of weights of Qwen2.5-Omni's token2wav: with its prefixes, of its DiT or its BigVGAN alone."""


class Kind(Enum):
    """What a path may hold; the value completes the sentence "PATH is ..."."""

    DECODER_CHECKPOINT = "a decoder checkpoint of sf-fit"
    DECODER_EXPORT = "the folder of an exported decoder"
    VOCODER_CHECKPOINT = "a vocoder checkpoint of sf-fit"
    BIGVGAN = "a BigVGAN (an exported vocoder, or weights of the bigvgan package with their config.json)"
    QWEN = "weights in the form of Qwen2.5-Omni's (its folder, a .safetensors file or a state dict)"
    RUN = "the folder of a training run, whose checkpoints are in checkpoints/"
    SHARD_SET = "a shard set"
    UNKNOWN = "nothing that sf-lightning can load"
    MISSING = "missing"


DECODERS = (Kind.DECODER_CHECKPOINT, Kind.DECODER_EXPORT)
VOCODERS = (Kind.VOCODER_CHECKPOINT, Kind.BIGVGAN, Kind.QWEN)


def identify(path: Path) -> Kind:
    """Returns the kind of a file or folder.

    >>> identify(Path("no/such/file.ckpt"))
    <Kind.MISSING: 'missing'>
    """
    if path.is_dir():
        return _identify_folder(path)
    if not path.exists():
        return Kind.MISSING
    if path.suffix == ".safetensors":
        return Kind.BIGVGAN if path.name == VOCODER_WEIGHTS else Kind.QWEN
    try:
        content = read_torch(path)
    except ValueError:
        return Kind.UNKNOWN
    if isinstance(content.get("hyper_parameters"), dict):
        is_vocoder = "generator" in content["hyper_parameters"]
        return Kind.VOCODER_CHECKPOINT if is_vocoder else Kind.DECODER_CHECKPOINT
    if "generator" in content:
        return Kind.BIGVGAN
    return Kind.QWEN if any(mark in str(name) for name in content for mark in QWEN_MARKS) else Kind.UNKNOWN


def _identify_folder(folder: Path) -> Kind:
    if (folder / "checkpoints").is_dir():  # beside which a run stores its config.yaml
        return Kind.RUN
    for name, kind in (
        (SHARDED_META, Kind.DECODER_CHECKPOINT),
        (EXPORT_CONFIG, Kind.DECODER_EXPORT),
        (BIGVGAN_WEIGHTS, Kind.BIGVGAN),
        (VOCODER_WEIGHTS, Kind.BIGVGAN),
        ("manifest.json", Kind.SHARD_SET),
    ):
        if (folder / name).is_file():
            return kind
    return Kind.QWEN if any(folder.glob("*.safetensors*")) else Kind.UNKNOWN


def require_kind(path: Path, *expected: Kind) -> Kind:
    """Returns the kind of a file or folder, which must be one of those expected.

    Raises:
        FileNotFoundError: if there is nothing at the path.
        ValueError: with its kind and those expected, if it is of another kind or unreadable.
    """
    kind = identify(path)
    if kind in expected:
        return kind
    names = " or ".join(option.value for option in expected)
    if kind is Kind.MISSING:
        raise FileNotFoundError(f"no file or folder {path}: expected {names}")
    if kind is Kind.UNKNOWN and path.is_file():
        read_torch(path)  # raises with the reason
    hint = ", which --vocoder takes" if kind in VOCODERS and set(expected) & set(DECODERS) else ""
    raise ValueError(f"{path} is {kind.value}{hint}: expected {names}")
