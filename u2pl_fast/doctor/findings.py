"""Findings of the doctor: severity, title, fix, and the files concerned."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "ok"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """One result of a check. An error stops a training or makes its numbers wrong; a warning needs a decision.

    `where` lists all files or classes concerned.
    """

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
    """Return "1 mask", "2 masks" or "3 classes"."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number} {noun if number == 1 else plural}"
