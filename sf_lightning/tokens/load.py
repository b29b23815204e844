"""Loads a tokenizer from its file."""

from pathlib import Path

from sf_lightning.tokens.base import Tokenizer


def load_tokenizer(path: Path, device: str = "cpu") -> Tokenizer:
    """Returns the tokenizer in a file, of the kind of its suffix: `.npz` is k-means, `.onnx` and `.pt` are S3.

    Args:
        path: Path of the file.
        device: Device of the S3 tokenizer; k-means runs on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the suffix is unknown, or the file is not a tokenizer.
    """
    # Imported here, because each kind needs its own library: scikit-learn or s3tokenizer.
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer {path}: no such file")
    if path.suffix == ".npz":
        from sf_lightning.tokens.kmeans import KMeansTokenizer

        return KMeansTokenizer.load(path)
    if path.suffix in (".onnx", ".pt"):
        from sf_lightning.tokens.s3 import S3Tokenizer

        return S3Tokenizer(path, device)
    raise ValueError(f"tokenizer {path}: expected suffix .npz (k-means), .onnx or .pt (S3)")
