"""The sizes that a user has packaged a bundle with: they are measured, and stay."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.tuning.tune_options import TuneOptions
from serving.bundle import load_bundle
from serving.generation_plan import make_generation_plan
from serving.lineage import is_packaged_from, read_package
from serving.options import PackageOptions


def packaged_sizes(options: TuneOptions) -> tuple[int | None, int | None]:
    """Return the maximum length and the capacity of the package of a bundle.

    Returns:
        Both are None if the bundle is not packaged. The capacity is None, too, if packaging chooses it.

    Raises:
        ArtifactError: There is no usable bundle, or this machine has no memory for what is packaged.
    """
    packaged = read_package(options.repository, options.name)
    if packaged is None or not is_packaged_from(packaged, options.bundle_folder):
        return None, None
    served = packaged.configuration
    if served.capacity is None:
        return packaged.max_length, None
    bundle = load_bundle(options.bundle_folder).with_max_length(packaged.max_length)
    variants = {name: variant for name, variant in bundle.variants.items() if name == served.precision}
    slots = PackageOptions(device="cpu", max_batch_size=served.max_batch_size)
    chosen = make_generation_plan(replace(bundle, variants=variants), slots)
    return packaged.max_length, None if served.capacity == chosen.capacity else served.capacity
