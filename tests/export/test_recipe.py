"""Recipes and the options of finetune and export: read, overridden, refused."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

from export import cli
from export.export_options import ExportOptions
from export.recipe import RECIPES, builtin_recipes, write_options
from tests.helpers.recorded_stages import record_export, record_finetune

TASK = "text-classification"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[ExportOptions]:
    """Options that the export stage was called with, in place of exporting."""
    return record_export(monkeypatch)


def recipe(folder: Path, content: str) -> str:
    path = folder / "r.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_recipe_gives_defaults_and_flags_win(tmp_path: Path, given: list[ExportOptions]) -> None:
    content = """
        name = "shared"
        seed = 3
        [export]
        max-metric-drop = 2
        precision = ["fp32", "int8"]
        verify_rows = 70
        [finetune]
        epochs = 9
    """
    assert cli.main(["export", "--verify-rows", "80", "--recipe", recipe(tmp_path, content)]) == 0
    assert given == [
        ExportOptions(name="shared", task=TASK, seed=3, max_metric_drop=2.0, verify_rows=80, precision=("fp32", "int8"))
    ]


def parameters(command: str, *arguments: str) -> dict[str, Any]:
    """What a command would run with."""
    group = click.Context(cli.tritonize)
    found = cli.tritonize.get_command(group, command)
    assert found is not None
    return found.make_context(command, list(arguments), parent=group).params


@pytest.mark.parametrize(
    ("command", "content", "arguments", "expected"),
    [
        ("predict", 'name = "top"', [], {"name": "top", "texts": ()}),
        ("predict", 'name = "top"\n[predict]\nname = "own"\ntexts = ["a", "b"]', [], {"name": "own", "texts": ("a", "b")}),
        ("predict", '[predict]\nname = "own"\ntexts = "one text"', [], {"name": "own", "texts": ("one text",)}),
        ("predict", 'name = "top"', ["given", "text"], {"name": "given", "texts": ("text",)}),
        ("benchmark", '[benchmark]\nmodel = "own"', [], {"model": "own"}),
        ("tune", '[tune]\nmodel = "own"', ["given"], {"model": "given"}),
        ("compare", '[compare]\nbefore = "/"\nnow = "/tmp"', [], {"before": Path("/"), "now": Path("/tmp")}),  # noqa: S108
    ],
)
def test_recipes_give_arguments_too(
    tmp_path: Path, command: str, content: str, arguments: list[str], expected: dict[str, object]
) -> None:
    found = parameters(command, "--recipe", recipe(tmp_path, content), *arguments)
    assert {name: found[name] for name in expected} == expected


def test_the_quickstart_recipe_names_the_model_of_predict() -> None:
    assert (
        parameters("predict", "--recipe", "quickstart")["name"]
        == tomllib.loads((RECIPES / "quickstart.toml").read_text(encoding="utf-8"))["name"]
    )


@pytest.mark.parametrize(
    ("command", "content", "field", "value"),
    [
        ("export", "as_json = true", "json", True),
        ("export", "as-json = true", "json", True),
        ("export", "as-json = true\njson = false", "json", False),
        ("finetune", "compiled = true\ncheckpoint = 'c'\ntrain = 't'", "compile", True),
        ("predict", f"name = 'm'\ninput_file = '{__file__}'", "input", Path(__file__)),
        ("predict", "name = 'm'\noutput_file = 'o.jsonl'", "output", Path("o.jsonl")),
        ("benchmark", "compiled = true", "compile", True),
        ("compare", "before = '/'\nnow = '/'\neverything = true", "all", True),
    ],
)
def test_former_keys_work_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, command: str, content: str, field: str, value: object
) -> None:
    assert parameters(command, "--recipe", recipe(tmp_path, f"[{command}]\n{content}"))[field] == value
    assert [line.split("]: ")[1].split("; ")[0].split(" is now ")[1] for line in caplog.messages] == [field]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        *((name, "--as-json") for name in ("finetune", "export", "package", "predict", "doctor", "benchmark", "tune", "compare")),
        ("predict", "--input-file"),
        ("predict", "--output-file"),
        ("finetune", "--compiled"),
        ("benchmark", "--compiled"),
        ("compare", "--everything"),
    ],
)
def test_former_keys_are_no_flags(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, flag]) == 2
    assert f"No such option '{flag}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        ([], ("t.csv", "v.csv", "e.csv")),
        (["--epochs", "1"], ("t.csv", "v.csv", "e.csv")),
        (["--train", "t.csv"], ("t.csv", "v.csv", "e.csv")),
        (["--train", "mine.csv"], ("mine.csv", None, None)),
        (["--train", "mine.csv", "--test", "own.csv"], ("mine.csv", None, "own.csv")),
    ],
)
def test_other_training_rows_are_not_judged_on_those_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], kept: tuple[str | None]
) -> None:
    seen = record_finetune(monkeypatch)
    content = '[finetune]\ncheckpoint = "c"\ntrain = "t.csv"\nvalidation = "v.csv"\ntest = "e.csv"\n'
    assert cli.main(["finetune", "--recipe", recipe(tmp_path, content), *flags]) == 0
    assert [(options.train, options.validation, options.test) for options in seen] == [kept]
    assert ("are ignored" in capsys.readouterr().err) == (kept[1] is None)


def test_precision_takes_commas_and_repetition(given: list[ExportOptions]) -> None:
    assert cli.main(["export", "--precision", "fp16,int8", "--precision", "fp32,int8"]) == 0
    assert given == [ExportOptions(name="m", task=TASK, precision=("fp16", "int8", "fp32"))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[export]\nepochs = 3\n", "[export]: no option is called epochs"),
        ("[export]\nverify-row = 3\n", "no option is called verify-row; did you mean verify-rows?"),
        ("[exports]\n", "no command is called exports"),
        ("name = \n", "recipe"),
        ("[export]\nopset = 12\n", "12"),
        ('[export]\nprecision = "fp8"\n', "'fp8' is not one of 'fp32', 'fp16', 'int8'"),
        ('name = "../up"\n', "'../up'"),
        ('task = "juggling"\n', "'juggling' is not one of"),
    ],
)
def test_bad_recipes_are_wrong_usage(tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "--recipe", recipe(tmp_path, content)]) == 2
    assert message in capsys.readouterr().err


def test_unknown_recipe_names_the_builtin_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["finetune", "--recipe", "nope"]) == 2
    assert f"give a TOML file or one of {', '.join(builtin_recipes())}" in capsys.readouterr().err


@pytest.mark.parametrize("name", builtin_recipes())
def test_builtin_recipes_are_complete(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = record_finetune(monkeypatch)
    content = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    if "finetune" not in content:
        pytest.skip("a recipe for checkpoints that are fine-tuned already")
    assert cli.main(["finetune", "--recipe", name]) == 0
    assert seen[0].name == content["name"]
    assert seen[0].training.epochs == content["finetune"]["epochs"]


@pytest.mark.parametrize("command", ["finetune", "export"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; from export.cli import main; assert main(['{command}', '--help']) == 0; "
        "print(sorted({'torch', 'transformers', 'datasets', 'onnx', 'pyarrow'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            '# mine\nname = "x"\n\n[package]  # of ours\nthreads = 4  # all\n\n[serve]\nhttp-port = 1\n',
            '# mine\nname = "x"\n\n[package]  # of ours\nthreads = 2  # all\nqueue-delay-us = 500\n\n[serve]\nhttp-port = 1\n',
        ),
        ("[package]\nqueue_delay_us = 0 # none\n", "[package]\nqueue_delay_us = 500 # none\nthreads = 2\n"),
        ('package = { precision = "int8" }\n', 'package = { precision = "int8" , threads = 2, queue-delay-us = 500}\n'),
        ('package.precision = "int8"\n', 'package.precision = "int8"\npackage.threads = 2\npackage.queue-delay-us = 500\n'),
    ],
)
def test_options_are_written_into_a_recipe_and_all_else_stays(tmp_path: Path, before: str, after: str) -> None:
    path = Path(recipe(tmp_path, before))
    path.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    write_options(link, {}, "package", {"threads": 2, "queue-delay-us": 500})
    content = path.read_text(encoding="utf-8")
    assert tomllib.loads(content) == tomllib.loads(after)
    if "#" in before:
        assert content == after
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.toml", "r.toml"]


def test_a_recipe_is_made_where_there_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tuned.toml"
    write_options(path, {"name": "x"}, "package", {"bundle": "/no/such", "threads": 2})
    assert tomllib.loads(path.read_text(encoding="utf-8")) == {"name": "x", "package": {"bundle": "/no/such", "threads": 2}}
    assert cli.main(["package", "--recipe", str(path)]) == 1
    assert "no bundle at /no/such" in capsys.readouterr().err
