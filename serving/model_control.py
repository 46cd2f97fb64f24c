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

from serving.access import ClientAccess
from serving.connection_messages import BROKEN, TLS_REFUSED, UNREACHABLE
from serving.errors import NoServerError, RequestError, ServerError
from serving.probe import Probe, check_answers
from serving.restricted_api import refused_key

POLL_SECONDS = 0.05
READY = "READY"
LIVE_SECONDS = 5.0
"""How long a server may take to say that it is live, in seconds."""
UNAVAILABLE = "StatusCode.UNAVAILABLE"
"""Status of an error if nothing answers at the address. Triton gives it for other reasons, too."""
CLOSED = "PERMISSION_DENIED"
"""Status of what a server of ``tritonize serve`` closes to clients."""
NOT_EXPLICIT = "explicit model load / unload is not allowed"
"""Triton's message where it was not started in explicit mode."""


class ModelControl:
    """The models of a Triton server in explicit mode, as a context manager that closes its connection."""

    def __init__(self, url: str, access: ClientAccess | None = None) -> None:
        """Begin without a connection: the first call makes it.

        Args:
            url: The gRPC address: ``host:port``, or ``unix:`` and the path of a socket.
            access: API key and TLS. None: neither.
        """
        self._url = url
        self._access = access
        self._client = self._connect()

    def _connect(self) -> Any:
        tls = None if self._access is None else self._access.tls
        return grpcclient.InferenceServerClient(self._url, **({} if tls is None else tls.grpc_arguments))

    @property
    def _headers(self) -> dict[str, str]:
        return {} if self._access is None else self._access.headers("grpc")

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
            self._client.load_model(model, headers=self._headers)
        except InferenceServerException as error:
            raise self._server_error(f"{model} could not be loaded", error) from error

    def unload(self, model: str) -> None:
        """Begin to unload a model. What it is computing is answered first.

        Raises:
            ServerError: Triton refused or did not answer.
        """
        try:
            self._client.unload_model(model, headers=self._headers)
        except InferenceServerException as error:
            raise self._server_error(f"{model} could not be unloaded", error) from error

    def states(self) -> dict[tuple[str, str], str]:
        """Return the state of each version of each model that was ever loaded, as Triton calls it.

        Raises:
            ServerError: Triton did not answer.
        """
        try:
            index = self._client.get_model_repository_index(headers=self._headers)
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
            ServerError: The answer is another one, or none came in time, or the server has ended, or it wants another key.
        """
        try:
            answer = self._stream(probe, seconds) if probe.endpoint == "generate" else self._infer(probe, seconds)
        except InferenceServerException as error:
            if (known := self._known_error(f"{probe.ensemble} could not be asked", error)) is not None:
                raise known from error
            raise RequestError(f"{probe.ensemble}: {error.message()}", status="INTERNAL") from error
        check_answers(probe, answer)

    def _is_live(self) -> bool:
        """Return whether the server answers, and does not end."""
        try:
            return bool(self._client.is_server_live(headers=self._headers, client_timeout=LIVE_SECONDS))
        except InferenceServerException as error:
            return error.status() != UNAVAILABLE or refused_key(_first_line(error), self._url) is not None

    def _infer(self, probe: Probe, seconds: float) -> dict[str, Any]:
        inputs = [_tensor(entry["name"], entry["shape"], entry["data"]) for entry in probe.body["inputs"]]
        parameters = probe.body.get("parameters") or None
        answer = self._client.infer(probe.ensemble, inputs, parameters=parameters, headers=self._headers, client_timeout=seconds)
        return _as_json(answer)

    def _stream(self, probe: Probe, seconds: float) -> dict[str, Any]:
        """Ask a model that streams for one answer. Its inputs and parameters stand beside each other in the request.

        A stream that has ended is closed and not cancelled: Triton 2.51 may otherwise take its request for a running one, and never
        unload the model then.
        """
        metadata = self._client.get_model_metadata(probe.ensemble, headers=self._headers)
        types = {tensor.name: tensor.datatype for tensor in metadata.inputs}
        inputs = [_tensor(name, [1], [value], types[name]) for name, value in probe.body.items() if name in types]
        parameters = {name: value for name, value in probe.body.items() if name not in types}
        answers: queue.Queue[tuple[Any, InferenceServerException | None]] = queue.Queue()
        with self._connect() as client:
            client.start_stream(lambda result, error: answers.put((result, error)), headers=self._headers)
            runs = True
            try:
                try:
                    client.async_stream_infer(probe.ensemble, inputs, parameters=parameters, enable_empty_final_response=True)
                except InferenceServerException as ended:  # it was refused before its first request; the callback gets the reason
                    _, reason = answers.get(timeout=seconds)
                    raise reason or ended from None
                answer = _first_of_stream(answers, seconds)
                runs = False
            except queue.Empty:
                raise ServerError(f"{probe.ensemble} did not answer within {seconds:.0f} s") from None
            finally:
                client.stop_stream(cancel_requests=runs)  # closing waits until the request ends
        return answer

    def _server_error(self, what: str, error: InferenceServerException) -> ServerError:
        return self._known_error(what, error) or ServerError(f"{what}: {_first_line(error)}")

    def _known_error(self, what: str, error: InferenceServerException) -> ServerError | None:
        """Return the error of a server that does not answer, is closed, wants a key or is not in explicit mode; otherwise None."""
        message = _first_line(error)
        refused = refused_key(message, self._url)
        if error.status() == f"StatusCode.{CLOSED}" or (refused is not None and refused.status == CLOSED):
            hint = "if tritonize has started that server, name it by its HTTP port, on its machine: --http-port"
            return ServerError(f"{what}: this part of the API of {self._url} is closed", hint=hint)
        if refused is not None:
            return ServerError(f"{what}: {refused.message}", hint=refused.hint)
        if error.status() != UNAVAILABLE:
            return None
        if NOT_EXPLICIT in message:
            hint = "start it with --model-control-mode=explicit, and with --load-model=NAME for each model"
            return ServerError(f"{what}: {self._url} is a Triton that is not in explicit mode", hint=hint)
        is_lost = UNREACHABLE.search(message) or BROKEN.search(message)
        if not is_lost and self._is_live():
            return None
        problem, hint = _connection_problem(self._url, message)
        return NoServerError(f"{what}: {problem}", hint=hint)


def _connection_problem(url: str, message: str) -> tuple[str, str]:
    """Return why a server does not answer, and what to do about it; the latter is empty if that is not known.

    Args:
        url: Its address.
        message: What gRPC says.
    """
    if url.startswith("unix:"):
        return "no server answers", ""
    if TLS_REFUSED.search(message):
        hint = "server and client must trust each other's certificates: --tls-ca, --tls-certificate, --tls-key"
        return f"no TLS connection to {url}: {message}", hint
    if UNREACHABLE.search(message) and BROKEN.search(message):
        hint = "the server may want TLS, or a certificate of the client: --tls-ca, --tls-certificate, --tls-key"
        return f"{url} closes every connection at once", hint
    return f"no server answers at {url} ({message})", ""


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
