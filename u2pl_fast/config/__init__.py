"""Read, complete and check the settings of a training."""

from ..utils.fields import help_texts, setting, typed_values
from ..utils.renamed import upgraded
from .capacity import class_capacities
from .resolve import (
    RECIPE_FILES,
    RECIPES,
    find_config,
    read_settings,
    resolve,
    resolve_for_data,
    training_steps,
)
from .settings import BOUNDS, CRITERION, DATA_SETTINGS, FALLBACKS, FREE_ON_RESUME, DeviceSettings, TrainConfig

__all__ = [
    "BOUNDS",
    "CRITERION",
    "DATA_SETTINGS",
    "FALLBACKS",
    "FREE_ON_RESUME",
    "RECIPES",
    "RECIPE_FILES",
    "DeviceSettings",
    "TrainConfig",
    "class_capacities",
    "find_config",
    "help_texts",
    "read_settings",
    "resolve",
    "resolve_for_data",
    "setting",
    "training_steps",
    "typed_values",
    "upgraded",
]
