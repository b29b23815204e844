"""Which tokenizer and speaker encoder a build uses: loaded, found beside the set, fitted, or none at all.

Where tokens or x-vectors were made elsewhere there is nothing to load: their spec says what they are.
"""

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
    """Whether a tokenizer runs where it is told to; k-means runs on the CPU, and precomputed tokens nowhere."""
    return tokenizer is not None and Path(tokenizer).suffix in (".onnx", ".pt")


def choose_tokenizer(
    path: str | None,
    vocabulary: int | None,
    tokens_by: str,
    parts: Sequence[CorpusPart],
    target: Path,
    mel: MelConfig,
    num_slices: int,
    device: str,
    of_set: TokenizerSpec | None = None,
) -> Tokenizer | TokenizerSpec:
    """Loads, fits or describes what makes the tokens.

    Args:
        path: As `--tokenizer` has it.
        vocabulary: As `--vocabulary` has it.
        tokens_by: What made precomputed tokens.
        parts: Of the corpus, for k-means to be fitted on.
        target: The set to be made; k-means tokens lie beside it.
        mel: Of the models to be trained.
        num_slices: Jobs that share the work.
        device: Where S3 tokens are made.
        of_set: What made the tokens of a set that is there already: nothing is fitted for it again.

    Raises:
        FileNotFoundError: if there is no such file, or several jobs would each fit k-means of their own.
        ValueError: if the vocabulary is missing, or another one than the tokenizer's; or if several tokenizers lie
            beside the set and none is named.
    """
    if path == "precomputed":
        if vocabulary is None:
            raise ValueError("--tokenizer=precomputed needs --vocabulary: how many codes do its tokens have?")
        return TokenizerSpec(tokens_by, vocabulary, 4, tokens_by)
    codes = vocabulary or 1024
    beside = target.parent / f"kmeans-{codes}.npz"
    others = sorted(target.parent.glob("kmeans-*.npz"))
    if path is None and vocabulary is None and others and beside not in others:
        if len(others) > 1:
            names = " or ".join(str(each) for each in others)
            raise ValueError(f"several tokenizers lie beside {target}: say which: --tokenizer={names}")
        beside = others[0]
    if path is not None or beside.is_file():
        made = load_tokenizer(Path(path) if path else beside, device)
        if vocabulary not in (None, made.spec.vocabulary):
            raise ValueError(
                f"--vocabulary {vocabulary}, but --tokenizer {path} has {made.spec.vocabulary} codes: "
                "leave one of them out"
            )
        if path is None:
            print(f"tokens: {beside}, fitted before (delete it to fit anew)")
        return made
    if of_set is not None:
        return replace(of_set, name="kmeans", vocabulary=codes)
    if num_slices > 1:
        raise FileNotFoundError(
            f"no tokenizer at {beside}: jobs that share the work must share it too; make it first with `sf-shards "
            f"fit --audio AUDIO --out {beside}`, or give --tokenizer"
        )
    fitted = fit_tokenizer(parts, codes, mel)
    fitted.save(beside)
    print(f"tokens: {codes} k-means codes fitted on this audio, saved in {beside}")
    return fitted


def choose_speaker(path: str | None, x_vectors: str, width: int, device: str) -> SpeakerEncoder | SpeakerSpec:
    """Loads or describes what makes the x-vectors.

    Args:
        path: As `--speaker_encoder` has it.
        x_vectors: Name of the encoder whose embeddings lie beside the audio; empty where there are none.
        width: Theirs.
        device: Where they are made.

    Raises:
        ValueError: if both are given.
    """
    if path is not None:
        from sf_lightning.model.ecapa import PretrainedECAPA

        if x_vectors:
            raise ValueError("--speaker_encoder makes x-vectors and --x_vectors names ready ones: leave one out")
        return PretrainedECAPA(path, device)
    return SpeakerSpec(x_vectors, width if x_vectors else 0)
