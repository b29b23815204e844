"""`sf-export`: writes the model in a checkpoint of `sf-fit` to a folder of plain files, to use, store and share."""

from pathlib import Path

from sf_lightning.cli.card import read_scores
from sf_lightning.cli.decoder_card import decoder_card, missing_vocoder
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.parser import command_parser
from sf_lightning.cli.vocoder_card import vocoder_card
from sf_lightning.files.atomic import refuse_existing
from sf_lightning.files.identify import Kind, require_kind
from sf_lightning.model.pretrained import CARD, save_export
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.vocoder.files import read_vocoder_checkpoint, save_vocoder


def export(
    ckpt: str, out: str, average: bool = True, license: str | None = None, data: str | list[str] | None = None
) -> None:
    """Exports the decoder or the vocoder in a checkpoint to a folder: weights, configuration and a model card.

    The bigvgan package's own class loads the folder of a vocoder too.

    Args:
        ckpt: Checkpoint of `sf-fit`.
        out: Folder to make. `sf-decode --ckpt`, `load_decoder` and the upload tools of the Hugging Face hub accept
            it as it is; a vocoder's folder is accepted by `sf-decode --vocoder`.
        average: Whether to export the averaged weights, which `sf-decode` uses, or the raw ones.
        license: License for the model card, by its identifier on the hub, such as "apache-2.0"; by default a line
            to be filled in.
        data: Markdown file or files on the training data and its terms, for the model card; by default a line to
            be filled in.
    """
    folder, path = Path(out), Path(ckpt)
    refuse_existing(folder)
    data_words = None if data is None else _read_all([data] if isinstance(data, str) else data)
    name = folder.resolve().name
    if require_kind(path, Kind.DECODER_CHECKPOINT, Kind.VOCODER_CHECKPOINT) is Kind.VOCODER_CHECKPOINT:
        vocoder = read_vocoder_checkpoint(path, average)
        scores = read_scores(path, vocoder.origin.step)
        save_vocoder(folder, vocoder, vocoder_card(name, vocoder, scores, license, data_words))
        print(f"{folder}: decode with it with sf-decode --vocoder {folder}")
    else:
        trained = load_pretrained(path, average)
        scores = read_scores(path, trained.description.weights.step)
        save_export(folder, trained, decoder_card(name, trained, scores, license, data_words))
        print(f"{folder}: decode with sf-decode --ckpt {folder}, share it with hf upload OWNER/NAME {folder}")
        if (missing := missing_vocoder(trained.description)) is not None:
            print(f"its vocoder, {missing}, is not included: users of the folder need it too, for --vocoder")
    if "TO BE FILLED IN" in (folder / CARD).read_text(encoding="utf-8"):
        print(f"complete the parts of {folder}/README.md that are marked TO BE FILLED IN")


def _read_all(files: list[str]) -> str:
    """Returns the text of all files, a blank line between them."""
    for file in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"--data: no file {file}")
    return "\n\n".join(Path(file).read_text(encoding="utf-8").strip() for file in files)


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    export(**vars(command_parser("sf-export", export, as_positional=True).parse_args(args)))


if __name__ == "__main__":
    main()
