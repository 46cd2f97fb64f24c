"""Commands in hints reach the server that the message is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.cli import main
from serving import release_target
from serving.errors import ServerError
from serving.options import ServeOptions, ServerPort, StopOptions
from serving.release_options import ReleaseOptions
from serving.reporting import logger
from serving.server_naming import naming_server, server_named
from tests.helpers.surroundings import free_port

TEXT = "see tritonize status; tritonize promote a.b 20260101000000, tritonize load one: tritonize stop, tritonize serve"


@pytest.mark.parametrize(
    ("options", "release", "stop", "serve"),
    [
        (ReleaseOptions(), "", "", ""),
        (StopOptions(http_port=9500), " --http-port 9500", " --http-port 9500", " --http-port 9500"),
        (
            ReleaseOptions(url="host:1", repository=Path("a b")),
            " --url host:1 --repository 'a b'",
            "",
            " --repository 'a b'",
        ),
        (
            ServeOptions(http_port=9500, repository=Path("/models")),
            " --http-port 9500",
            " --http-port 9500",
            " --http-port 9500 --repository /models",
        ),
    ],
)
def test_commands_get_the_options_that_were_given(options: ServerPort, release: str, stop: str, serve: str) -> None:
    named = naming_server(TEXT, options)
    assert named == (
        f"see tritonize status{release}; tritonize promote a.b 20260101000000{release}, tritonize load one{release}: "
        f"tritonize stop{stop}, tritonize serve{serve}"
    )
    assert naming_server(named, options) == named


def test_log_lines_and_interruptions_are_completed_too(caplog: pytest.LogCaptureFixture) -> None:
    options = ServerPort(http_port=9500)
    with pytest.raises(KeyboardInterrupt, match="tritonize status --http-port 9500 shows"), server_named(options):
        logger.warning("load it with: tritonize load one")
        raise KeyboardInterrupt("tritonize status shows what answers")
    logger.warning("load it with: tritonize load two")
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "tritonize load one --http-port 9500",
        "tritonize load two",
    ]


def test_the_note_of_an_error_is_completed_with_its_hint() -> None:
    with pytest.raises(ServerError) as raised, server_named(StopOptions(http_port=9500)):
        raise ServerError("one is not served", hint="load it with: tritonize load one")
    assert raised.value.hint == "load it with: tritonize load one --http-port 9500"
    assert raised.value.__notes__ == [f"hint: {raised.value.hint}"]


def test_a_refused_command_names_the_server(
    in_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    assert main(["promote", "one", "--http-port", str(port)]) == 1
    assert f"(start one with: tritonize serve --http-port {port}; or name" in capsys.readouterr().err
    monkeypatch.setattr(release_target.ModelControl, "loaded", lambda _: {})
    assert main(["unload", "one", "--url", "127.0.0.1:9", "--repository", "models"]) == 1
    assert "(see what is served with: tritonize status --url 127.0.0.1:9 --repository models)" in capsys.readouterr().err
