"""A backend in the place of Triton's vLLM backend: its tensors, and an answer that tells what was asked.

What it takes from a package is what that backend takes: ``model.json`` beside it, and the checkpoint at the path that this names.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

STRING, BOOL, UINT32 = "TYPE_STRING", "TYPE_BOOL", "TYPE_UINT32"
FLAGS = ("stream", "exclude_input_in_output", "return_finish_reason", "return_cumulative_logprob", "return_logprobs")
FLAGS += ("return_num_input_tokens", "return_num_output_tokens")
INPUTS = {"text_input": (STRING, 1), "image": (STRING, -1), "sampling_parameters": (STRING, 1), "embedding_request": (STRING, 1)}
INPUTS |= dict.fromkeys(FLAGS, (BOOL, 1))
OUTPUTS = {"text_output": (STRING, -1), "finish_reason": (STRING, -1), "cumulative_logprob": ("TYPE_FP32", -1)}
OUTPUTS |= {"logprobs": (STRING, -1), "num_input_tokens": (UINT32, 1), "num_output_tokens": (UINT32, -1)}


class TritonPythonModel:
    """The model."""

    @staticmethod
    def auto_complete_config(config):
        """Add the tensors."""
        for name, (kind, size) in INPUTS.items():
            config.add_input({"name": name, "data_type": kind, "dims": [size], "optional": name != "text_input"})
        for name, (kind, size) in OUTPUTS.items():
            config.add_output({"name": name, "data_type": kind, "dims": [size]})
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
                made = {
                    "text_output": np.array([piece.encode()], dtype=np.object_),
                    "finish_reason": np.array([b"stop" if last else b"None"], dtype=np.object_),
                    "cumulative_logprob": np.array([-0.5], dtype=np.float32),
                    "logprobs": np.array([b"null"], dtype=np.object_),
                    "num_input_tokens": np.array(2, dtype=np.uint32),  # of no dimension, as in that backend
                    "num_output_tokens": np.array([1], dtype=np.uint32),
                }
                tensors = [
                    pb_utils.Tensor(name, value)
                    for name, value in made.items()
                    if name == "text_output" or given.get(f"return_{name}", False)
                ]
                sender.send(pb_utils.InferenceResponse(tensors), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
