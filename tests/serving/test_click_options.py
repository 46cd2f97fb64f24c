"""Click options made from dataclass fields: types, ranges, repetition, nesting, optional groups, former names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner

from serving.click_options import given_fields, with_options
from serving.option_fields import Option


def percent(text: str) -> float:
    if not text.endswith("%"):
        raise ValueError(f"{text!r} is not a percentage")
    return float(text[:-1]) / 100


@dataclass(frozen=True, kw_only=True)
class Teacher:
    name: Annotated[str, Option("Name.", flag="--teacher")]
    heat: Annotated[float, Option("Heat.", above=0)] = 2.0
    load: Annotated[Literal["4bit", "8bit"] | None, Option("Load.")] = None


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: Annotated[int, Option("Size.", flag="--inner-size", minimum=1, former=("--inner-sise",))] = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    place: Annotated[Path, Option("Place.", path="folder")]
    inner: Inner = field(default_factory=Inner)
    teacher: Teacher | None = None
    rate: Annotated[float, Option("Rate.", minimum=0, below=1)] = 0.5
    wait: Annotated[float, Option("Wait.", minimum=1, may_be_infinite=True)] = 300.0
    ratio: Annotated[float, Option("Ratio.")] = 1.0
    counts: Annotated[tuple[int, ...], Option("Counts.", commas=True, may_be_none=True, minimum=1)] = (1, 4)
    kinds: Annotated[tuple[Literal["a", "b"], ...], Option("Kinds.", commas=True)] = ()
    words: Annotated[tuple[str, ...], Option("Words.")] = ()
    share: Annotated[float, Option("Share.", parse=percent, show="{:.0%}".format)] = 0.1
    pairs: Annotated[Mapping[str, object], Option("Pairs.", parse=str.upper)] = field(default_factory=dict)
    quiet: Annotated[bool, Option("Quiet.")] = False
    extra: Annotated[bool, Option("Extra.")] = True
    hidden: int = 7


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    value: Annotated[complex, Option("Value.")] = 0j


SEEN: list[tuple[Outer, tuple[str, ...]]] = []


@click.command()
@click.argument("texts", nargs=-1)
@with_options
def command(texts: tuple[str, ...], options: Outer) -> None:
    """Remember the options."""
    click.echo(f"{len(texts)} texts")
    SEEN.append((options, given_fields(Outer, click.get_current_context())))


def run(*arguments: str, default_map: dict[str, object] | None = None) -> tuple[Outer, tuple[str, ...]]:
    SEEN.clear()
    done = CliRunner().invoke(command, ["--place", ".", *arguments], default_map=default_map, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return SEEN[0]


def refused(*arguments: str, default_map: dict[str, object] | None = None) -> str:
    done = CliRunner().invoke(command, arguments, default_map=default_map)
    assert done.exit_code == 2, done.output
    return done.output


def test_what_is_not_given_is_left_to_the_dataclass() -> None:
    assert run("x", "y") == (Outer(place=Path()), ("place",))


def test_what_is_given_is_typed() -> None:
    options, given = run(
        *(
            "--inner-size",
            "5",
            "--rate",
            "0.25",
            "--counts",
            "8,2",
            "--counts",
            "8",
            "--kinds",
            "b, a",
            "--words",
            "a,b",
            "--words",
            "c",
        ),
        *("--share", "30%", "--pairs", "a-b=c", "--pairs", "d= e ", "--quiet", "--no-extra"),
    )
    assert options == Outer(
        place=Path(),
        inner=Inner(size=5),
        rate=0.25,
        counts=(8, 2),
        kinds=("b", "a"),
        words=("a,b", "c"),
        share=0.3,
        pairs={"a_b": "C", "d": "E "},
        quiet=True,
        extra=False,
    )
    assert given == ("place", "size", "rate", "counts", "kinds", "words", "share", "pairs", "quiet", "extra")


def test_recipes_may_hold_values_of_other_types() -> None:
    options, _ = run(default_map={"counts": [2, "4,8"], "pairs": [{"x": 1}], "share": "20%", "extra": False})
    assert options == Outer(place=Path(), counts=(2, 4, 8), pairs={"x": 1}, share=0.2, extra=False)


def test_only_options_without_an_upper_limit_may_be_infinite() -> None:
    assert run("--wait", "inf")[0].wait == float("inf")
    assert run(default_map={"wait": float("inf")})[0].wait == float("inf")
    assert "x: nan is not a finite number" in refused("--place", ".", default_map={"pairs": [{"x": float("nan")}]})


def test_none_stands_for_an_empty_list() -> None:
    assert run("--counts", "none")[0].counts == ()
    assert "'none'" in refused("--place", ".", "--kinds", "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Missing option '--place'"),
        (("--place", __file__), "is a file"),
        (("--place", ".", "--inner-size", "0"), "x>=1"),
        (("--place", ".", "--rate", "1"), "0<=x<1"),
        (("--place", ".", "--rate", "nan"), "nan is not a number"),
        (("--place", ".", "--wait", "nan"), "nan is not a number"),
        (("--place", ".", "--ratio", "-inf"), "-inf is not a finite number"),
        (("--place", ".", "--heat", "inf", "--teacher", "x"), "inf is not a finite number"),
        (("--place", ".", "--counts", "1,0"), "0 is not in the range x>=1"),
        (("--place", ".", "--kinds", "a,c"), "'c' is not one of 'a', 'b'"),
        (("--place", ".", "--share", "3"), "'3' is not a percentage"),
        (("--place", ".", "--pairs", "x"), "'x' is not of the form KEY=VALUE"),
    ],
)
def test_wrong_values_are_refused(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_an_optional_group_needs_its_required_option() -> None:
    assert run("--teacher", "t", "--heat", "3")[0].teacher == Teacher(name="t", heat=3.0)
    assert run(default_map={"heat": 3.0})[0].teacher is None, "a recipe may hold the value ready"
    assert "--heat goes with --teacher" in refused("--place", ".", "--heat", "2")
    assert "--load goes with --teacher" in refused("--place", ".", default_map={"load": "4bit"})


def test_former_names_work_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    done = CliRunner().invoke(command, ["--place", ".", "--inner-sise", "9"])
    assert done.exit_code == 0 and "--inner-sise is now --inner-size" in caplog.text
    assert SEEN[-1] == (Outer(place=Path(), inner=Inner(size=9)), ("place", "size"))
    assert run("--inner-size", "4", default_map={"inner_sise": 8})[0].inner.size == 4
    assert run("--inner-sise", "4", default_map={"inner_size": 8})[0].inner.size == 4


def test_help_shows_the_defaults_of_the_fields_and_no_former_names() -> None:
    page = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=200).output.split())
    for shown in (
        "Size. [default: 3; x>=1]",
        "Counts. [default: 1,4]",
        "Share. [default: 10%]",
        "Words. [default: none]",
        "[required]",
    ):
        assert shown in page
    assert "--extra / --no-extra" in page and "sise" not in page and "--hidden" not in page


def test_a_field_of_another_type_needs_a_parser() -> None:
    def unreadable(options: Unreadable) -> None: ...

    with pytest.raises(TypeError, match="give the option a parse function"):
        with_options(unreadable)
