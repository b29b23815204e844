"""Tokenizer and speaker encoder of a build: loaded, found beside the set, fitted, or described if precomputed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.build import fit_tokenizer
from sf_lightning.data.build_config import SpeakerEncoder, SpeakerSpec
from sf_lightning.data.corpus import CorpusPart
from sf_lightning.tokens.base import Tokenizer, TokenizerSpec
from sf_lightning.tokens.load import load_tokenizer


def runs_on_device(tokenizer: str | None) -> bool:
    """Returns whether the tokenizer in a file uses --device: S3 does, k-means and precomputed tokens do not."""
    return tokenizer is not None and Path(tokenizer).suffix in (".onnx", ".pt")


def choose_tokenizer(
    path: str | None,
    vocabulary: int | None,
    name: str,
    device: str,
    parts: Sequence[CorpusPart],
    target: Path,
    num_slices: int,
    existing: TokenizerSpec | None,
) -> Tokenizer | TokenizerSpec:
    """Returns the tokenizer of a build, or its spec if the tokens are precomputed.

    Args:
        path, vocabulary, name, device: Options --tokenizer, --vocabulary, --tokenizer_name and --device.
        parts: Parts of the corpus, on which k-means is fitted.
        target: Folder of the set; a k-means tokenizer is saved beside it.
        num_slices: Number of jobs that share the work.
        existing: Tokenizer of the set if that exists already; no new one is fitted then.

    Raises:
        FileNotFoundError: if there is no such file, or several jobs would each fit their own tokenizer.
        ValueError: if the vocabulary is missing or differs from the tokenizer's, or if several tokenizers are
            beside the set and none is chosen.
    """
    if path == "precomputed":
        if vocabulary is None:
            raise ValueError("--tokenizer=precomputed requires --vocabulary, the number of codes of its tokens")
        return TokenizerSpec(name, vocabulary, 4, name)
    codes = vocabulary or 1024
    beside = target.parent / f"kmeans-{codes}.npz"
    others = sorted(target.parent.glob("kmeans-*.npz"))
    if path is None and vocabulary is None and others and beside not in others:
        if len(others) > 1:
            names = " or ".join(map(str, others))
            raise ValueError(f"several tokenizers are beside {target}: choose one with --tokenizer={names}")
        beside = others[0]
    if path is not None or beside.is_file():
        loaded = load_tokenizer(Path(path) if path else beside, device)
        if vocabulary not in (None, loaded.spec.vocabulary):
            raise ValueError(
                f"--vocabulary is {vocabulary}, but --tokenizer {path} has {loaded.spec.vocabulary} codes: leave "
                "one of them out"
            )
        if path is None:
            print(f"tokens: {beside}, fitted before (delete it to fit a new one)")
        return loaded
    if existing is not None:
        return replace(existing, name="kmeans", vocabulary=codes)
    if num_slices > 1:
        raise FileNotFoundError(
            f"no tokenizer at {beside}: jobs that share a build must share its tokenizer; make it first with "
            f"`sf-shards fit --audio AUDIO --out {beside}`, or give --tokenizer"
        )
    fitted = fit_tokenizer(parts, codes, MelConfig())
    fitted.save(beside)
    print(f"tokens: {codes} k-means codes fitted on this audio, saved in {beside}")
    return fitted


def choose_speaker(path: str | None, x_vectors: str, width: int, device: str) -> SpeakerEncoder | SpeakerSpec:
    """Returns the speaker encoder of a build, or the spec of precomputed x-vectors of a width.

    Raises:
        ValueError: if --speaker_encoder and --x_vectors are both given.
    """
    if path is not None:
        from sf_lightning.model.ecapa import PretrainedECAPA

        if x_vectors:
            raise ValueError(
                "--speaker_encoder computes x-vectors and --x_vectors names stored ones: give only one"
            )
        return PretrainedECAPA(path, device)
    return SpeakerSpec(x_vectors, width if x_vectors else 0)
