"""Options of all commands: each is made from a dataclass field, documents itself, and shows the default of that field."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest

from export import cli
from export.cli import COMMANDS, tritonize
from export.export_options import ExportOptions
from export.finetune_options import FinetuneOptions
from export.options import parse_hub_repository
from export.tasks import task_names
from export.training.hyperparameters import ADAPTER_METHODS, Adapter, Hyperparameters
from serving.click_options import FieldOption
from serving.options import RequestOptions, parse_model_name
from tests.helpers.recorded_stages import record_export, record_finetune

ROOT = click.Context(tritonize, info_name="tritonize", terminal_width=400, **tritonize.context_settings)
OPTIONS = [
    pytest.param(command, option, id=f"{name} {option.opts[-1]}")
    for name in COMMANDS
    if (command := tritonize.get_command(ROOT, name)) is not None
    for option in command.params
    if isinstance(option, click.Option)
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_every_option_is_a_field_with_its_help_and_default(command: click.Command, option: click.Option) -> None:
    assert isinstance(option, FieldOption)
    source = option.source
    if option.source.option.parse is None and not option.required:
        assert option.default == source.default
    if option.hidden:
        assert option.former and option.opts[0] in source.option.former
        return
    record = option.get_help_record(click.Context(command, ROOT))
    assert record is not None and len(record[1]) > 10
    assert record[1][0].isupper() or record[1].startswith("gRPC")
    assert (option.help or "").rstrip()[-1] in ".;)", "help texts are sentences"
    if source.option.default_text == "":
        assert "[default:" not in record[1]
    elif not option.is_flag:
        shown = "[required]" if option.required else f"[default: {source.default_text}"
        assert shown in " ".join(record[1].split())
    if source.option.default_text is None and source.default is not None and not option.is_flag and not source.repeatable:
        assert source.default_text == source.option.show(source.default)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_of_a_command_have_distinct_names(name: str) -> None:
    command = tritonize.get_command(ROOT, name)
    assert command is not None
    flags = [flag for parameter in command.params for flag in parameter.opts]
    assert len(flags) == len(set(flags))


def test_the_command_reference_is_up_to_date() -> None:
    written = Path(cli.__file__).with_name("COMMANDS.md").read_text(encoding="utf-8")
    run = subprocess.run([sys.executable, "-m", "export.command_reference"], capture_output=True, text=True, check=True)
    assert written == run.stdout, "run: python -m export.command_reference > export/COMMANDS.md"


def test_the_command_reference_can_be_generated_without_torch() -> None:
    script = (
        "import sys; from export.command_reference import command_reference; command_reference(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([command, "--help"]) == 0
    return capsys.readouterr().out.replace("-\n", "-").replace("\n", " ")


def test_help_lists_tasks_and_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join(help_of("export", capsys).split()).replace("- ", "-")
    assert f"Task of the model: {', '.join(task_names())}." in page
    for described in ("pooling=mean|cls|max|last", "top_k=INTEGER [5]", "threshold=NUMBER [0.5]", "normalize=true|false [false]"):
        assert described in page


def test_the_adapters_are_those_that_peft_can_merge() -> None:
    from export.training.adapters import adapter_methods

    assert list(ADAPTER_METHODS) == adapter_methods()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneOptions]:
    """Options that the fine-tuning stage was called with."""
    return record_finetune(monkeypatch)


@pytest.mark.parametrize(
    ("flags", "recipe", "warned"),
    [
        (["--quantization-aware"], "", False),
        (["--quantisation-aware"], "", True),
        ([], "quantization-aware = true", False),
        ([], "quantisation-aware = true", True),
        ([], "quantisation_aware = true", True),
        (["--quantization-aware"], "quantisation-aware = false", False),
    ],
)
def test_the_former_spelling_works_with_a_warning(
    trained: list[FinetuneOptions], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], recipe: str, warned: bool
) -> None:
    (tmp_path / "r.toml").write_text(f"[finetune]\n{recipe}\n")
    given = ["--checkpoint", "c", "--train", "t", "--recipe", str(tmp_path / "r.toml")]
    assert cli.main(["finetune", *given, *flags]) == 0
    assert trained[0].training == Hyperparameters(quantization_aware=True) and trained[0].fixed == ("quantization_aware",)
    assert capsys.readouterr().err.count("--quantisation-aware is now --quantization-aware") == warned


def test_options_that_are_not_given_are_the_fields_defaults(
    trained: list[FinetuneOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = record_export(monkeypatch)
    assert cli.main(["finetune", "--checkpoint", "c", "--train", "t"]) == 0
    assert cli.main(["export"]) == 0
    assert trained == [FinetuneOptions(checkpoint="c", train="t", name="t")]
    assert exported == [ExportOptions(name="m", task="text-classification")]


def test_settings_and_adapter_options_are_typed(trained: list[FinetuneOptions]) -> None:
    setting = ["--task", "feature-extraction", "--setting", "pooling=cls", "--setting", "truncate-dim=8"]
    adapter = [
        "--adapter",
        "LoRA",
        "--adapter-option",
        "r=8",
        "--adapter-option",
        "use-rslora=true",
        "--adapter-option",
        "bias=all",
    ]
    assert cli.main(["finetune", "--checkpoint", "c", "--train", "t", *setting, *adapter]) == 0
    assert trained[0].setting == {"pooling": "cls", "truncate_dim": 8}
    assert trained[0].adapter == Adapter(method="lora", options={"r": 8, "use_rslora": True, "bias": "all"})


def test_the_clients_defaults_are_those_of_predict() -> None:
    import inspect

    from serving.async_client import AsyncTritonPipeline

    signature = inspect.signature(AsyncTritonPipeline)
    defaults = RequestOptions()
    for name in ("url", "protocol", "concurrency", "batch_size", "timeout"):
        assert signature.parameters[name].default == getattr(defaults, name)


@pytest.mark.parametrize(
    ("arguments", "finite"),
    [
        (["serve", "--ready-timeout"], False),
        (["predict", "m", "--timeout"], False),
        (["compare", "/", "/", "--max-quality-drop"], True),
        (["benchmark", "m", "--duration"], True),
        (["tune", "m", "--duration"], True),
        (["tune", "m", "--minutes"], True),
        (["tune", "m", "--latency-p99-ms"], True),
        (["export", "--max-metric-drop"], True),
        (["finetune", "--checkpoint", "c", "--train", "t", "--learning-rate"], True),
    ],
)
def test_a_limit_may_be_infinite_and_no_number_may_be_nan(arguments: list[str], finite: bool) -> None:
    command = tritonize.get_command(ROOT, arguments[0])
    assert command is not None
    name = arguments[-1][2:].replace("-", "_")
    with pytest.raises(click.BadParameter, match=f"nan is not a {'finite ' if finite else ''}number"):
        command.make_context(arguments[0], [*arguments[1:], "nan"], parent=ROOT)
    if finite:
        with pytest.raises(click.BadParameter, match="inf is not a finite number"):
            command.make_context(arguments[0], [*arguments[1:], "inf"], parent=ROOT)
    else:
        assert command.make_context(arguments[0], [*arguments[1:], "inf"], parent=ROOT).params[name] == float("inf")


@pytest.mark.parametrize("name", ["модель", "x²", "-x", ".x", "a/b", "a b", "", "x\n", "../x"])
def test_a_model_name_is_plain_ascii_in_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [["finetune", "--checkpoint", "c", "--train", "t"], ["export"], ["package"], ["benchmark"], ["tune"]]
    for command in commands:
        assert cli.main([*command, f"--name={name}"]) == 2
        assert f"{name!r} is not a model name: use A-Z, a-z, 0-9, '_', '.' and '-'" in " ".join(capsys.readouterr().err.split())
    for command in ["benchmark", "tune", "predict"]:
        assert cli.main([command, "--", name]) == 2
        assert f"{name!r} is not a model name" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["finetune --checkpoint c --train t", "export", "package", "benchmark", "tune"])
def test_the_name_in_a_recipe_follows_the_same_rule(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('name = "../x"\n', encoding="utf-8")
    assert cli.main([*command.split(), "--recipe", str(recipe)]) == 2
    assert "'../x' is not a model name" in capsys.readouterr().err


def test_a_model_name_has_a_limit() -> None:
    assert parse_model_name("x" * 200) == "x" * 200
    with pytest.raises(ValueError, match="it has 201 characters, more than 200"):
        parse_model_name("x" * 201)


@pytest.mark.parametrize("name", ["владелец/модель", "owner/x²", "/x", "a/b/c"])
def test_a_hub_repository_is_plain_ascii(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a repository on the Hub"):
        parse_hub_repository(name)


@pytest.mark.parametrize("flag", ["--text-column", "--text-pair-column", "--choice-column", "--max-length"])
def test_an_option_of_several_commands_is_written_once(flag: str) -> None:
    commands = [tritonize.get_command(ROOT, name) for name in COMMANDS]
    parameters = [parameter for command in commands if command is not None for parameter in command.params]
    found = [one.source.option for one in parameters if isinstance(one, FieldOption) and flag in one.opts]
    assert len(found) > 1
    assert {replace(option, flag=flag, default_text=None) for option in found} == {
        replace(found[0], flag=flag, default_text=None)
    }, "but for the description of the default"
