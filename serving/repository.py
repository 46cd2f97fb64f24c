"""The packaging stage: writes a bundle into a Triton model repository in one atomic step.

The four models of an ensemble must change together, and a rename moves only one folder. So each packaging writes a complete new
*generation* aside, and one rename of one symbolic link switches all four::

    model_repository/
      reviews                  → reviews_model/current/reviews          the ensemble: what clients call
      reviews_preprocess       → reviews_model/current/reviews_preprocess
      reviews_postprocess      → reviews_model/current/reviews_postprocess
      reviews_model/
        config.pbtxt, 1        → current/reviews_model/…
        current                → generations/4f0c…                      the link that is switched
        generations/4f0c…/       manifest.json and the four model folders

A package that is a single model (:func:`serving.layout.is_single_model`) has its generations in the folder of that model::

    model_repository/
      reviews/
        config.pbtxt, 1, …     → current/reviews/…                      the model: what clients call
        manifest.json          → current/reviews/manifest.json
        current                → generations/71ab…
        generations/71ab…/       manifest.json and the folder of the model

Triton follows the links and ignores what is no version number. At every moment the folder is one that Triton can load, also while
one kind of package replaces the other: the entry ``reviews`` is exchanged in one step. (A file system that cannot exchange entries
takes two renames; between them the repository lacks the model.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from serving.artifact import (
    MANIFEST,
    code_fingerprint,
    fingerprint,
    inputs_record,
    is_current,
    json_ready,
    provenance,
    read_manifest,
    staging_folder,
    task_code,
    write_manifest,
)
from serving.bundle import REMEDY, Bundle, load_bundle, served_code
from serving.errors import ArtifactError
from serving.integrity import check_files
from serving.layout import CURRENT, model_home
from serving.lineage import refuse_other_package
from serving.manifests import BundleProvenance, ExpectedAnswer, RepositoryManifest, StageInputs
from serving.naming import named_for_packaging
from serving.options import PackageOptions
from serving.packaging import Packaging, choose_packaging
from serving.placement import is_linked, refuse_foreign, remove_earlier, staging_root, switch
from serving.plan import Plan
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
    "serving/layout.py",
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
        ArtifactError: There is no usable bundle, it was altered, it refers to files outside it, it is older than its checkpoint,
            one of the names belongs to another model, or the engine lacks something.
        ExportError: The graph takes inputs that cannot be made from text.
    """
    options = named_for_packaging(options)
    bundle = load_bundle(options.bundle_folder)
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
    current = model_home(options.repository, options.name) / CURRENT
    if not options.force and is_current(current, RepositoryManifest, inputs) and is_linked(options.repository, options.name):
        remove_earlier(options.repository, options.name)
        return PackagedEnsemble(manifest=read_manifest(current, RepositoryManifest), unchanged=True)
    refuse_foreign(options.repository, options.name, plan.layout)
    options.repository.mkdir(parents=True, exist_ok=True)
    staging = staging_folder(staging_root(options.repository), f"{options.repository.name}-{options.name}")
    with writing(options.repository / options.name), staging as folder:
        generation = folder / "generation"
        generation.mkdir()
        answers = packaging.write(generation)
        manifest = write_manifest(generation, _manifest(options, bundle, packaging, inputs, answers))
        (generation / options.name / MANIFEST).symlink_to(f"../{MANIFEST}")
        switch(options.repository, options.name, generation, plan.layout)
    return PackagedEnsemble(manifest=manifest, unchanged=False)


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
    options: PackageOptions, bundle: Bundle, packaging: Packaging, inputs: StageInputs, answers: tuple[ExpectedAnswer, ...]
) -> RepositoryManifest:
    content = {
        **provenance(inputs),
        **asdict(packaging.plan),
        "name": options.name,
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
