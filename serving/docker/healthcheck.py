"""Send a real request to every ensemble, and exit with 0 if all answer.

Triton's readiness report is not enough: a model whose stub process died still reports ready.
"""

import json
import sys
import urllib.request
from pathlib import Path


def main(models: str, url: str) -> None:
    """Send each ensemble the request in its manifest.

    Args:
        models: The model repository.
        url: The HTTP address of the server.
    """
    for path in sorted(Path(models).glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if "probe" in manifest:
            endpoint = f"{url}/v2/models/{manifest['name']}/infer"
            urllib.request.urlopen(endpoint, json.dumps(manifest["probe"]).encode(), timeout=4)  # noqa: S310 - http only


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["/models", "http://127.0.0.1:8000"]))
