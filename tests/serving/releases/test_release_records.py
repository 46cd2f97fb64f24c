"""What a release keeps, writes into the repository and ends, where parts of it fail. A stand-in takes the place of Triton."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from serving import releases
from serving.control_socket import ReleaseRequest
from serving.errors import ServerError
from serving.layout import HISTORY, current_generation, generations
from serving.model_names import pinned_model, step_models
from serving.options import Layout
from serving.promotion_history import read_history
from serving.release import Tell
from serving.release_target import OtherServer, load
from serving.served_view import open_view
from tests.helpers.packages import write_package
from tests.helpers.stand_in_triton import Kept, StandIn, start


def fails_at(action: str, model: str, error: Exception | None = None) -> Callable[[str, str], None]:
    """What lets one action of the stand-in fail."""

    def fails(done: str, with_model: str) -> None:
        if (done, with_model) == (action, model):
            raise error or ServerError("it answers otherwise")

    return fails


class KeptTarget:
    """A server of ``tritonize serve``, asked without its socket."""

    def __init__(self, kept: Kept, repository: Path) -> None:
        self.repository = repository
        self.kept = kept

    def loaded(self) -> Mapping[str, str]:
        return self.kept.releases.handle(ReleaseRequest(action="states"), print)["loaded"]

    def promote(self, name: str, generation: str, tell: Tell) -> None:
        self.kept.ask("promote", name, generation, tell)

    def load(self, name: str, generation: str, tell: Tell) -> None:
        self.kept.ask("load", name, generation, tell)

    def unload(self, name: str, generation: str) -> None:
        self.kept.ask("unload", name, generation)


def own_models(name: str, generation: str) -> set[str]:
    return {pinned_model(name, generation), *step_models(name, generation)}


# --- what answered before ---------------------------------------------------------------------------------------------------------


def test_the_generation_that_answers_stays_held_when_it_is_loaded_again(
    kept: Kept, triton: StandIn, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = generations(models, "one")[-1]
    kept.ask("load", "one", first)
    kept.view.refresh()
    assert f"one.{first} is not loaded after the restart: load it again with: tritonize load one {first}" in caplog.text
    triton.versions = {}
    start(triton, models, "one")
    before = dict(triton.versions)
    second = write_package(models, "one", keep=1)
    assert generations(models, "one") == [first, second]
    triton.fails = fails_at("check", "one")
    with pytest.raises(ServerError, match=f"one answers with {first} as before"):
        kept.ask("promote", "one", second)
    assert triton.versions == before
    kept.view.refresh()
    assert kept.view.generation_of("one") == first


def test_only_what_was_loaded_beside_is_missed_after_a_restart(
    kept: Kept, triton: StandIn, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = write_package(models, "one", keep=2)
    kept.ask("promote", "one", second)
    kept.ask("load", "one", second)
    kept.ask("unload", "one", second)
    kept.view.refresh()
    assert "is not loaded after the restart" not in caplog.text and kept.view.generation_of("one") == second


def test_a_view_can_choose_what_it_does_not_hold(models: Path) -> None:
    with open_view(models) as view:
        second = write_package(models, "one", keep=2)
        view.choose("one", second)
        assert view.generation_of("one") == second
        write_package(models, "one", keep=1)
        assert second in generations(models, "one")


def test_nothing_is_loaded_or_unloaded_if_what_answered_cannot_be_chosen(
    kept: Kept, triton: StandIn, models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)
    choose = kept.view.choose

    def fails(name: str, generation: str) -> None:
        if generation == first:
            raise KeyError(generation)
        choose(name, generation)

    monkeypatch.setattr(kept.view, "choose", fails)
    triton.fails = fails_at("check", "one")
    with pytest.raises(ServerError, match=f"not undone completely: KeyError: '{first}'; one answers with {second}"):
        kept.ask("promote", "one", second)
    assert "Traceback" in caplog.text
    assert triton.calls.count(("load", "one")) == 1
    assert set(step_models("one", second)) <= triton.versions.keys()
    assert (kept.view.folder / f"one.{second}_model").exists(), "it answers still"


@pytest.mark.parametrize("layout", ["ensemble", "fused"])
def test_what_clients_could_call_stays_after_a_refusal(tmp_path: Path, triton: StandIn, layout: Layout) -> None:
    models = tmp_path / "layouts"
    first = write_package(models, "one", layout=layout)
    with open_view(models) as view:
        triton.folder = view.folder
        start(triton, models, "one", layout)
        kept, second = Kept(view, triton), write_package(models, "one", layout=layout, keep=2)
        kept.ask("load", "one", second)
        before = dict(triton.versions)
        triton.fails = fails_at("check", "one")
        with pytest.raises(ServerError, match=f"one answers with {first} as before"):
            kept.ask("promote", "one", second)
        assert triton.versions == before and pinned_model("one", second) in before
        assert (view.folder / pinned_model("one", second)).exists()
        assert triton.calls[-2:] == [("expect", "one", second), ("expect", pinned_model("one", second), "1")]
        write_package(models, "one", keep=1)
        assert second in generations(models, "one")
        kept.ask("unload", "one", second)
        assert not triton.versions.keys() & own_models("one", second)


# --- what is loaded and unloaded by default ---------------------------------------------------------------------------------------


def test_a_package_is_loaded_as_a_restart_would_load_it(kept: Kept, triton: StandIn, models: Path) -> None:
    write_package(models, "two")
    kept.ask("load", "two")
    first, second = generations(models, "two")[-1], write_package(models, "two", keep=2)
    kept.ask("promote", "two")
    assert triton.versions["two"] == second, "promote takes the newest one"
    kept.ask("promote", "two", first)
    kept.ask("unload", "two")
    assert load(KeptTarget(kept, models), "two", None, print) == first
    assert triton.versions["two"] == current_generation(models, "two") == first
    assert load(KeptTarget(kept, models), "two", None, print) == second, "beside the one that answers"
    assert triton.versions["two"] == first and pinned_model("two", second) in triton.versions


def test_what_answers_is_not_loaded_twice_by_default(kept: Kept, triton: StandIn, models: Path) -> None:
    first, before, target = generations(models, "one")[-1], dict(triton.versions), KeptTarget(kept, models)
    with pytest.raises(ServerError, match=f"^one already answers with {first}, the newest generation\n") as raised:
        load(target, "one", None, print)
    assert raised.value.hint.endswith("tritonize load one GENERATION") and triton.versions == before
    assert load(target, "one", first, print) == first and pinned_model("one", first) in triton.versions


def test_what_another_server_answers_with_is_not_called_another_generation(
    fused: Path, other: OtherServer, triton: StandIn
) -> None:
    first = generations(fused, "one")[-1]
    with pytest.raises(ServerError, match=f"^one already answers with {first}, the newest generation\n"):
        load(other, "one", None, print)
    write_package(fused, "one", layout="fused", keep=2)
    with pytest.raises(ServerError, match="another generation of it cannot be loaded beside it"):
        load(other, "one", None, print)
    assert triton.versions == {"one": first}


def test_a_generation_is_unloaded_whatever_its_package_does(kept: Kept, triton: StandIn, models: Path) -> None:
    write_package(models, "two")
    kept.ask("load", "two")
    first, second = generations(models, "two")[-1], write_package(models, "two", keep=2)
    kept.ask("load", "two", second)
    with pytest.raises(ServerError, match=f"two.{first} is not loaded under its own name: it answers as two") as raised:
        kept.ask("unload", "two", first)
    assert raised.value.hint == "unload the whole model with: tritonize unload two"
    kept.ask("unload", "two")
    assert not triton.versions.keys() & own_models("two", first) and own_models("two", second) <= triton.versions.keys()
    kept.ask("unload", "two", second)
    assert not triton.versions.keys() & own_models("two", second)
    assert not (kept.view.folder / "two").exists()


def test_what_stays_loaded_is_named_with_the_command_that_ends_it(kept: Kept, triton: StandIn, models: Path) -> None:
    first, second, told = generations(models, "one")[-1], write_package(models, "one", keep=2), list[str]()
    kept.ask("load", "one", first)
    kept.ask("promote", "one", second, told.append)
    assert told[-1] == f"one.{first} stays loaded: unload it with: tritonize unload one {first}"
    kept.ask("unload", "one", first)
    assert not triton.versions.keys() & own_models("one", first)


# --- requests in flight -----------------------------------------------------------------------------------------------------------


def test_steps_stay_while_a_request_that_is_undone_needs_them(kept: Kept, triton: StandIn, models: Path) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)
    triton.fails, triton.busy = fails_at("check", "one"), {("one", second)}
    with pytest.raises(ServerError, match=f"it was not undone completely: one {second} still answers a request after 660 s"):
        kept.ask("promote", "one", second)
    assert triton.versions["one"] == first
    assert set(step_models("one", second)) <= triton.versions.keys()


def test_steps_stay_while_a_request_from_before_needs_them(kept: Kept, triton: StandIn, models: Path) -> None:
    first, second, told = generations(models, "one")[-1], write_package(models, "one", keep=2), list[str]()
    triton.busy = {("one", first)}
    kept.ask("promote", "one", second, told.append)
    assert told[-1].startswith(f"warning: one {first} is not unloaded: one {first} still answers a request after 660 s")
    assert set(step_models("one", first)) <= triton.versions.keys()


def test_steps_stay_while_a_request_of_what_is_unloaded_needs_them(kept: Kept, triton: StandIn, models: Path) -> None:
    write_package(models, "two")
    kept.ask("load", "two")
    two = generations(models, "two")[-1]
    triton.busy = {("two", two)}
    with pytest.raises(ServerError, match=f"two {two} still answers a request after 660 s: its steps stay loaded"):
        kept.ask("unload", "two")
    assert set(step_models("two", two)) <= triton.versions.keys()
    second = write_package(models, "one", keep=2)
    kept.ask("load", "one", second)
    triton.busy = {(pinned_model("one", second), "1")}
    with pytest.raises(ServerError, match="still answers a request after 660 s: its steps stay loaded"):
        kept.ask("unload", "one", second)
    assert set(step_models("one", second)) <= triton.versions.keys()


def test_the_steps_that_are_undone_end_after_the_last_request(kept: Kept, triton: StandIn, models: Path) -> None:
    second = write_package(models, "one", keep=2)
    triton.fails = fails_at("check", "one")
    with pytest.raises(ServerError):
        kept.ask("promote", "one", second)
    back = len(triton.calls) - triton.calls[::-1].index(("load", "one"))
    first_step = triton.calls.index(("unload", step_models("one", second)[0]))
    assert ("drain", "one") in triton.calls[back:first_step]


# --- the repository ---------------------------------------------------------------------------------------------------------------


def test_the_supervisor_writes_into_the_repository_what_answers(kept: Kept, models: Path) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=9)
    third, found = write_package(models, "one", keep=9), list[str | None]()

    def tell(line: str) -> None:
        if line.endswith(" is unloaded"):
            found.append(current_generation(models, "one"))

    kept.ask("promote", "one", third, tell)
    assert read_history(models, "one") == [first, third], f"{second} has not answered"
    kept.ask("promote", "one", first, tell)
    assert found == [third, first] and read_history(models, "one") == [first]
    fourth = write_package(models, "one", keep=9)
    kept.ask("promote", "one", first)
    assert current_generation(models, "one") == first != fourth, "the generation that answers already"


def test_a_promotion_succeeds_if_the_old_generation_cannot_be_unloaded(kept: Kept, triton: StandIn, models: Path) -> None:
    first, second, told = generations(models, "one")[-1], write_package(models, "one", keep=2), list[str]()

    def dies(action: str, model: str) -> None:
        triton.is_dead = (action, model) == ("unload", step_models("one", first)[0])

    triton.fails = dies
    kept.ask("promote", "one", second, told.append)
    assert told[-1].startswith(f"warning: one {first} is not unloaded: unload one.{first}_preprocess: no server answers")
    assert current_generation(models, "one") == kept.view.generation_of("one") == second


def test_a_repository_that_cannot_be_written_is_an_error(
    kept: Kept, triton: StandIn, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = generations(models, "one")[-1], write_package(models, "one", keep=2)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "models/one")

    monkeypatch.setattr(releases, "record_promotion", refuse)
    with pytest.raises(ServerError, match=f"one answers with {second}, but cannot write models/one: No space left") as raised:
        kept.ask("promote", "one", second)
    assert raised.value.hint.endswith(f"tritonize promote one {second}")
    assert triton.versions["one"] == second and not triton.versions.keys() & own_models("one", first)


def test_a_read_only_repository_is_told(kept: Kept, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers with the generation; only one that is started later may not."""
    second, told = write_package(models, "one", keep=2), list[str]()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "models/one")

    monkeypatch.setattr(releases, "record_promotion", refuse)
    kept.ask("promote", "one", second, told.append)
    assert [line for line in told if line.startswith("warning: models/one Read-only file system: a server that is started later")]


# --- a server of others -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def fused(tmp_path: Path) -> Path:
    write_package(tmp_path / "fused", "one", layout="fused")
    return tmp_path / "fused"


@pytest.fixture
def other(fused: Path, triton: StandIn) -> OtherServer:
    """A server that reads a repository itself and answers with its only generation."""
    triton.folder, triton.versions = fused, {"one": generations(fused, "one")[-1]}
    return OtherServer(fused, "")


def test_what_could_not_be_undone_is_not_begun(fused: Path, other: OtherServer, triton: StandIn) -> None:
    first = generations(fused, "one")[-1]
    second, third = (write_package(fused, "one", layout="fused", keep=2) for _ in range(2))
    assert generations(fused, "one") == [second, third]
    with pytest.raises(ServerError, match=f"one answers with {first}, which {fused} does not hold any more") as raised:
        other.promote("one", third, print)
    assert "tritonize unload one, tritonize load one" in raised.value.hint
    assert triton.versions == {"one": first} and ("load", "one") not in triton.calls
    other.unload("one", "")
    other.load("one", third, print)
    assert triton.versions == {"one": third}


def test_what_another_server_answers_with_stays_until_the_new_generation_is_good(
    fused: Path, other: OtherServer, triton: StandIn
) -> None:
    first, second = generations(fused, "one")[-1], write_package(fused, "one", layout="fused", keep=2)
    history = read_history(fused, "one")

    def packages(action: str, model: str) -> None:
        if (action, model) == ("check", "one"):
            write_package(fused, "one", layout="fused", keep=1)
            assert {first, second} <= set(generations(fused, "one"))
            raise ServerError("it answers otherwise")

    triton.fails = packages
    with pytest.raises(ServerError, match=f"one answers with {first} as before"):
        other.promote("one", second, print)
    assert triton.versions == {"one": first} and current_generation(fused, "one") == first
    assert history == [first, second] and read_history(fused, "one") == [first]


def test_the_refused_generation_is_not_loaded_twice(fused: Path, other: OtherServer, triton: StandIn) -> None:
    first, second = generations(fused, "one")[-1], write_package(fused, "one", layout="fused", keep=2)

    def deletes(action: str, model: str) -> None:
        if (action, model) == ("check", "one"):
            shutil.rmtree(fused / "one" / first)
            raise ServerError("it answers otherwise")

    triton.fails = deletes
    with pytest.raises(ServerError, match=f"it was not undone completely: .*; one answers with {second}"):
        other.promote("one", second, print)
    assert triton.calls.count(("load", "one")) == 1


def test_a_first_load_that_is_refused_leaves_the_repository_as_it_was(fused: Path, other: OtherServer, triton: StandIn) -> None:
    first = generations(fused, "one")[-1]
    second = write_package(fused, "one", layout="fused", keep=2)
    other.promote("one", first, print)
    other.unload("one", "")
    (fused / "one" / HISTORY).write_text(f"{first}\n")
    before = {path: path.read_bytes() for path in (fused / "one").iterdir() if path.is_file()}
    triton.fails = fails_at("check", "one")
    with pytest.raises(ServerError, match="it answers otherwise; one is not served"):
        other.load("one", second, print)
    assert {path: path.read_bytes() for path in (fused / "one").iterdir() if path.is_file()} == before
    assert triton.versions == {} and current_generation(fused, "one") == first


def test_another_server_has_the_history_of_what_has_answered(fused: Path, other: OtherServer) -> None:
    first = generations(fused, "one")[-1]
    second, third = (write_package(fused, "one", layout="fused", keep=9) for _ in range(2))
    other.promote("one", third, print)
    assert read_history(fused, "one") == [first, third], f"{second} has not answered"
    other.promote("one", first, print)
    assert read_history(fused, "one") == [first] and current_generation(fused, "one") == first
