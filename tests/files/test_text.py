"""Words of others: a terminal shows them, Markdown and spreadsheets do not obey them, passwords are left out."""

import csv
import logging
from pathlib import Path

import pytest
from jsonargparse import Namespace

from sf_lightning.cli.card import license_text
from sf_lightning.cli.errors import one_line
from sf_lightning.cli.run_folder import _redact_config
from sf_lightning.data.store import Store
from sf_lightning.evaluation.table import Table
from sf_lightning.evaluation.terminal import print_tables
from sf_lightning.files.tables import markdown_table, write_csv
from sf_lightning.files.text import get_logger, markdown_text, printable, redacted

CONTROLS = ["\x1b]0;title\x07", "\x1b[2J", "\x9b31m", "\u202eevil", "\u2066a", "\u200fb", "a\rb", "a\nb", "\u2028"]


@pytest.mark.parametrize("text", [*CONTROLS, "\x7f", "\ud800"])
def test_a_terminal_gets_no_control_characters_in_tables_logs_and_errors(
    text: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    print_tables([Table("Quality", ("clip",), (((f"[bold]{text}", ""),),))])
    get_logger("sf_lightning.test").warning("skipped %s: %s", f"{text}%s", ValueError(text))
    table = capsys.readouterr().out
    assert "[bold]" in table and all(line.isprintable() for line in table.split("\n"))
    assert all(line.isprintable() for line in (*caplog.messages, one_line(ValueError(text)), printable(text)))


@pytest.mark.parametrize(
    "text", ["名前", "é", "a b", "👩\u200d👧", "می\u200cخواهم", "a|b", "<x>", "\u3000", "\xa0"]
)
def test_what_a_terminal_can_show_is_unchanged(text: str) -> None:
    assert printable(text) == text


def test_markdown_shows_foreign_words_as_they_are() -> None:
    attack = "a |\n\n## Use\n<script>x</script> ![i](http://h/i) \\| b"
    table = markdown_table(["name", attack], [["1", attack]])
    assert len(table.split("\n")) == 3
    escaped = r"a \|\\n\\n## Use\\n\<script>x\</script> !\[i](http://h/i) \\\| b"
    assert markdown_text(attack) == escaped and table.split("\n")[2] == f"| 1 | {escaped} |"
    assert license_text("mit\n---\n# <b>") == r"License: mit\\n---\\n# \<b>."


@pytest.mark.parametrize("cell", ["=1+1", "+a", "-cmd|x", "@SUM(1)", "\t=1", " =1", "\r=1", "-", "+"])
def test_a_spreadsheet_computes_no_cell(tmp_path: Path, cell: str) -> None:
    write_csv(tmp_path / "a.csv", ["name", cell], [[cell, -0.5], ["-0.5", "-1e-3"]])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", f"'{cell}"], [f"'{cell}", "-0.5"], ["-0.5", "-1e-3"]]


@pytest.mark.parametrize(
    "location",
    [
        "https://ann:hunter2@host/set",
        "https://hunter2@host/set",
        "https://ann:a@hunter2@host/set",
        "https://host/set?token=hunter2&x=1",
        "https://host/set?X-Amz-Credential=hunter2&X-Amz-Signature=hunter2",
        "pipe:curl -u ann:hunter2 https://host/{}",
        "pipe:curl -H 'Authorization: Bearer hunter2' https://host/{}",
        'pipe:curl --header "PRIVATE-TOKEN: hunter2" https://host/{}',
        "pipe:curl https://ann:hunter2@host/{}",
        "pipe:AWS_SECRET_ACCESS_KEY=hunter2 aws --endpoint-url https://host s3 cp s3://bucket/{} -",
        "pipe:wget --password=hunter2 -O - https://host/{}",
        "pipe:wget --password hunter2 -O - https://host/{}",
        "pipe:curl --oauth2-bearer hunter2 https://host/{}",
        "pipe:curl https://$USER:hunter2@host/{}",
    ],
)
def test_passwords_and_tokens_of_an_address_are_in_no_saved_config(location: str) -> None:
    config = Namespace(data=Namespace(train=[location, "local"], val=location, lanes=2), trainer=[{"a": location}])
    saved = _redact_config(config)
    assert config.data.val == location and saved.data.lanes == 2 and saved.data.train[1] == "local"
    assert "hunter2" not in repr(saved) + Store(location).name and "host" in saved.data.val
    with pytest.raises(ValueError, match="give the whole address"):
        Store(saved.data.val)


def test_a_failed_download_reports_no_password(caplog: pytest.LogCaptureFixture) -> None:
    store = Store("pipe:false --token hunter2 https://ann:hunter2@host/{}", attempts=1)
    with pytest.raises(FileNotFoundError, match="false --token") as error:
        store.read("manifest.json", 1000)
    assert "hunter2" not in one_line(error.value) + caplog.text and len(caplog.messages) == 1


@pytest.mark.parametrize(
    "text",
    [
        "pipe:curl -H 'Authorization: Bearer $TOKEN' https://host/{}",
        "pipe:curl https://$USER:$PASSWORD@host/{}",
        "pipe:curl https://${A}:${B}@host/{}",
        "pipe:aws s3 cp s3://bucket/set/{} -",
        "https://host/a@b/set",
        "unknown token: 5; --tokens is x, token count: 3",
        "runs/token=5/a@b",
    ],
)
def test_what_is_no_secret_is_unchanged(text: str) -> None:
    assert redacted(text) == text


def test_messages_of_a_logger_are_made_once(caplog: pytest.LogCaptureFixture) -> None:
    assert get_logger("sf_lightning.test") is get_logger("sf_lightning.test")
    with caplog.at_level(logging.WARNING):
        get_logger("sf_lightning.test").warning("100%")
    assert caplog.messages == ["100%"]
