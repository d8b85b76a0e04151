"""Declare settings: bounds, metadata of a field, and values read from YAML or Python."""

import ast
import dataclasses
import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal, get_args, get_origin, get_type_hints

Precision = Literal["off", "bfloat16", "float16"]


@dataclass(frozen=True)
class Bound:
    """Test a number, and describe what passes for the message."""

    words: str
    holds: Callable[[float], bool]


AT_LEAST_1 = Bound("at least 1", lambda number: number >= 1)
NOT_NEGATIVE = Bound("0 or more", lambda number: number >= 0)
POSITIVE = Bound("a positive number", lambda number: number > 0)
SHARE = Bound("a number in [0, 1]", lambda number: 0 <= number <= 1)


def setting(
    default: Any = dataclasses.MISSING,
    bound: Bound | None = None,
    *,
    fallback: Any = None,
    data: bool = False,
    free_on_resume: bool = False,
    metavar: str | None = None,
    help: str | None = None,
) -> Any:
    """Return a dataclass field with its bound, fallback and flags in ``metadata``.

    Args:
        default: value used when the user gives none.
        bound: condition on the number, where it is not None.
        fallback: value that replaces None when neither the data set nor the recipe sets one.
        data: the setting selects or decodes the data; the doctor has the same flag.
        free_on_resume: a resumed run may change it, since results do not depend on it.
        metavar: placeholder of the value in ``--help``; None = its type.
        help: text in ``--help`` of a field that has no docstring.
    """
    noted = {
        "bound": bound,
        "fallback": fallback,
        "data": data or None,
        "free_on_resume": free_on_resume or None,
        "metavar": metavar,
        "help": help,
    }
    return dataclasses.field(default=default, metadata=noted)


def noted(cls: type, key: str) -> dict[str, Any]:
    """Return {field: value} of one metadata key, for the fields of a dataclass that set it."""
    return {f.name: f.metadata[key] for f in ordered_fields(cls) if f.metadata.get(key) is not None}


def ordered_fields(cls: type) -> list[dataclasses.Field]:
    """Return the fields of a dataclass in the order of its groups; its own fields come last."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    names = [f.name for _, group in groups(cls) for f in dataclasses.fields(group)]
    return [fields[name] for name in dict.fromkeys([*names, *fields])]


def groups(cls: type) -> list[tuple[str, type]]:
    """Return the dataclasses that ``cls`` is composed of, each with its title: ``BankSettings`` is "bank"."""
    bases = [base for base in cls.__bases__ if dataclasses.is_dataclass(base)]
    return [(base.__name__.removesuffix("Settings").lower(), base) for base in bases]


@functools.cache  # finding the source of a class parses its module
def help_texts(cls: type) -> dict[str, str]:
    """Return the docstring of each field of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and "__annotations__" in base.__dict__:
            try:
                body = ast.parse(dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
            except (OSError, TypeError):  # built by make_dataclass
                continue
            for field, text in zip(body, body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    texts[field.target.id] = " ".join(ast.literal_eval(text.value).split())  # type: ignore[union-attr]
    return texts


def typed_values(cls: type, values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return ``values``, as YAML or a Python caller gives them, in the types of the fields of ``cls``.

    Raises:
        ValueError: an unknown name, or a value of another type; the message begins with ``source``.
    """
    hints = get_type_hints(cls)
    for name in values:
        if name not in hints:
            near = difflib.get_close_matches(str(name), hints, n=1)
            advice = f"did you mean {near[0]}?" if near else "--help of the command lists all"
            raise ValueError(f"{source}: unknown setting {name}; {advice}")
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = _typed(hints[name], value, name)
        except (TypeError, ValueError):
            raise ValueError(f"{source}: {name}: expected {_expected(hints[name], name)}, got {value!r}") from None
    return converted


def primitive(value: Any) -> Any:
    """Return a setting's value as YAML and checkpoints hold it."""
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


_ENTRIES = {
    "label_map": "a mapping such as {0: 0, 255: 1}, or quoted entries such as '255:1'",
    "bank_capacity": "a number, or a list of one and quoted exceptions such as [30000, '0:50000']",
}


def _expected(hint: Any, name: str) -> str:
    if name in _ENTRIES:
        return _ENTRIES[name]
    hint = get_args(hint)[0] if type(None) in get_args(hint) else hint
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    return re.sub(r"\w+\.", "", str(hint)) if get_args(hint) else hint.__name__


def _typed(hint: Any, value: Any, name: str) -> Any:
    if type(None) in get_args(hint):
        return None if value is None else _typed(get_args(hint)[0], value, name)
    if name == "amp" and isinstance(value, bool):  # `off` is false in YAML
        return "bfloat16" if value else "off"
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError
        return value
    if get_args(hint) == (str, ...):  # label_map, bank_capacity: entries, one entry, or a mapping
        words = [f"{key}:{item}" for key, item in value.items()] if isinstance(value, dict) else value
        words = [words] if isinstance(words, str | int) else list(words)
        if name == "bank_capacity" and words and type(words[0]) is int:
            words[0] = str(words[0])
        if not all(isinstance(word, str) for word in words):
            raise TypeError  # YAML reads 255:1 without quotes as a number in base 60
        return tuple(words)
    if get_origin(hint) is tuple and get_args(hint)[1] is Ellipsis:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_typed(get_args(hint)[0], item, name) for item in value)
    if get_origin(hint) is tuple:
        return tuple(_typed(kind, item, name) for kind, item in zip(get_args(hint), value, strict=True))
    if hint is float and type(value) in (int, float, str):
        return float(value)  # YAML reads 1e-3 as text; it wants 1.0e-3
    if hint is str and type(value) in (int, float):
        return str(value)  # a labeled_fraction of 0.125
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not hint:
        raise TypeError
    return value
