"""How a bundle becomes a package: the kinds of packages, of which the engine and the task choose one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.bundle import Bundle
from serving.encoder_models import write_encoder_models
from serving.generating_model import write_generating_model
from serving.generation_plan import make_generation_plan
from serving.generation_recording import generation_probe
from serving.lineage import checkpoint_of
from serving.manifests import ExpectedAnswer, GenerationVariantFigures, ProbeBody, VariantFigures
from serving.model_names import is_single_model, pinned_model
from serving.options import PackageOptions
from serving.original_location import original_folder
from serving.plan import Plan, make_plan
from serving.recording import probe_body
from serving.runtime.tasks._generation import GenerationTask
from serving.tuning import Tuning
from serving.vllm_model import vllm_probe, write_vllm_model
from serving.vllm_plan import make_vllm_plan


@dataclass(frozen=True, kw_only=True)
class Packaging:
    """How one bundle is packaged.

    Attributes:
        plan: How the model is served.
        graph: The ONNX file that is served; None: the checkpoint is.
        figures: Figures of that variant.
        probe: A request for a package without recorded answers.
        write: Writes the folders of the models of a generation into a folder; returns the answers that the server must give.
    """

    plan: Plan
    graph: Path | None
    figures: VariantFigures | GenerationVariantFigures | None
    probe: ProbeBody
    write: Callable[[Path, str], tuple[ExpectedAnswer, ...]]


def choose_packaging(bundle: Bundle, options: PackageOptions, tuning: Tuning | None) -> Packaging:
    """Return how a bundle is packaged.

    Args:
        bundle: The bundle.
        options: Options of the stage.
        tuning: The tuning found beside the bundle.

    Raises:
        ArtifactError: An option asks for what the bundle or the engine does not have.
    """
    if options.engine == "vllm":
        return _vllm(bundle, options)
    if isinstance(bundle.task, GenerationTask):
        return _generating(bundle, options, tuning)
    return _encoder(bundle, options, tuning)


def _vllm(bundle: Bundle, options: PackageOptions) -> Packaging:
    plan = make_vllm_plan(bundle, options)
    checkpoint = options.vllm.checkpoint or original_folder(bundle, checkpoint_of(bundle.folder), options.artifacts)

    def write(folder: Path, generation: str) -> tuple[ExpectedAnswer, ...]:
        write_vllm_model(folder, bundle, plan, options.name, generation, checkpoint)
        return ()

    return Packaging(plan=plan, graph=None, figures=None, probe=vllm_probe(bundle.task.example), write=write)


def _generating(bundle: Bundle, options: PackageOptions, tuning: Tuning | None) -> Packaging:
    plan = make_generation_plan(bundle, options, tuning)
    variant = bundle.variant(plan.precision)
    task = bundle.generation_task

    def write(folder: Path, _generation: str) -> tuple[ExpectedAnswer, ...]:
        return write_generating_model(folder, bundle=bundle, plan=plan, name=options.name)

    return Packaging(
        plan=plan,
        graph=variant.path,
        figures=variant.figures,
        probe=generation_probe(task, tokens=1),
        write=write,
    )


def _encoder(bundle: Bundle, options: PackageOptions, tuning: Tuning | None) -> Packaging:
    plan = make_plan(
        bundle,
        precision=options.precision,
        device=options.device,
        batching=options.batching,
        instances=options.instances,
        threads=options.threads,
        max_batch_size=options.max_batch_size,
        queue_delay_us=options.queue_delay_us,
        layout=options.layout,
        preprocess_instances=options.preprocess_instances,
        postprocess_instances=options.postprocess_instances,
        tuning=tuning,
    )
    variant = bundle.variant(plan.precision)

    def write(folder: Path, generation: str) -> tuple[ExpectedAnswer, ...]:
        name = options.name if is_single_model(plan.layout) else pinned_model(options.name, generation)
        return write_encoder_models(folder, bundle=bundle, plan=plan, name=name)

    return Packaging(
        plan=plan,
        graph=variant.path,
        figures=variant.figures,
        probe=probe_body(bundle.task.example),
        write=write,
    )
