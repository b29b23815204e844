"""Files that arguments name, put in order before they are read: configs and what they are laid over, layouts."""

from pathlib import Path

from omegaconf import OmegaConf

from sf_lightning.evaluation.grid import presets


def with_bases(args: list[str]) -> list[str]:
    """Puts in front of each `--config` the one that it names as its `base`, so that overlays stay short.

    Raises:
        FileNotFoundError: if a config or its base is missing.
        ValueError: if bases go round in a circle, one is given as an argument, or a config is a sweep.
    """
    done: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name == "--base":
            raise ValueError("--base is for config files: give the other config with a --config before this one")
        if name not in ("--config", "-c"):
            done.append(arg)
            continue
        chain = [_found(Path(value if equals else next(rest, "")))]
        if "parameters" in OmegaConf.load(chain[0]):
            raise ValueError(f"--config: {chain[0]} is a sweep: sf-sweep {chain[0]}")
        while base := OmegaConf.select(OmegaConf.load(chain[0]), "base"):
            under = _found(chain[0].parent / str(base))
            if any(under.samefile(each) for each in chain):
                raise ValueError(f"--config: {chain[0]} is laid over {base}, which is laid over it")
            chain.insert(0, under)
        done += [f"--config={path}" for path in chain]
    return done


def with_presets(args: list[str]) -> list[str]:
    """Puts in the place of a layout's name the file that it is the name of, unless there is a file of that name."""
    name, known, done = "--model.layout", presets(), list[str]()
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = ("", "", arg) if before == name else arg.partition("=")
        if (before == name or option == name) and value in known and not Path(value).is_file():
            value = str(known[value])
        done.append(f"{option}{equals}{value}")
    return done


def _found(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"--config: {path} is missing")
    return path
