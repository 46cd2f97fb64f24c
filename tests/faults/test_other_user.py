"""Another user of the machine reads no text and no key of the server, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from serving.access import API_KEY_VARIABLE
from serving.isolation import SHARED_MEMORY, TRACE
from serving.options import PackageOptions, ServeOptions
from serving.repository import package
from serving.server_record import find_running
from tests.helpers.good_traffic import GoodTraffic, json_request
from tests.helpers.served_processes import log_path, processes
from tests.helpers.servers import running, serve_options

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user"),
]
ATTEMPTS = Path(__file__).parents[1] / "helpers" / "other_user.py"
NOBODY = 65534
KEY = "a-secret-key-of-24-characters"
WORD = "quokkaphrase"
REGISTER = "/v2/systemsharedmemory/region/x/register"


@pytest.fixture(scope="module")
def public() -> Iterator[Path]:
    """A folder that everybody may enter, unlike those of pytest."""
    folder = Path(tempfile.mkdtemp(prefix="everybody-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, bundle: Path, public: Path) -> Iterator[ServeOptions]:
    folder = tmp_path_factory.mktemp("watched")
    package(PackageOptions(bundle=bundle, repository=folder / "model_repository", name="one", precision="fp32", device="cpu"))
    keys = folder / "keys"
    keys.touch(mode=0o600)
    keys.write_text(KEY)
    served = replace(serve_options(folder / "model_repository"), api_key_file=keys, access_log=public / "access.log")
    with running(served):
        yield served


def look(options: ServeOptions, *, prefix: str | None = None, seconds: float = 3) -> dict[str, object]:
    """Run the other user's attempts, and return what they found."""
    running = find_running(options.http_port)
    assert running is not None
    infer = json.dumps(json_request("x"))
    given = {
        "user": NOBODY,
        "seconds": seconds,
        "prefix": prefix or f"{TRACE}{running.pid}_",
        "words": [WORD, KEY],
        "folders": [str(SHARED_MEMORY), tempfile.gettempdir()],
        "files": [str(path) for path in (log_path(options), options.api_key_file, options.access_log)],
        "pids": [running.pid, *(process.pid for process in processes(options))],
        "http_port": options.http_port,
        "requests": {
            "inference": ("POST", "/v2/models/one/infer", infer),
            "register": ("POST", REGISTER, json.dumps({"key": "/x", "offset": 0, "byte_size": 8})),
            "unload": ("POST", "/v2/repository/models/one/unload", "{}"),
        },
    }
    run = subprocess.run([sys.executable, ATTEMPTS, json.dumps(given)], capture_output=True, text=True, check=True)
    found: dict[str, object] = json.loads(run.stdout)
    return found


def test_nothing_is_found(options: ServeOptions, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, KEY)
    texts = {f"{WORD} {number} was superb": () for number in range(8)}
    with GoodTraffic(options, "one", texts, ("pipeline grpc", "pipeline http") * 2, compared=False) as traffic:
        found = look(options)
    assert len(traffic.answered()) > 20 and not traffic.failures()
    keeper = find_running(options.http_port)
    assert keeper is not None
    regions = [path for path in SHARED_MEMORY.iterdir() if path.name.startswith(f"{TRACE}{keeper.pid}_")]
    sys.stdout.write(f"\n{found['looked']} looks during {len(traffic.answered())} requests, {len(regions)} regions: {found}\n")
    assert regions
    for kind in ("readable", "writable", "connected", "words", "entered"):
        assert found[kind] == [], kind
    assert found["refused"] == {"inference": 401, "register": 401, "unload": 401}
    log = log_path(options)
    for private in (log, public / "access.log", *regions):
        assert private.stat().st_mode & 0o077 == 0, private
    assert WORD.encode() not in (public / "access.log").read_bytes() + log.read_bytes()


def test_the_search_finds_what_is_public(options: ServeOptions) -> None:
    region = SHARED_MEMORY / f"{TRACE}{os.getpid()}_public"
    region.write_text(f"… {WORD} …", encoding="utf-8")
    region.chmod(0o644)
    shown = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", KEY])
    try:
        found = look(options, prefix=f"{TRACE}{os.getpid()}_", seconds=0.2)
    finally:
        region.unlink()
        shown.kill()
        shown.wait()
    assert found["readable"] == [str(region)]
    assert found["words"] == sorted([f"{WORD} in {region}", f"{KEY} in /proc/{shown.pid}/cmdline"])
