"""The notebooks run from beginning to end and are committed without outputs."""

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


def run(name: str, monkeypatch: pytest.MonkeyPatch, **variables: Path) -> str:
    """Runs a notebook with environment variables and returns its printed output; fails if a cell does."""
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(name))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, str(value))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs), "there is no picture"
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_lists_its_requirements_first(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "*Needs:*" in notebook.cells[0].source
    assert all(
        not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code"
    )
    assert not re.search(r"""["'(]/\w+/""", "".join(cell.source for cell in notebook.cells)), (
        "a path of one machine"
    )


def test_layouts_and_fields_shows_receptive_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "early   back (0, 1), ahead (0,)" in run("01", monkeypatch)


def test_inside_a_shard_shows_an_existing_set(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "32 blocks: [0, 0," in run("02", monkeypatch, SF_SHARDS=shards.folder)


@pytest.mark.slow
def test_inside_a_shard_builds_a_set_if_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    assert "32 blocks: [0, 0," in run("02", monkeypatch, SF_SHARDS=tmp_path / "nothing")


def test_hear_streaming_and_offline_reports_latency_and_gap(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 3)
    output = run("03", monkeypatch, SF_SHARDS=shards.folder, SF_CKPT=tmp_path / "last.ckpt")
    assert "first packet" in output and "  2 blocks ahead,   720 ms of latency: gap" in output


def test_choose_a_layout_reads_a_finished_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.main([str(sweep_file(tmp_path)), f"--dir={tmp_path / 'sweep'}"])
    output = run("04", monkeypatch, SF_SWEEP=tmp_path / "sweep")
    assert "  3 complete" in output and "within  250 ms: 1, streamed/stoi 3.000" in output
