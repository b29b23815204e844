"""Stands in for `sf-fit`: logs a metric at each step, keeps a checkpoint, resumes from it, and stops on SIGUSR1."""

import signal
import sys
import time
from pathlib import Path

RUN_OPTIONS = {"trainer.default_root_dir", "ckpt_path", "print_config", "seed", "layout", "model.layout"}
OWN_OPTIONS = {"rate", "steps", "pause", "behavior", "unless_exists"}


def main() -> None:
    """Runs the command line."""
    options = dict(arg.removeprefix("--").partition("=")[::2] for arg in sys.argv[1:])
    if unknown := options.keys() - RUN_OPTIONS - OWN_OPTIONS:
        sys.exit(f"error: {min(unknown)} is not an option")
    if "print_config" in options:
        sys.exit(0)
    stop_signals = []
    signal.signal(signal.SIGUSR1, lambda *_: stop_signals.append(True))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    run = Path(options["trainer.default_root_dir"])
    checkpoint, table = run / "checkpoints" / "last", run / "csv" / "metrics.csv"
    for folder in (checkpoint.parent, table.parent):
        folder.mkdir(parents=True, exist_ok=True)
    first_step = int(checkpoint.read_text()) if checkpoint.is_file() else 0
    with (run / "starts").open("a") as file:
        file.write(f"{first_step}\n")
    behavior, rate = options.get("behavior"), float(options.get("rate", 1))
    if behavior == "fails" and not Path(options["unless_exists"]).exists():
        sys.exit("error: no shard set at /nowhere")
    if first_step == 0:
        table.write_text("step,streamed/stoi,streamed_within_500_ms/stoi,latency/wait_ms\n")
    for step in range(first_step, int(options.get("steps", 3))):
        time.sleep(float(options.get("pause", 0)))
        if stop_signals:
            sys.exit(75)
        first_start = len((run / "starts").read_text().split()) == 1
        if behavior == "killed_always" or (behavior == "killed_once" and step == 1 and first_start):
            signal.raise_signal(signal.SIGKILL)
        score = rate * (step + 1)
        with table.open("a") as file:
            if behavior != "logs_nothing":
                file.write(f"{step},{score},{score},{240 * rate}\n")
        checkpoint.write_text(str(step + 1))


if __name__ == "__main__":
    main()
