"""W&B mode of the commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "x"}, ""),
        ({"WANDB_BASE_URL": "https://here.org:8080"}, ""),
        ({"WANDB_BASE_URL": "https://there.org"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
    ],
)
def test_runs_are_offline_without_an_api_key_unless_wandb_mode_is_set(
    tmp_path: Path, variables: dict[str, str], mode: str
) -> None:
    (tmp_path / ".netrc").write_text("machine here.org login user password x\n")
    (tmp_path / ".netrc").chmod(0o600)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    program = (
        "import os; from sf_lightning.cli.tracking import offline_without_key as f; f(); "
        "print(os.environ.get('WANDB_MODE', ''))"
    )
    env = clean | {"HOME": str(tmp_path)} | variables
    done = subprocess.run([sys.executable, "-c", program], env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == mode


def test_one_process_may_evaluate_and_then_train(tmp_path: Path) -> None:
    """W&B reads its environment once: the first run of a process decides for all later ones."""
    program = """
import sys, wandb
from pathlib import Path
from types import SimpleNamespace
from sf_lightning.cli import showing
from sf_lightning.cli.tracking import offline_without_key
showing.flat_table = lambda found: (["score"], [[1.0]])
showing.log_table(Path(sys.argv[1]), SimpleNamespace(results=SimpleNamespace(numbered_facts={})))
offline_without_key()
with wandb.init(dir=sys.argv[1]) as run:
    assert run.settings._offline
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = clean | {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=env, check=True, timeout=120)
