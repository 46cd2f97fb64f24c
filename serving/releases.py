"""What the release commands ask of a server that a supervisor keeps: it loads and unloads the models of its own view."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager

from serving.control_socket import ReleaseRequest, ReleaseResult
from serving.errors import NoServerError, ServerError, TritonizeError
from serving.front.streaming import STREAMING_ENDPOINT, has_streaming_models
from serving.generations import newest_generation
from serving.integrity import check_generation
from serving.manifests import RepositoryManifest
from serving.model_control import ModelControl
from serving.model_names import read_model_name, step_models
from serving.probe import find_probes
from serving.promotion_record import record_promotion
from serving.readiness import Readiness
from serving.release import Tell, after_restart, load_generation, promote
from serving.reporting import logger
from serving.served_view import ServedView
from serving.server import TritonServer
from serving.server_record import ServerRecord
from serving.unloading import unload_beside, unload_package
from serving.vllm_container import needs_container


class Releases:
    """Carries out the requests of the release commands, in threads beside that of the supervisor. One release follows another.

    It is also the :class:`serving.released_models.ReleasedModels` of the server.

    Attributes:
        server: The server that is ready; None while there is none.
    """

    def __init__(self, view: ServedView, readiness: Readiness, record: ServerRecord) -> None:
        """Begin without a server.

        Args:
            view: What is served.
            readiness: What the health port tells.
            record: What other commands are told.
        """
        self.server: TritonServer | None = None
        self._view = view
        self._readiness = readiness
        self._record = record
        self._under_way = threading.Lock()
        self._streams = has_streaming_models(view.folder)

    def handle(self, request: ReleaseRequest, tell: Tell) -> ReleaseResult:
        """Do what a request asks.

        Args:
            request: The request.
            tell: Called with a line about each step.

        Raises:
            ArtifactError: The generation is missing or was altered.
            ServerError: There is no server now, or it refuses. It then answers as before.
        """

        def log_and_tell(line: str) -> None:
            logger.info(line)
            tell(line)

        if request.action == "states":  # it changes nothing, and waits for no release
            return {"loaded": self._loaded()}
        try:
            with self._under_way:
                return self._carry_out(self._ready_server(), request, log_and_tell)
        except NoServerError as error:
            now = after_restart(request.name, self._view.generation_of(request.name))
            problem = f"the server ended before it could {request.action} {request.subject}: {error.message}; {now}"
            command = f"tritonize {request.action} {request.subject}"
            again = "" if request.action == "unload" else f"{request.action} it again with: {command}"
            logger.warning(f"{problem} ({again})" if again else problem)
            raise ServerError(problem, hint=again) from error
        except TritonizeError as error:
            logger.warning(f"{request.action} {request.subject} failed: {error.message_with_hint}")
            raise

    def _loaded(self) -> Mapping[str, str]:
        """Return the version of each model that is loaded.

        Raises:
            ServerError: There is no server now.
        """
        try:
            with ModelControl(self._ready_server().address.grpc) as control:
                return control.loaded()
        except NoServerError as error:
            raise ServerError("the server is restarting", hint="try again later") from error

    def _ready_server(self) -> TritonServer:
        server = self.server
        if server is None:
            raise ServerError("the server is starting, restarting or stopping", hint="try again later")
        return server

    def none_under_way(self) -> AbstractContextManager[object]:
        """Return a context manager that waits until no release is under way, and keeps others waiting while its block runs."""
        return self._under_way

    def _carry_out(self, server: TritonServer, request: ReleaseRequest, log_and_tell: Tell) -> ReleaseResult:
        with ModelControl(server.address.grpc) as control:
            try:
                if request.action == "promote":
                    promote(control, self, self._checked(request), log_and_tell)
                elif request.action == "load":
                    load_generation(control, self, self._checked(request), log_and_tell)
                elif request.action == "unload":
                    self._unload(control, request)
                if request.action != "promote":  # which has logged it
                    logger.info(f"{request.subject} is {request.action}ed")
                self._update(server)
                return {}
            finally:
                self.confirm()
                server.remove_weights()

    def _checked(self, request: ReleaseRequest) -> RepositoryManifest:
        repository, name = self._view.repository, request.name
        generation = request.generation or newest_generation(repository, name)
        remedy = f"package it again with: tritonize package --name {name}"
        manifest = check_generation(repository, name, generation, remedy=remedy, verify_key=self._view.verify_key)
        if manifest.layout == "vllm":
            raise needs_container(self._view.repository, manifest)
        if manifest.probe.endpoint == STREAMING_ENDPOINT and not self._streams:
            raise ServerError(
                f"{request.name} streams, and no model did when this server was started",
                hint="restart it: tritonize stop, tritonize serve",
            )
        return manifest

    def _unload(self, control: ModelControl, request: ReleaseRequest) -> None:
        """Unload the ensemble of a generation, or a whole package."""
        name = request.name
        if request.generation:  # whatever the package itself does
            unload_beside(control, self, name, request.generation)
            return
        current = self._view.generation_of(name)
        if current is None:
            raise ServerError(f"{name} is not served", hint="see what is served with: tritonize status")
        self._view.withdraw(name)
        if self.server is not None:
            self._update(self.server)  # nobody asks it any more when it goes
        unload_package(control, self, name, current)

    def begin(self, name: str, served: str | None) -> None:
        """The view holds the generation that answers."""

    def add(self, manifest: RepositoryManifest) -> str:
        """Link the models of a generation into the view. See :class:`serving.released_models.ReleasedModels`."""
        trial = self._view.add(manifest)
        if self.server is not None:
            self.server.on_trial.update({trial, *step_models(manifest.name, manifest.generation)})
            self.server.expect(manifest.name, manifest.generation)
            self.server.expect(trial, "1")
        return trial

    def choose(self, name: str, generation: str) -> None:
        """Choose the generation that is loaded now, and after every restart."""
        self._view.choose(name, generation)
        if self.server is not None:
            self.server.expect(name, generation)
            if name in {probe.ensemble for probe in self.server.probes}:  # else it is asked when it is loaded
                self._update(self.server)

    def restore(self, name: str, served: str | None) -> None:
        """Choose the generation that answered before. A package that was not served is dropped from the view later."""
        if served is not None:
            self.choose(name, served)

    def record(self, name: str, generation: str, before: str | None) -> None:
        """Make a generation the current one of the repository: a server that is started later serves it."""
        record_promotion(self._view.repository, name, generation, before)

    def _update(self, server: TritonServer) -> None:
        """Let the supervisor watch what is served now."""
        server.probes = find_probes(self._view.folder)
        left_out = {name: error.message_with_hint for name, error in self._view.left_out.items()}
        self._readiness.change((probe.ensemble for probe in server.probes), left_out)
        self._record.update(left_out=left_out)

    def confirm(self) -> None:
        """Watch the processes that the models have now: none of them is on trial any more."""
        if self.server is not None:
            self.server.on_trial.clear()
            self.server.watch_stubs()

    def leave(self, name: str, generation: str) -> None:
        """Watch the processes of a generation no more."""
        beside = read_model_name(name)
        if beside is not None:
            self._view.leave_beside(beside.package, beside.generation)
        if self.server is not None:
            self.server.stop_watching(name, generation)

    def drop(self, name: str, generation: str) -> None:
        """Remove a generation from the view."""
        self._view.drop(name, generation)
