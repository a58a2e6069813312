"""The same evaluation on a Ray cluster: one task per bag, results identical to the local run.

Ray is optional: pip install 'vl4ad_ros[ray]'. Every machine needs this package, and bags and results under the same paths, as on
shared storage: a task leaves its counts in the work folder beside the result file, and the second round reads them from there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vl4ad_model.errors import EvaluationError, MissingDependencyError
from vl4ad_model.evaluation.runner import Mapper


@contextmanager
def ray_mapper(address: str) -> Iterator[Mapper]:
    """A mapper whose tasks run on Ray.

    Args:
        address: of a running cluster ("auto", "ray://host:10001"), or "local" to start one on this machine.

    Raises:
        MissingDependencyError: ray is not installed.
        EvaluationError: no cluster answers there.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise MissingDependencyError("ray", "ray", "evaluation on a cluster") from None
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EvaluationError(f"no Ray cluster at '{address}': {str(error).splitlines()[0]}") from None

    def map_tasks(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=1)(function)
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            done, waiting = ray.wait(waiting)
            try:
                yield from ray.get(done)
            except ray.exceptions.RayTaskError as error:
                # What a task raised, as itself: the command line shows users' mistakes in one line.
                raise error.cause if isinstance(error.cause, Exception) else error from None

    try:
        yield map_tasks
    finally:
        ray.shutdown()
