"""Config files and layouts on a command line: names, bases, precedence."""

from pathlib import Path

import pytest

from sf_lightning.cli.configs import RECIPES, expand_configs, expand_presets, find_recipe


def test_a_recipe_of_the_package_is_found_by_name_and_a_file_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand_configs(["--config", "demo"]) == [f"--config={RECIPES}/demo.yaml"]
    assert find_recipe("table", "FILE", RECIPES / "sweeps") == RECIPES / "sweeps" / "table.yaml"
    Path("demo").write_text("x: 1\n")
    assert expand_configs(["--config", "demo"]) == ["--config=demo"]


def test_an_unknown_recipe_lists_those_that_exist() -> None:
    with pytest.raises(FileNotFoundError, match=r"^--config demoo: no such file; .* one of demo,"):
        expand_configs(["--config=demoo"])


def test_recipes_are_the_files_of_experiments(repository: Path) -> None:
    assert RECIPES.samefile(repository / "experiments")


def test_a_base_may_be_a_file_beside_the_config_or_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("base: demo\n")
    (tmp_path / "finer.yaml").write_text("base: own.yaml\n")
    paths = [RECIPES / "demo.yaml", tmp_path / "own.yaml", tmp_path / "finer.yaml"]
    assert expand_configs([f"--config={tmp_path}/finer.yaml"]) == [f"--config={path}" for path in paths]


def test_bases_come_before_the_configs_based_on_them_and_other_arguments_stay(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 1\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\n")
    for name in ("--config", "-c"):
        args = ["fit", name, str(tmp_path / "c.yaml"), "--data.lanes=2"]
        assert expand_configs(args) == ["fit", *(f"--config={tmp_path / n}.yaml" for n in "abc"), "--data.lanes=2"]


def test_a_missing_base_is_named_with_its_config(tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("base: under.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"^base of --config .*/over.yaml: under.yaml: no such file"):
        expand_configs(["--config", str(tmp_path / "over.yaml")])


def test_a_circle_of_bases_and_a_base_as_an_argument_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ValueError, match=r"b.yaml: its base a.yaml is based on it; remove one of the two"):
        expand_configs([f"-c={tmp_path}/a.yaml"])
    with pytest.raises(ValueError, match="base is a key of config files"):
        expand_configs([f"--base={tmp_path}/a.yaml"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "is not valid YAML: "),
        ("- 1\n", "holds no settings"),
        ("parameters: {}\n", "is a sweep; run it with"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        expand_configs([f"--config={tmp_path}/x.yaml"])


def test_a_layout_may_be_given_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (option,) = expand_presets(["--model.layout=block_only"])
    name, _, path = option.partition("=")
    assert name == "--model.layout" and Path(path).is_file() and Path(path).name == "block_only.yaml"
    assert expand_presets(["--model.layout", "block_only", "--x=full"]) == ["--model.layout", path, "--x=full"]
    Path("own.yaml").write_text("num_layers: 2\n")
    for own in ("{num_layers: 2}", "own.yaml"):
        assert expand_presets([f"--model.layout={own}"]) == [f"--model.layout={own}"]
    with pytest.raises(ValueError, match=r"--model.layout is nameless; expected .*block_only.*, a YAML file or"):
        expand_presets(["--model.layout=nameless"])
    Path("block_only").touch()
    assert expand_presets(["--model.layout=block_only"]) == ["--model.layout=block_only"]
