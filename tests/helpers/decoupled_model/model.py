"""A decoupled model that writes pieces of text without a network, with the tensors of a generation model.

``sampling_parameters`` is JSON: ``pieces`` (how many), ``delay_ms`` (before each), ``size`` (characters of each), ``fail_at`` (the
piece in place of which it fails, with a stack trace), ``error`` and ``code`` (what it answers instead). When a request
ends, one line of JSON goes to the file that the configuration names: how many pieces were produced, and whether it was cancelled.
"""

import json
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args):
        self.record = json.loads(args["model_config"])["parameters"]["record"]["string_value"]
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy().reshape(-1)[0]
            given = pb_utils.get_input_tensor_by_name(request, "sampling_parameters")
            try:
                options = json.loads(given.as_numpy().reshape(-1)[0]) if given is not None else {}
            except ValueError as error:
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))), flags=FINAL)
                continue
            if "error" in options:
                code = getattr(pb_utils.TritonError, options["code"])
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(options["error"], code)), flags=FINAL)
                continue
            threading.Thread(target=self.write, args=(sender, text, options)).start()

    def write(self, sender, text, options):
        digest = zlib.crc32(len(text).to_bytes(4, "little") + text) + 2**32 * (len(text) % 2**20)
        pieces, produced, cancelled = options.get("pieces", 3), 0, False
        for piece in range(pieces):
            if options.get("delay_ms"):
                time.sleep(options["delay_ms"] / 1000)
            cancelled = sender.is_cancelled()
            if cancelled:
                sender.send(
                    pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)), flags=FINAL
                )
                break
            if piece == options.get("fail_at"):
                message = 'Traceback (most recent call last):\n  File "/opt/secret.py"'
                sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(message)), flags=FINAL)
                break
            written = f"{piece} ".encode().ljust(options.get("size", 0), b"x")
            tensors = [
                pb_utils.Tensor("text_output", np.array([written], dtype=np.object_)),
                pb_utils.Tensor("DIGEST", np.array([digest], np.int64)),
            ]
            sender.send(pb_utils.InferenceResponse(tensors), flags=FINAL if piece == pieces - 1 else 0)
            produced += 1
        with self.lock, Path(self.record).open("a") as record:
            record.write(json.dumps({"text": text.decode(), "produced": produced, "cancelled": cancelled}) + "\n")
