"""The packaging stage: writes a bundle into a Triton model repository, as one new generation of a package.

All models of a package must change together, and a rename moves only one entry. So no file of a generation ever changes: its steps
have its name in theirs, and what clients call chooses the generation in one file, which is replaced last::

    model_repository/
      reviews/                              what clients call
        config.pbtxt                        the configuration of the current generation: the file that is replaced
        20261129133517/                     the generation: manifest.json, and config.pbtxt to make it the current one
      reviews.20261129133517_preprocess/    its steps
      reviews.20261129133517_model/
      reviews.20261129133517_postprocess/
      reviews.20261129133517/               its ensemble under a name of its own

A package that is a single model (:func:`serving.model_names.is_single_model`) has all files in its folder. A generation is a
version of that model::

    model_repository/
      reviews/
        config.pbtxt                        the configuration of the current generation, whose version policy chooses it
        20261129133517/                     the generation: manifest.json, config.pbtxt, and what the backend runs
        warmup/20261129133517/              its warm-up requests

There are only ordinary files and folders, so that any copy serves the same. At every moment the folder is one that Triton can load.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from serving.artifact import (
    MANIFEST,
    code_fingerprint,
    fingerprint,
    inputs_record,
    json_ready,
    provenance,
    staging_folder,
    task_code,
    versions,
)
from serving.bundle import REMEDY, Bundle, load_bundle, served_code
from serving.errors import ArtifactError
from serving.generations import arrange, new_generation, seal
from serving.integrity import check_ensemble, check_files
from serving.leases import locked
from serving.lineage import refuse_other_package
from serving.manifests import BundleProvenance, ExpectedAnswer, RepositoryManifest, StageInputs
from serving.naming import named_for_packaging
from serving.options import PackageOptions
from serving.packaging import Packaging, choose_packaging
from serving.placement import place, refuse_foreign, staging_root
from serving.plan import Plan
from serving.pruning import prune
from serving.reporting import logger
from serving.runtime.tasks import served_names
from serving.runtime.tasks._generation import GenerationTask
from serving.tuning import Tuning, read_tuning
from serving.writing import writing

SHAPING = (
    "serving/answer_comparison.py",
    "serving/description.py",
    "serving/encoder_models.py",
    "serving/ensemble.py",
    "serving/generating_model.py",
    "serving/generation_plan.py",
    "serving/generation_recording.py",
    "serving/generations.py",
    "serving/layout.py",
    "serving/model_names.py",
    "serving/packaging.py",
    "serving/pbtxt.py",
    "serving/placement.py",
    "serving/plan.py",
    "serving/prologue.py",
    "serving/recording.py",
    "serving/repository.py",
    "serving/undecided.py",
    "serving/vllm_model.py",
    "serving/vllm_plan.py",
    "serving/warmups.py",
)
TASK_SHAPING = ("serving/runtime",)
"""The code that decides what packaging writes; of the second, not the modules of other tasks (:func:`serving.artifact.task_code`).

A repository that was written by other code is not up to date.
"""
STARTING = ("serving/backends/onnxruntime", "serving/server.py")
"""The code that decides how a packaged model runs, but not what packaging writes."""


@dataclass(frozen=True, kw_only=True)
class PackagedEnsemble:
    """A packaged ensemble.

    Attributes:
        manifest: Its manifest.
        unchanged: Whether it was up to date already.
    """

    manifest: RepositoryManifest
    unchanged: bool


def package(options: PackageOptions) -> PackagedEnsemble:
    """Write or replace the models of ``options.name``.

    Raises:
        ArtifactError: There is no usable bundle, it was altered, its signature is refused, it refers to files outside it, it is
            older than its checkpoint, one of the names belongs to another model, or the engine lacks something.
        ExportError: The graph takes inputs that cannot be made from text.
    """
    options = named_for_packaging(options)
    bundle = load_bundle(options.bundle_folder, verify_key=options.verify_key)
    refuse_other_package(options, bundle)
    check_files(bundle.folder, bundle.manifest.files, remedy=REMEDY)
    bundle = bundle.with_max_length(options.max_length)
    tuning, objection = _tuning(options)
    packaging = choose_packaging(bundle, options, tuning)
    plan = packaging.plan
    if objection is not None:
        plan = replace(plan, reasons=plan.reasons | {"configuration": f"not as tuned: {objection}"})
    if (reason := _length_reason(bundle)) is not None:
        plan = replace(plan, reasons=plan.reasons | {"max_length": reason})
    packaging = replace(packaging, plan=plan)
    inputs = _inputs(options, bundle, packaging, tuning)
    _warn_unverified(bundle)
    if not options.force and (packaged := _up_to_date(options, inputs)) is not None:
        with locked(options.repository):
            prune(options.repository, options.name, options.keep)
        return PackagedEnsemble(manifest=packaged, unchanged=True)
    refuse_foreign(options.repository, options.name)
    options.repository.mkdir(parents=True, exist_ok=True)
    staging = staging_folder(staging_root(options.repository), f"{options.repository.name}-{options.name}")
    with writing(options.repository / options.name), staging as folder:
        generation, tree = new_generation(options.repository, options.name), folder / "models"
        tree.mkdir()
        answers = packaging.write(tree, generation)
        arrange(tree, options.name, plan.layout, generation)
        manifest = seal(tree, _manifest(options, bundle, packaging, inputs, answers, generation))
        with locked(options.repository):
            place(options.repository, tree, options.name, plan.layout, generation, current=options.current)
            prune(options.repository, options.name, options.keep, packaged=generation)
    return PackagedEnsemble(manifest=manifest, unchanged=False)


def _up_to_date(options: PackageOptions, inputs: StageInputs) -> RepositoryManifest | None:
    """Return the manifest of the current generation, if packaging would write the same again."""
    try:
        manifest = check_ensemble(options.repository, options.name).manifest
    except (ArtifactError, OSError):
        return None
    return manifest if (manifest.inputs, manifest.versions) == (inputs, versions()) else None


def _length_reason(bundle: Bundle) -> str | None:
    """Describe a maximum length that is not that of the export."""
    chosen, verified = bundle.max_length, bundle.manifest.max_length
    if chosen > verified:
        return f"{chosen}, as asked: rows longer than {verified} tokens were not verified at export"
    return f"{chosen}, as asked: the export verified {verified}" if chosen < verified else None


def generates(options: PackageOptions) -> bool:
    """Return whether the model of a bundle generates its answers token by token.

    Raises:
        ArtifactError: There is no usable bundle.
    """
    return isinstance(load_bundle(options.bundle_folder).task, GenerationTask)


def plan_package(options: PackageOptions) -> Plan:
    """Return the settings that :func:`package` would serve a model with.

    Raises:
        ArtifactError: There is no usable bundle.
    """
    return choose_packaging(load_bundle(options.bundle_folder), options, _tuning(options)[0]).plan


def _warn_unverified(bundle: Bundle) -> None:
    """Warn where the bundle was verified with other code than what is packaged with it."""
    verified, now = bundle.manifest.verified_with, served_code(bundle.task.name)
    changed = sorted(path for path in verified.keys() | now.keys() if verified.get(path) != now.get(path))
    if changed:
        logger.warning(
            f"the bundle was verified before {', '.join(changed)} changed; verify it again with: "
            f"tritonize export --name {bundle.manifest.name} --task {bundle.task.name} --force"
        )


def _inputs(options: PackageOptions, bundle: Bundle, packaging: Packaging, tuning: Tuning | None) -> StageInputs:
    """Return what decides the content of the repository."""
    chosen = asdict(packaging.plan) | {
        "name": options.name,
        "tuning": tuning.sha256 if tuning else None,
        "max_length": bundle.max_length,
    }
    graphs = [] if packaging.graph is None else [packaging.graph]
    files = [bundle.folder / MANIFEST, *graphs, bundle.tokenizer]
    code = shaping_code(bundle.task.name)
    return inputs_record(chosen, fingerprint(files, root=bundle.folder), code)


def _manifest(
    options: PackageOptions,
    bundle: Bundle,
    packaging: Packaging,
    inputs: StageInputs,
    answers: tuple[ExpectedAnswer, ...],
    generation: str,
) -> RepositoryManifest:
    content = {
        **provenance(inputs),
        **asdict(packaging.plan),
        "name": options.name,
        "generation": generation,
        "task": bundle.task.name,
        "settings": json_ready(bundle.task.to_settings()),
        "max_length": bundle.max_length,
        "probe": answers[0].request if answers else packaging.probe,
        "answers": answers,
        "bundle": BundleProvenance(manifest=bundle.manifest.inputs, figures=packaging.figures, name=bundle.manifest.name),
    }
    return RepositoryManifest.model_validate(content)


def shaping_code(task: str) -> dict[str, str]:
    """Return the SHA-256 of the code that decides what packaging writes for a task, by path."""
    return code_fingerprint([*SHAPING, *task_code(TASK_SHAPING, task, served_names())])


def serving_code() -> dict[str, str]:
    """Return the SHA-256 of the code that decides how fast an ensemble answers, by path.

    The tasks are left out: they decide what the answers are, and the tuner chooses how the model between them runs.
    """
    steps = [path for path in task_code(TASK_SHAPING, "", served_names()) if "/tasks/" not in path]
    return code_fingerprint([*SHAPING, *steps, *STARTING])


def _tuning(options: PackageOptions) -> tuple[Tuning | None, str | None]:
    """Read the bundle's tuning; a model whose tuning cannot be read is packaged without it.

    Returns:
        The tuning, if there is one that can be read, and otherwise why it cannot be read.
    """
    if not options.tuned:
        return None, None
    try:
        return read_tuning(options.bundle_folder), None
    except ArtifactError as error:
        return None, error.message
