"""List the benchmarked ops, one file each: inputs, the call, and other implementations to compare."""

import pkgutil

TRAININGS = ("step", "step_as_graph")  # training steps, which need the packages of a training


def names() -> list[str]:
    """Return the names of all ops, without importing anything, not even torch."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
