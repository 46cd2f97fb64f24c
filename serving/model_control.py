"""Loads, unloads and asks the models of a running Triton over gRPC. A load over HTTP would stall other HTTP clients for seconds."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from serving.errors import NoServerError, RequestError, ServerError
from serving.probe import Probe, check_answers

POLL_SECONDS = 0.05
READY = "READY"
LIVE_SECONDS = 5.0
"""How long a server may take to say that it is live, in seconds."""
UNAVAILABLE = "StatusCode.UNAVAILABLE"
"""Status of an error if nothing answers at the address."""


class ModelControl:
    """The models of a Triton server in explicit mode, as a context manager that closes its connection."""

    def __init__(self, url: str) -> None:
        """Begin without a connection: the first call makes it.

        Args:
            url: The gRPC address: ``host:port``, or ``unix:`` and the path of a socket.
        """
        self._url = url
        self._client = grpcclient.InferenceServerClient(url)

    def __enter__(self) -> Self:
        """Return the control."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the connection."""
        self._client.close()

    def load(self, model: str) -> None:
        """Load a model, or load it again if its files have changed. An ensemble also loads the steps that are not loaded.

        Raises:
            ServerError: Triton could not load it, or did not answer.
        """
        try:
            self._client.load_model(model)
        except InferenceServerException as error:
            raise self._server_error(f"{model} could not be loaded", error) from error

    def unload(self, model: str) -> None:
        """Begin to unload a model. What it is computing is answered first.

        Raises:
            ServerError: Triton refused or did not answer.
        """
        try:
            self._client.unload_model(model)
        except InferenceServerException as error:
            raise self._server_error(f"{model} could not be unloaded", error) from error

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of each version of each model that was ever loaded, as Triton calls it.

        Raises:
            ServerError: Triton did not answer.
        """
        try:
            index = self._client.get_model_repository_index()
        except InferenceServerException as error:
            raise self._server_error("the models could not be listed", error) from error
        return {(model.name, model.version): model.state for model in index.models if model.state}

    def loaded(self) -> dict[str, str]:
        """Return the version of each model that is ready.

        Raises:
            ServerError: Triton did not answer.
        """
        return {model: version for (model, version), state in self.states().items() if state == READY}

    def wait_unloaded(self, model: str, version: str, *, seconds: float) -> bool:
        """Wait until a version of a model is gone: it then has answered all of its requests.

        Args:
            model: The model.
            version: The version.
            seconds: The longest time to wait.

        Returns:
            Whether it is gone.

        Raises:
            ServerError: Triton did not answer.
        """
        return self._wait(lambda state: state == "UNAVAILABLE", model, version, seconds)

    def wait_loaded(self, model: str, version: str, *, seconds: float) -> bool:
        """Wait while a version of a model is being loaded.

        Args:
            model: The model.
            version: The version.
            seconds: The longest time to wait.

        Returns:
            Whether it is loaded, or cannot be.

        Raises:
            ServerError: Triton did not answer.
        """
        return self._wait(lambda state: state != "LOADING", model, version, seconds)

    def _wait(self, is_reached: Callable[[str], bool], model: str, version: str, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not is_reached(self.states().get((model, version), "UNAVAILABLE")):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        return True

    def check(self, probe: Probe, *, seconds: float) -> None:
        """Send a probe, and compare the answer with the one that packaging recorded.

        Args:
            probe: The probe.
            seconds: Time limit.

        Raises:
            RequestError: Triton refused the request.
            ServerError: The answer is another one, or none came in time, or the server has ended.
        """
        try:
            answer = self._stream(probe, seconds) if probe.endpoint == "generate" else self._infer(probe, seconds)
        except InferenceServerException as error:
            if error.status() == UNAVAILABLE and not self._is_live():  # Triton says so of a model, too
                raise self._server_error(f"{probe.ensemble} could not be asked", error) from error
            raise RequestError(f"{probe.ensemble}: {error.message()}", status="INTERNAL") from error
        check_answers(probe, answer)

    def _is_live(self) -> bool:
        """Return whether the server answers at all."""
        try:
            self._client.is_server_live(client_timeout=LIVE_SECONDS)
        except InferenceServerException as error:
            return bool(error.status() != UNAVAILABLE)
        return True

    def _infer(self, probe: Probe, seconds: float) -> dict[str, Any]:
        inputs = [_tensor(entry["name"], entry["shape"], entry["data"]) for entry in probe.body["inputs"]]
        parameters = probe.body.get("parameters") or None
        return _as_json(self._client.infer(probe.ensemble, inputs, parameters=parameters, client_timeout=seconds))

    def _stream(self, probe: Probe, seconds: float) -> dict[str, Any]:
        """Ask a model that streams for one answer. Its inputs and parameters stand beside each other in the request.

        A stream that has ended is closed and not cancelled: Triton 2.51 may otherwise take its request for a running one, and never
        unload the model then.
        """
        types = {tensor.name: tensor.datatype for tensor in self._client.get_model_metadata(probe.ensemble).inputs}
        inputs = [_tensor(name, [1], [value], types[name]) for name, value in probe.body.items() if name in types]
        parameters = {name: value for name, value in probe.body.items() if name not in types}
        answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
        with grpcclient.InferenceServerClient(self._url) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            runs = True
            try:
                client.async_stream_infer(probe.ensemble, inputs, parameters=parameters, enable_empty_final_response=True)
                answer = _first_of_stream(answers, seconds)
                runs = False
            except queue.Empty:
                raise ServerError(f"{probe.ensemble} did not answer within {seconds:.0f} s") from None
            finally:
                client.stop_stream(cancel_requests=runs)  # closing waits until the request ends
        return answer

    def _server_error(self, what: str, error: InferenceServerException) -> ServerError:
        if error.status() == UNAVAILABLE:
            is_private = self._url.startswith("unix:")
            where = "" if is_private else f" at {self._url} ({_first_line(error)})"
            return NoServerError(f"{what}: no server answers{where}")
        return ServerError(f"{what}: {_first_line(error)}")


def _first_of_stream(answers: queue.Queue[tuple[Any, InferenceServerException | None]], seconds: float) -> dict[str, Any]:
    """Return the first answer of a stream once its last one has come.

    Raises:
        InferenceServerException: One of the answers is an error.
        queue.Empty: The next answer did not come in time.
    """
    found: dict[str, Any] = {}
    is_last = False
    while not is_last:
        result, error = answers.get(timeout=seconds)
        if error is not None:
            raise error
        found = found or _as_json(result)
        is_last = result.get_response().parameters["triton_final_response"].bool_param
    return found


def _first_line(error: InferenceServerException) -> str:
    return str(error.message()).strip().partition("\n")[0]


def _tensor(name: str, shape: list[int], data: list[Any], datatype: str = "BYTES") -> Any:
    """Return an input tensor. Elements of the datatype BYTES are texts."""
    tensor = grpcclient.InferInput(name, shape, datatype)
    elements = [element.encode() if isinstance(element, str) else element for element in data]
    tensor.set_data_from_numpy(np.array(elements, dtype=triton_to_np_dtype(datatype)).reshape(shape))
    return tensor


def _as_json(result: Any) -> dict[str, Any]:
    """Return an answer in Triton's JSON form."""
    outputs: list[Mapping[str, Any]] = []
    for output in result.get_response().outputs:
        flat = result.as_numpy(output.name).reshape(-1).tolist()
        data = [value.decode() if isinstance(value, bytes) else value for value in flat]
        outputs.append({"name": output.name, "datatype": output.datatype, "shape": list(output.shape), "data": data})
    return {"outputs": outputs}
