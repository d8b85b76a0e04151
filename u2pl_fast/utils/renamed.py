"""List earlier names of settings, refuse them in flags and YAML files, and translate the settings of saved runs."""

from collections.abc import Mapping
from typing import Any

# Earlier name: what to write now, as a flag. YAML files and Python use the same names with underscores.
RENAMED = {
    "ohem_threshold": "--ohem THRESHOLD PIXELS, such as --ohem 0.7 100000",
    "ohem_min_kept": "--ohem THRESHOLD PIXELS, such as --ohem 0.7 100000",
    "no_ohem": "--ohem None",
    "amp_dtype": "--amp bfloat16 or --amp float16",
    "no_amp": "--amp off",
    "eval_protocol": "--protocol",
    "alpha_0": "--alpha",
    "background_class": "--bank-capacity KEYS CLASS:KEYS, such as --bank-capacity 30000 0:50000",
    "background_capacity": "--bank-capacity KEYS CLASS:KEYS, such as --bank-capacity 30000 0:50000",
    "colour": "--color",
}


def refuse_renamed(values: Mapping[str, Any], source: str) -> None:
    """Refuse names of earlier versions.

    Raises:
        ValueError: naming the setting and its new name.
    """
    for name in values:
        if name in RENAMED:
            raise ValueError(f"{source}: {name} has a new name; use {RENAMED[name]}")
    if isinstance(values.get("ohem"), bool):
        raise ValueError(f"{source}: ohem now holds two numbers, threshold and pixels, such as [0.7, 100000]")


def upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a saved run under today's names."""
    values = dict(saved)
    for old, new in (("eval_protocol", "protocol"), ("alpha_0", "alpha")):
        if old in values:
            values[new] = values.pop(old)
    if "amp_dtype" in values:
        dtype = values.pop("amp_dtype")
        values["amp"] = dtype if values["amp"] else "off"
    if "ohem_threshold" in values:
        hard = [values.pop("ohem_threshold"), values.pop("ohem_min_kept")]
        values["ohem"] = hard if values["ohem"] else None
    if "background_class" in values:
        label, keys = values.pop("background_class"), values.pop("background_capacity")
        common = values["bank_capacity"]
        exceptions = [f"{label}:{keys}"] if label is not None and keys not in (None, common) else []
        values["bank_capacity"] = common if common is None else [str(common), *exceptions]
    return values
