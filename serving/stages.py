"""The stages of this package as Python functions, which ``from serving import package, serve`` gives."""

from __future__ import annotations

from serving.commands import prepare_package, refuse_idle_front, report_package
from serving.detached_server import DetachedServer
from serving.manifests import RepositoryManifest
from serving.options import PackageOptions, ServeOptions
from serving.reporting import logger
from serving.stage_function import stage_function


@stage_function
def package(options: PackageOptions) -> RepositoryManifest:
    """Turn a bundle into a Triton model repository, in one atomic step: ``model_repository/NAME*/``.

    The keywords are the options of ``tritonize package``, with underscores::

        package(name="tickets", precision="fp32")

    Returns:
        The manifest of the package: precision, batching, instances and the reasons for what was chosen.

    Raises:
        TypeError: A keyword is unknown or missing.
        ValueError: A value is not allowed.
        TritonizeError: There is no usable bundle, or the repository cannot be written.
    """
    from serving.repository import package as write

    options = prepare_package(options)
    packaged = write(options)
    logger.info(report_package(options, packaged))
    return packaged.manifest


@stage_function
def serve(options: ServeOptions) -> DetachedServer:
    """Start Triton in the background and wait until every ensemble answers.

    The keywords are the options of ``tritonize serve``, with underscores. The server outlives Python unless it is stopped::

        with serve(http_port=9000, grpc_port=9001, metrics_port=9002) as server:
            TritonPipeline("tickets", url=server.grpc_url)("My invoice is wrong.")

    Returns:
        The server. Leaving its ``with`` block stops it, and so does its method ``stop``.

    Raises:
        TypeError: A keyword is unknown.
        ValueError: A value is not allowed.
        TritonizeError: The server could not be started.
    """
    from serving.background import start_detached
    from serving.server_record import log_file

    refuse_idle_front(options)
    running = start_detached(options)
    return DetachedServer(address=options, process=running.pid, log=log_file(options.http_port))
