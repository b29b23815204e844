"""The notebooks run from beginning to end, and are committed without what they have shown."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sf_lightning.cli import sweep
from sf_lightning.data.shards import ShardSet
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder
from tests.toys.sweep import sweep_file

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def run(name: str, monkeypatch: pytest.MonkeyPatch, **needs: Path) -> str:
    """Runs a notebook and returns what it printed; fails where a cell does."""
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    for variable, value in needs.items():
        monkeypatch.setenv(variable, str(value))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "there is no picture"
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_says_first_what_it_needs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "*Needs:*" in notebook.cells[0].source
    assert all(
        not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code"
    )
    assert not re.search(r"""["'(]/\w+/""", "".join(cell.source for cell in notebook.cells)), (
        "a path of one machine"
    )


def test_layouts_and_fields_shows_the_field_of_one_two_and_three_evaluations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "early   back (0, 1), ahead (0,)" in run("01", monkeypatch)


def test_inside_a_shard_shows_a_set_that_is_there(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "32 blocks: [0, 0," in run("02", monkeypatch, SF_SHARDS=shards.folder)


@pytest.mark.slow
def test_inside_a_shard_makes_its_own_set_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("espeakng_loader")
    assert "32 blocks: [0, 0," in run("02", monkeypatch, SF_SHARDS=tmp_path / "nothing")


def test_hear_streaming_and_offline_closes_the_gap(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 3)
    said = run("03", monkeypatch, SF_SHARDS=shards.folder, SF_CKPT=tmp_path / "last.ckpt")
    assert "first packet" in said and "  2 blocks ahead,   720 ms of waiting: gap" in said


def test_choose_a_layout_reads_a_finished_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.main([str(sweep_file(tmp_path)), f"--dir={tmp_path / 'sweep'}"])
    said = run("04", monkeypatch, SF_SWEEP=tmp_path / "sweep")
    assert "  3 complete" in said and "within  250 ms: 1, streamed/stoi 3.000" in said
