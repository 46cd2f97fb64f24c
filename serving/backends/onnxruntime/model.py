"""Python replacement for Triton's C++ ``onnxruntime`` backend, for servers that do not include it.

Triton looks for ``libtriton_onnxruntime.so`` first and for this file second, so a repository with ``backend: "onnxruntime"``
runs on both. This backend reads the same ``config.pbtxt`` fields as the C++ backend (see "Model Config Options" in its README):
ragged inputs with ``batch_input``, ``intra_op_thread_count``, ``inter_op_thread_count``, ``optimization.graph.level`` and the
options of the ``cuda`` provider. It refuses fields that it does not know.

Its instances are processes, not threads as in the C++ backend. The instances of one model map the weights from a single file,
so that they share one copy in memory and in the CPU cache.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from model_session import CPU, open_with_mapped_weights, session_options

PARAMETERS = {"intra_op_thread_count", "inter_op_thread_count"}


class TritonPythonModel:
    """The backend's model. Triton requires this name."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Let waiting requests pass from Triton's process to this one together if the repository turns batching off.

        They are still executed one by one, as by the C++ backend. Only the pass between processes is shared.
        """
        config = auto_complete_model_config.as_dict()
        if "dynamic_batching" not in config:
            for tensor in config["input"]:
                tensor["allow_ragged_batch"] = True  # lets requests of different lengths wait in one queue
            auto_complete_model_config.set_dynamic_batching()
        return auto_complete_model_config

    def initialize(self, args):
        """Create the inference session.

        Raises:
            TritonModelException: The configuration has an unknown field, or ONNX Runtime could not load the provider.
        """
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        unknown = set(parameters) - PARAMETERS
        if unknown:
            raise pb_utils.TritonModelException(f"this onnxruntime backend does not support {', '.join(sorted(unknown))}")
        path = Path(args["model_repository"]) / args["model_version"] / (config.get("default_model_filename") or "model.onnx")
        options, providers = _options(config, parameters), _providers(config, args)
        self._session = None
        if providers == [CPU] and sum(group["count"] for group in config["instance_group"]) > 1:
            self._session = open_with_mapped_weights(path, **options)
            if self._session is None:
                pb_utils.Logger.log_warn(f"{path}: the weights cannot be mapped, so every instance holds a copy of them")
        if self._session is None:
            self._session = ort.InferenceSession(str(path), session_options(**options), providers=providers)
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        if wanted not in self._session.get_providers():  # onnxruntime falls back to the CPU silently
            raise pb_utils.TritonModelException(f"onnxruntime could not load {wanted}: one of its libraries is missing")
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._batch_inputs = [_batch_input(entry) for entry in config.get("batch_input", [])]

    def execute(self, requests):
        """Answer the requests, in one execution if batching is on."""
        if self._batch_inputs:
            return self._run(requests)
        return [response for request in requests for response in self._run([request])]

    def _run(self, requests):
        """Execute the graph once for all requests."""
        inputs = [
            {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self._inputs} for request in requests
        ]
        try:
            outputs = self._session.run(self._outputs, self._ragged_feed(inputs) if self._batch_inputs else inputs[0])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # onnxruntime's errors have no base class, and no client may see a traceback
            if len(requests) > 1:  # find the bad request, and answer the others
                return [response for request in requests for response in self._run([request])]
            pb_utils.Logger.log_error(f"onnxruntime: {error}")
            refusal = pb_utils.TritonError("the model could not run on this input", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=refusal)]
        if len(requests) == 1:
            return [_response(self._outputs, outputs)]
        ends = np.cumsum([len(tensors[self._inputs[0]]) for tensors in inputs])[:-1]
        parts = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [_response(self._outputs, part) for part in parts]

    def _ragged_feed(self, inputs):
        """Return the flat tensors of all requests, and the shape of every row for ``batch_input``."""
        feed = {name: np.concatenate([tensors[name].reshape(-1) for tensors in inputs]) for name in self._inputs}
        for target, source, dtype in self._batch_inputs:
            shapes = [tensors[source].shape for tensors in inputs]
            feed[target] = np.repeat(np.array([shape[1:] for shape in shapes], dtype), [shape[0] for shape in shapes], axis=0)
        return feed


def _response(names, arrays):
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, array) for name, array in zip(names, arrays, strict=True)]
    )


def _options(config, parameters):
    """Return the arguments of :func:`model_session.session_options`."""
    return {
        "threads": int(parameters.get("intra_op_thread_count", 0)),
        "inter_op_threads": int(parameters.get("inter_op_thread_count", 0)),
        "level": config.get("optimization", {}).get("graph", {}).get("level") or None,
    }


def _providers(config, args):
    if args["model_instance_kind"] != "GPU":
        return [CPU]
    ort.preload_dlls()
    options = {"device_id": args["model_instance_device_id"]}
    for accelerator in config.get("optimization", {}).get("execution_accelerators", {}).get("gpu_execution_accelerator", []):
        if accelerator["name"] != "cuda":
            raise pb_utils.TritonModelException(f"this onnxruntime backend does not support the accelerator {accelerator['name']}")
        options |= accelerator.get("parameters", {})
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise pb_utils.TritonModelException(
            "the configuration needs a GPU, but this onnxruntime has no CUDA provider: install onnxruntime-gpu"
        )
    return [("CUDAExecutionProvider", options), CPU]


def _batch_input(entry):
    kind, sources = entry["kind"], entry["source_input"]
    if kind != "BATCH_ITEM_SHAPE" or len(sources) != 1 or len(entry["target_name"]) != 1:
        raise pb_utils.TritonModelException(
            f"this onnxruntime backend does not support batch_input {kind} over {len(sources)} inputs"
        )
    dtype = pb_utils.triton_string_to_numpy(entry["data_type"])
    return entry["target_name"][0], sources[0], dtype
