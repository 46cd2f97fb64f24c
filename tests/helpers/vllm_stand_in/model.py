"""A backend in the place of Triton's vLLM backend: its tensors, and an answer that tells what was asked.

What it takes from a package is what that backend takes: ``model.json`` beside it, and the checkpoint at the path that this names.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

STRING, BOOL = "TYPE_STRING", "TYPE_BOOL"
INPUTS = {"text_input": STRING, "stream": BOOL, "sampling_parameters": STRING, "exclude_input_in_output": BOOL}
INPUTS |= {"return_finish_reason": BOOL, "return_num_output_tokens": BOOL}
OUTPUTS = {"text_output": STRING, "finish_reason": STRING, "num_output_tokens": "TYPE_UINT32"}


class TritonPythonModel:
    """The model."""

    @staticmethod
    def auto_complete_config(config):
        """Add the tensors."""
        for name, kind in INPUTS.items():
            config.add_input({"name": name, "data_type": kind, "dims": [1], "optional": name != "text_input"})
        for name, kind in OUTPUTS.items():
            config.add_output({"name": name, "data_type": kind, "dims": [-1]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        """Read the arguments, and the checkpoint where they say that it is."""
        self.kind = args["model_instance_kind"]
        self.arguments = json.loads((Path(pb_utils.get_model_dir()) / "model.json").read_bytes())
        self.files = sorted(path.name for path in Path(self.arguments["model"]).iterdir())

    def execute(self, requests):
        """Answer each request with what the model was told and asked, in two pieces if it is a stream."""
        for request in requests:
            asked = {name: pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS}
            given = {name: tensor.as_numpy()[0] for name, tensor in asked.items() if tensor is not None}
            told = {"kind": self.kind, "files": self.files, "dtype": self.arguments["dtype"]}
            told["sampling_parameters"] = json.loads(given["sampling_parameters"])
            text = json.dumps(told)
            if not given["exclude_input_in_output"]:
                text = given["text_input"].decode() + text
            pieces = [text[:5], text[5:]] if given["stream"] else [text]
            sender = request.get_response_sender()
            for piece in pieces:
                last = piece is pieces[-1]
                sender.send(
                    pb_utils.InferenceResponse(
                        [
                            pb_utils.Tensor("text_output", np.array([piece.encode()], dtype=np.object_)),
                            pb_utils.Tensor("finish_reason", np.array([b"stop" if last else b"None"], dtype=np.object_)),
                            pb_utils.Tensor("num_output_tokens", np.array([1], dtype=np.uint32)),
                        ]
                    ),
                    flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0,
                )
