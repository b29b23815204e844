"""A tokenizer from its file."""

from pathlib import Path

from sf_lightning.tokens.base import Tokenizer


def load_tokenizer(path: Path, device: str = "cpu") -> Tokenizer:
    """Loads a tokenizer from its file; the suffix says its kind (`.npz`: k-means; `.onnx`, `.pt`: S3).

    Args:
        path: Of the file.
        device: Where it runs; k-means runs on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no tokenizer has that suffix, or the file is not one.
    """
    # Each kind brings libraries of its own: scikit-learn only where k-means is used, s3tokenizer likewise.
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: no file {path}")
    if path.suffix == ".npz":
        from sf_lightning.tokens.kmeans import KMeansTokenizer

        return KMeansTokenizer.load(path)
    if path.suffix in (".onnx", ".pt"):
        from sf_lightning.tokens.s3 import S3Tokenizer

        return S3Tokenizer(path, device)
    raise ValueError(f"tokenizer: {path} has suffix {path.suffix!r}, known are .npz (k-means), .onnx and .pt (S3)")
