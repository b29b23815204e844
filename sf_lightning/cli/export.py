"""`sf-export`: a checkpoint of `sf-fit` to a folder of plain files, to be used, kept and shared."""

from pathlib import Path

from sf_lightning.cli.card import missing_vocoder, model_card, read_scores
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.parser import command_parser
from sf_lightning.cli.vocoder_card import vocoder_card
from sf_lightning.files.atomic import refuse_existing
from sf_lightning.model.pretrained import CARD, save_pretrained
from sf_lightning.training.checkpoint import load_checkpoint
from sf_lightning.vocoder.files import is_vocoder, read_trained, save_vocoder


def export(
    ckpt: str, out: str, average: bool = True, license: str | None = None, data: str | list[str] | None = None
) -> None:
    """Writes the decoder of a checkpoint, or the vocoder, to a folder: weights, configuration and a model card.

    A vocoder's weights and configuration are as the bigvgan package has them, to be loaded by its own class too.

    Args:
        ckpt: Checkpoint of `sf-fit`.
        out: Folder to write, which must not exist yet. `sf-decode`, `StreamFlow.from_pretrained` and the upload
            tools of the Hugging Face hub take it as it is.
        average: Whether to export the averaged weights, which `sf-decode` uses, or the raw ones.
        license: Identifier of a license for the model card, as the hub has it, such as "apache-2.0"; by default
            a line to be filled in.
        data: Markdown file, or several, that says what it was trained on and under what terms, for the model card;
            by default a line to be filled in.
    """
    folder, path = Path(out), Path(ckpt)
    refuse_existing(folder)
    said = None if data is None else _read_all([data] if isinstance(data, str) else data)
    name = folder.resolve().name
    if is_vocoder(path):
        vocoder = read_trained(path, average)
        scores = read_scores(path, vocoder.of.step)
        save_vocoder(folder, vocoder, vocoder_card(name, vocoder, scores, license, said))
        print(f"{folder}: hear a decoder with it with sf-decode --vocoder {folder}")
    else:
        trained = load_checkpoint(path, average)
        scores = read_scores(path, trained.description.weights.step)
        save_pretrained(folder, trained, model_card(name, trained, scores, license, said))
        print(f"{folder}: hear it with sf-decode --ckpt {folder}, share it with hf upload OWNER/NAME {folder}")
        if (checkpoint := missing_vocoder(trained.description)) is not None:
            print(f"its vocoder, {checkpoint}, is not inside: who gets the folder needs it too, for --vocoder")
    if "TO BE FILLED IN" in (folder / CARD).read_text(encoding="utf-8"):
        print(f"fill in what {folder}/README.md has marked TO BE FILLED IN")


def _read_all(files: list[str]) -> str:
    for each in files:
        if not Path(each).is_file():
            raise FileNotFoundError(f"--data: no file {each}")
    return "\n\n".join(Path(each).read_text(encoding="utf-8").strip() for each in files)


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    export(**vars(command_parser("sf-export", export, as_positional=True).parse_args(args)))


if __name__ == "__main__":
    main()
