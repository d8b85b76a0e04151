"""What the doctor found: one thing a line, how bad it is, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "ok"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """An error keeps a training from starting, stops it later, or makes its numbers wrong; a warning is for a person to
    judge. `where` lists all files or classes that it is about."""

    severity: Severity
    title: str
    fix: str = ""
    where: Sequence[str] = field(default_factory=tuple)


def error(title: str, fix: str = "", where: Sequence[str] = ()) -> Finding:
    return Finding("error", title, fix, where)


def warning(title: str, fix: str = "", where: Sequence[str] = ()) -> Finding:
    return Finding("warning", title, fix, where)


def ok(title: str) -> Finding:
    return Finding("ok", title)


def counted(number: int, noun: str) -> str:
    """ "1 mask", "2 masks", "3 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
