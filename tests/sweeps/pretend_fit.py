"""Pretends to be `sf-fit`: logs a metric step by step, keeps a checkpoint, goes on from it, stops when asked to."""

import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Runs the command line."""
    options = dict(arg.removeprefix("--").partition("=")[::2] for arg in sys.argv[1:])
    known = {"trainer.default_root_dir", "ckpt_path", "print_config"}
    known |= {"model.layout", "layout", "seed", "rate", "steps", "pause", "way", "gone"}
    if unknown := options.keys() - known:
        sys.exit(f"error: {min(unknown)} is not known")
    if "print_config" in options:
        sys.exit(0)
    asked = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(True))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    run = Path(options["trainer.default_root_dir"])
    state, table = run / "checkpoints" / "last", run / "csv" / "metrics.csv"
    for folder in (state.parent, table.parent):
        folder.mkdir(parents=True, exist_ok=True)
    done = int(state.read_text()) if state.is_file() else 0
    with (run / "started").open("a") as file:
        file.write(f"{done}\n")
    way, quality = options.get("way"), float(options.get("rate", 1))
    if way == "breaks" and not Path(options["gone"]).exists():
        sys.exit("error: no shard set at /nowhere")
    if done == 0:
        table.write_text("step,streamed/stoi,streamed_within_500_ms/stoi,latency/wait_ms\n")
    for step in range(done, int(options.get("steps", 3))):
        time.sleep(float(options.get("pause", 0)))
        if asked:
            sys.exit(75)
        if way == "dies" and step == 1 and len((run / "started").read_text().split()) == 1:
            signal.raise_signal(signal.SIGKILL)
        score = quality * (step + 1)
        with table.open("a") as file:
            if way != "silent":
                file.write(f"{step},{score},{score},{240 * quality}\n")
        state.write_text(str(step + 1))


if __name__ == "__main__":
    main()
