"""Send a real request to every ensemble, and exit with 0 if all answer.

Triton's readiness report is not enough: a model whose stub process died still reports ready.
"""

import http.client
import json
import os
import re
import socket
import sys
import urllib.parse
from pathlib import Path

SOCKET_SCHEME = "unix:"
CURRENT = re.compile(r"version_policy\s*{\s*specific\s*{\s*versions:\s*(\d{14})\s")
"""What chooses the generation of a package in its configuration."""


def main(models: str, url: str) -> None:
    """Send each ensemble the request in its manifest.

    Args:
        models: The model repository.
        url: The HTTP address of the server, or ``unix:`` and the path of its socket.

    Raises:
        OSError: An ensemble did not answer.
    """
    for config in sorted(Path(models).glob("*/config.pbtxt")):
        current = CURRENT.search(config.read_text(encoding="utf-8", errors="replace"))
        path = config.parent / current[1] / "manifest.json" if current else config
        if current is None or not path.is_file():
            continue
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "probe" not in manifest:
            continue
        connection = _connection(url)
        connection.request("POST", f"/v2/models/{manifest['name']}/infer", json.dumps(manifest["probe"]))
        status = connection.getresponse().status
        connection.close()
        if status != 200:
            raise ConnectionError(f"{manifest['name']} answered with status {status}")


def _connection(url: str) -> http.client.HTTPConnection:
    if not url.startswith(SOCKET_SCHEME):
        return http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=4)
    connection = http.client.HTTPConnection("localhost", timeout=4)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(4)
    connection.sock.connect(url.removeprefix(SOCKET_SCHEME))
    return connection


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["/models", os.environ.get("TRITONIZE_HTTP", "http://127.0.0.1:8000")]))
