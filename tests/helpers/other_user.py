"""Everything that another user of the machine can try against a server. Run as a program, it becomes that user first.

It prints what it found as JSON. It imports everything before it becomes the other user, who may be unable to read this Python.
"""

import contextlib
import encodings.idna  # noqa: F401 - names of hosts need it
import http.client
import json
import os
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    given = json.loads(sys.argv[1])
    os.chdir("/")
    os.setgroups([])
    os.setgid(given["user"])
    os.setuid(given["user"])
    words = [word.encode() for word in given["words"]]
    found: dict[str, set[str]] = {"readable": set(), "writable": set(), "connected": set(), "words": set(), "entered": set()}
    ends = time.monotonic() + given["seconds"]
    looked = 0
    while time.monotonic() < ends:
        looked += 1
        for place in given["folders"]:
            look_into(Path(place), given["prefix"], words, found)
        for path in given["files"]:
            try_file(Path(path), words, found)
        look_at_sockets(given["prefix"], found)
        look_at_processes(given["pids"], words, found)
    refused = {name: ask(given["http_port"], *request) for name, request in given["requests"].items()}
    print(json.dumps({name: sorted(values) for name, values in found.items()} | {"refused": refused, "looked": looked}))  # noqa: T201


def look_into(folder: Path, prefix: str, words: list[bytes], found: dict[str, set[str]]) -> None:
    """Read and open for writing what lies in a folder and belongs to the server."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if not path.name.startswith(prefix):
                continue
            if path.is_dir():
                with contextlib.suppress(OSError):
                    any(path.iterdir())
                    found["entered"].add(str(path))
                for name in ("envoy.json", "api_keys", "certificate.json", "admin", "http", "grpc", "metrics"):
                    try_file(path / name, words, found)
                continue
            try_file(path, words, found)


def try_file(path: Path, words: list[bytes], found: dict[str, set[str]]) -> None:
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        found["readable"].add(str(path))
        found["words"].update(f"{word.decode()} in {path}" for word in words if word in content)
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY))
        found["writable"].add(str(path))


def look_at_sockets(prefix: str, found: dict[str, set[str]]) -> None:
    """Connect to every Unix socket of the machine whose path belongs to the server; /proc names them all."""
    for line in Path("/proc/net/unix").read_text().splitlines():
        path = line.split()[-1]
        if f"/{prefix}" in path:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as one:
                one.connect(path)
                found["connected"].add(path)


def look_at_processes(pids: list[int], words: list[bytes], found: dict[str, set[str]]) -> None:
    """Look for the words in the command line of every process, and into the server's own."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes()
                found["words"].update(f"{word.decode()} in {folder}/cmdline" for word in words if word in line)
    for pid in pids:
        for name in ("environ", "maps", "mem"):
            try_file(Path(f"/proc/{pid}/{name}"), words, found)
        with contextlib.suppress(OSError):
            any(Path(f"/proc/{pid}/fd").iterdir())
            found["entered"].add(f"/proc/{pid}/fd")


def ask(port: int, method: str, path: str, body: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path, body, {"Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


if __name__ == "__main__":
    main()
