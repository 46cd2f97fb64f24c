"""Which generations of a package stay, and which one is current, where a generation is packaged or removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from export import cli
from serving.errors import ArtifactError
from serving.integrity import check_ensemble, check_generation
from serving.layout import HISTORY, generations
from serving.leases import take_lease
from serving.options import Layout
from serving.promotion_history import read_history
from serving.promotion_record import record_promotion
from serving.pruning import prune
from serving.removal import remove_one_generation
from tests.helpers.packages import generation_of, write_package

SWITCHES: list[tuple[Layout, Layout]] = [("ensemble", "fused"), ("fused", "ensemble"), ("ensemble", "ensemble")]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The folder of a repository that the tests write."""
    return tmp_path / "models"


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_what_rollback_goes_back_to_outlasts_what_was_never_promoted(models: Path, before: Layout, after: Layout) -> None:
    first, second = (write_package(models, "x", layout=before, keep=2) for _ in range(2))
    for _ in range(3):  # packaged and not promoted, again and again
        last = write_package(models, "x", layout=after, keep=2, current=False)
        assert (generation_of(models, "x"), generations(models, "x")) == (second, [first, second, last])
        assert read_history(models, "x") == [first, second]
        check_ensemble(models, "x")
        check_generation(models, "x", last)
    assert prune(models, "x", 2) == [last], "another packaging does not know it"
    assert prune(models, "x", 1) == [first], "no more stay than are asked for"


def test_the_newest_stay_where_the_history_tells_of_none(models: Path) -> None:
    written = [write_package(models, "x", keep=9) for _ in range(4)]
    (models / "x" / HISTORY).unlink()
    assert prune(models, "x", 2) == [written[1], written[0]]
    record_promotion(models, "x", written[2], written[3])
    never = [write_package(models, "x", keep=3, current=False) for _ in range(3)]
    assert generations(models, "x") == [written[2], written[3], never[-1]], "of those that never answered, the newest"


def test_a_model_without_a_current_generation_gets_one(models: Path) -> None:
    assert write_package(models, "x", current=False) == generation_of(models, "x")
    (models / "x" / "config.pbtxt").unlink()
    assert write_package(models, "x", current=False) == generation_of(models, "x")


@pytest.mark.parametrize(("before", "after"), SWITCHES)
def test_one_generation_is_removed(models: Path, before: Layout, after: Layout, capsys: pytest.CaptureFixture[str]) -> None:
    write_package(models, "x", layout=before)
    entries = sorted(path.relative_to(models) for path in models.rglob("*"))
    failed = write_package(models, "x", layout=after, current=False)
    assert cli.main(["remove", "x", failed, "--repository", str(models)]) == 0
    assert f"removed {failed} of x" in capsys.readouterr().out
    assert sorted(path.relative_to(models) for path in models.rglob("*") if path.name != "warmup" or any(path.iterdir())) == entries


def test_a_generation_in_use_is_not_removed(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_package(models, "x")
    second = write_package(models, "x", current=False)
    with pytest.raises(ArtifactError, match=f"{first} is the current generation of x"):
        remove_one_generation(models, "x", first)
    lease = take_lease(models / "x" / second)
    assert lease is not None
    with pytest.raises(ArtifactError, match=f"a server uses .*/x/{second}") as raised:
        remove_one_generation(models, "x", second)
    assert raised.value.hint == f"unload it first: tritonize unload x {second}"
    os.close(lease)
    for name in ("x", "y"):
        with pytest.raises(ArtifactError, match=f"holds no generation 20200101000000 of {name}"):
            remove_one_generation(models, name, "20200101000000")
    for option in ("--with-artifacts", "--force"):
        assert cli.main(["remove", "x", second, "--repository", str(models), option]) == 2
        assert f"{option} has no effect with a GENERATION" in capsys.readouterr().err
    assert generations(models, "x") == [first, second]
