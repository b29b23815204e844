"""`sf-export`: a checkpoint of `sf-fit` to a folder of plain files, to be used, kept and shared."""

from pathlib import Path

from jsonargparse import ArgumentParser

from sf_lightning.cli.card import model_card, read_scores
from sf_lightning.cli.errors import one_line, one_line_errors
from sf_lightning.model.pretrained import refuse_existing, save_pretrained
from sf_lightning.training.checkpoint import load_checkpoint
from sf_lightning.vocoder.bigvgan import is_vocoder, read_trained, save_in_their_format


def export(ckpt: str, out: str, average: bool = True, license: str | None = None) -> None:
    """Writes the decoder of a checkpoint to a folder: its weights, its configuration and a model card.

    A vocoder is written as the bigvgan package has it, weights and configuration, to be loaded by either.

    Args:
        ckpt: Checkpoint of `sf-fit`.
        out: Folder to write, which must not exist yet. `sf-decode`, `StreamFlow.from_pretrained` and the upload
            tools of the Hugging Face hub take it as it is.
        average: Whether to export the averaged weights, which `sf-decode` uses, or the raw ones.
        license: Identifier of a license for the model card, as the hub has it, such as "apache-2.0"; by default
            a line to be filled in.
    """
    folder = Path(out)
    refuse_existing(folder)
    if is_vocoder(Path(ckpt)):
        save_in_their_format(folder, read_trained(Path(ckpt), average))
        print(f"{folder}: hear a decoder with it with sf-decode --vocoder {folder}")
        return
    trained = load_checkpoint(Path(ckpt), average)
    scores = read_scores(Path(ckpt), trained.description.weights.step)
    save_pretrained(folder, trained, model_card(folder.resolve().name, trained, scores, license))
    print(f"{folder}: hear it with sf-decode --ckpt {folder}, share it with hf upload OWNER/NAME {folder}")
    if (vocoder := trained.description.vocoder["checkpoint"]) is not None:
        print(f"its vocoder, {vocoder}, is not inside: who gets the folder needs it too, for --vocoder")
    print(f"fill in what {folder}/README.md has marked TO BE FILLED IN")


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = ArgumentParser(prog="sf-export", description=one_line(ValueError(export.__doc__)).split(" Args:")[0])
    parser.add_function_arguments(export, as_group=False, as_positional=True)
    parser.exit_on_error = False
    export(**vars(parser.parse_args(args)))


if __name__ == "__main__":
    main()
