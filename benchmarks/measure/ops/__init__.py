"""One file an op, under the op's own name: inputs, the call, and what else it is compared with."""

import pkgutil

TRAININGS = ("step", "step_as_graph")  # ops that are steps of a training, and need its packages


def names() -> list[str]:
    """Every op; nothing is imported for that, not even torch."""
    return [module.name for module in pkgutil.iter_modules(__path__)]
