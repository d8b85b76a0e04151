"""Parse the flags of a command into its dataclass of settings, with grouped help."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from .fields import Precision, groups, help_texts
from .renamed import RENAMED

Settings = TypeVar("Settings")


def parse(
    kind: type[Settings],
    arguments: Sequence[str] | None,
    *,
    command: str,
    description: str | None,
    default: Settings | None = None,
) -> Settings:
    """Parse flags into a dataclass, and exit after ``--help`` or with a message about a bad flag.

    Args:
        kind: class of the settings. Each base that is a dataclass becomes a group of the help; fields of its own come
            first.
        arguments: flags; None = those of the process.
        command: its name in the usage line, such as "train".
        description: text above the flags in ``--help``.
        default: values that flags override; None = those of the fields.

    Raises:
        ValueError: a flag has a new name.
    """
    words = _completed(sys.argv[1:] if arguments is None else list(arguments))
    texts, bases = help_texts(kind), groups(kind)
    hints = get_type_hints(kind, include_extras=True)
    titles = {field.name: title for title, group in bases for field in dataclasses.fields(group)}
    parts: dict[str, list[tuple]] = {title: [] for title in ["", *dict(bases)]}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(default, field.name) if default is not None else field.default
        is_positional = get_origin(hints[field.name]) is Annotated
        note = tyro.conf.arg(
            prefix_name=False,
            help=texts.get(field.name) or field.metadata.get("help", ""),
            metavar=field.metadata.get("metavar") or _metavar(hints[field.name]),
            help_behavior_hint="" if value is None or is_positional else None,
        )
        entry = (field.name, Annotated[hints[field.name], note])
        entry += () if value is dataclasses.MISSING else (dataclasses.field(default=value),)
        parts[titles.get(field.name, "")].append(entry)
    nested = []
    for title, group in bases:
        part = dataclasses.make_dataclass(title, parts[title], kw_only=True)
        part.__doc__ = (group.__doc__ or "").strip()
        nested.append((title, part, dataclasses.field(default_factory=part)))
    whole = dataclasses.make_dataclass(kind.__name__, [*parts[""], *nested], kw_only=True)
    found = tyro.cli(whole, args=words, prog=f"u2pl {command}", description=description)
    values: dict[str, Any] = {name: getattr(found, name) for name, *_ in parts[""]}
    for title, _ in bases:
        values |= vars(getattr(found, title))
    return kind(**values)


def _completed(arguments: list[str]) -> list[str]:
    """Return the arguments with ``bfloat16`` after a bare ``--amp``; refuse flags that have a new name."""
    words = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=False):
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and name in RENAMED:
            raise ValueError(f"{word.partition('=')[0]} has a new name; use {RENAMED[name]}")
        words.append(word)
        if word == "--amp" and following not in get_args(Precision):
            words.append("bfloat16")
    return words


def _metavar(hint: Any) -> str | None:
    """Return the placeholder of an optional value without the choice None, which its help text describes."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if type(None) not in get_args(hint):
        return None
    kind = get_args(hint)[0]
    if get_args(kind) and all(isinstance(choice, str) for choice in get_args(kind)):
        return "{" + ",".join(get_args(kind)) + "}"
    return kind.__name__.upper() if isinstance(kind, type) and not get_args(kind) else None
