"""Exits 0 where every ensemble answers a real request: a server that says it is ready may have lost the process behind a step."""

import json
import sys
import urllib.request
from pathlib import Path


def main(models: str, url: str) -> None:
    """Ask each ensemble what its manifest holds for that."""
    for path in sorted(Path(models).glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "probe" in manifest:
            asked = f"{url}/v2/models/{manifest['name']}/infer"
            urllib.request.urlopen(asked, json.dumps(manifest["probe"]).encode(), timeout=4)  # noqa: S310 - http only


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["/models", "http://127.0.0.1:8000"]))
