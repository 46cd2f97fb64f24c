"""The configurations that a tuning may try, and the ones it tries first.

One definition of the allowed values serves three uses: Optuna's sampler chooses among them (:meth:`Space.suggest`), a known
configuration becomes the sampler's parameters (:meth:`Space.parameters`), and the whole space is listed
(:meth:`Space.configurations`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, get_args

import optuna

from serving.configuration import Configuration, has_fused
from serving.options import MAX_BATCH_SIZE, ComputeDevice, Layout, Precision
from serving.plan import most_preprocess_instances

QUEUE_DELAYS_US = (0, 500, 2000)
MAX_BATCH_SIZES = (16, 64, 256)
GPU_INSTANCES = (1, 2, 4)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CHOICES = ("precision", "batching", "layout", "threads", "instances", "preprocess_instances", "queue_delay_us", "max_batch_size")
"""In this order, since the allowed values of a choice depend on the choices before it."""

Values = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class Space:
    """All configurations that may be served on this machine.

    Attributes:
        most_clients: Clients of the heaviest load that is measured. A batch cannot hold more requests.
    """

    device: ComputeDevice
    cores: int
    precisions: tuple[Precision, ...]
    most_clients: int

    @property
    def instances(self) -> tuple[int, ...]:
        """Model instances: on a CPU powers of two, one per core, and half as many again to fill waiting times."""
        if self.device == "gpu":
            return GPU_INSTANCES
        return (*powers(self.cores), self.cores + max(1, self.cores // 2))

    @property
    def threads(self) -> tuple[int, ...]:
        """Threads per instance."""
        return (1,) if self.device == "gpu" else powers(self.cores)

    @property
    def preprocess_instances(self) -> tuple[int, ...]:
        """Instances of the first step: powers of two up to the default of the device, which is tried first."""
        return tuple(reversed(powers(most_preprocess_instances(self.device, self.cores))))

    @property
    def max_batch_sizes(self) -> tuple[int, ...]:
        """The default size, smaller sizes that the load can fill, and larger sizes if the load can fill the default."""
        smaller = tuple(size for size in MAX_BATCH_SIZES if size < min(MAX_BATCH_SIZE, self.most_clients))
        larger = tuple(size for size in MAX_BATCH_SIZES if size > MAX_BATCH_SIZE and self.most_clients > MAX_BATCH_SIZE)
        return (*smaller, MAX_BATCH_SIZE, *larger)

    def allowed(self, choice: str, earlier: Values) -> Sequence[str | int]:  # noqa: PLR0911 - one for each choice
        """Return the values of one choice that go with the earlier choices."""
        match choice:
            case "precision":
                return self.precisions
            case "batching":
                # The dynamic scales of int8 span a batch: an answer would depend on the other requests in it.
                return ("off",) if earlier["precision"] == "int8" else ("off", "ragged")
            case "layout":
                return LAYOUTS[: 2 if has_fused(self.device, str(earlier["batching"])) else 1]
            case "threads":
                return self.threads
            case "instances":
                threads = int(earlier["threads"])
                return [count for count in self.instances if threads == 1 or count * threads <= self.cores]
            case "preprocess_instances":
                return (1,) if earlier["layout"] == "fused" else self.preprocess_instances
            case "queue_delay_us":
                return QUEUE_DELAYS_US if earlier["batching"] == "ragged" else (0,)
            case _:
                return self.max_batch_sizes if earlier["batching"] == "ragged" else (MAX_BATCH_SIZE,)

    def suggest(self, trial: optuna.trial.BaseTrial) -> Configuration:
        """Let Optuna choose: each choice with several allowed values is one parameter, the index of the value."""
        values: dict[str, Any] = {}
        for choice in CHOICES:
            allowed = self.allowed(choice, values)
            values[choice] = allowed[trial.suggest_int(choice, 0, len(allowed) - 1)] if len(allowed) > 1 else allowed[0]
        return self._configuration(values)

    def parameters(self, configuration: Configuration) -> dict[str, int]:
        """Return the parameters with which :meth:`suggest` returns ``configuration``.

        Raises:
            ValueError: The configuration is not in this space.
        """
        values: dict[str, str | int] = asdict(configuration)
        indices = {}
        for choice in CHOICES:
            allowed = self.allowed(choice, values)
            index = allowed.index(values[choice])
            if len(allowed) > 1:
                indices[choice] = index
        return indices

    def configurations(self) -> list[Configuration]:
        """List the whole space."""
        partial: list[dict[str, Any]] = [{}]
        for choice in CHOICES:
            partial = [values | {choice: value} for values in partial for value in self.allowed(choice, values)]
        return [self._configuration(values) for values in partial]

    def _configuration(self, values: Mapping[str, Any]) -> Configuration:
        """Make a configuration of choices. The last step has half as many instances as the first one, as by default."""
        return Configuration(device=self.device, postprocess_instances=max(1, values["preprocess_instances"] // 2), **values)

    def grid(self) -> list[Configuration]:
        """List a coarse grid: each precision with and without batching; on a CPU in each layout and arrangement on all cores."""
        usual = [one for one in self.configurations() if (one.queue_delay_us, one.max_batch_size) == (0, MAX_BATCH_SIZE)]
        usual = [one for one in usual if one.preprocess_instances == (1 if one.layout == "fused" else self.preprocess_instances[0])]
        known = {(one.batching, one.layout, one.instances, one.threads, one.precision): one for one in usual}
        ways = (("off", "ensemble"), ("off", "fused"), ("ragged", "ensemble"))
        corners = product(ways, self._arrangements(), self.precisions)
        keys = [(*way, *arrangement, precision) for way, arrangement, precision in corners]
        return [known[key] for key in keys if key in known]

    def _arrangements(self) -> Iterable[tuple[int, int]]:
        """Instances and threads per instance: one instance per core, one instance on all cores, and half-way."""
        if self.device == "gpu":
            return [(1, 1)]
        instances = max(step for step in self.threads if step * step <= self.cores)
        threads = max(step for step in self.threads if step * instances <= self.cores)
        return dict.fromkeys([(self.cores, 1), (1, self.cores), (instances, threads)])


def powers(most: int) -> tuple[int, ...]:
    """Return 1, 2, 4 … below ``most``, and ``most``."""
    return (*(1 << exponent for exponent in range(most.bit_length()) if 1 << exponent < most), most)
