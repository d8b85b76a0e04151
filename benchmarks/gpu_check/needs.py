"""Find the packages that the checks need, and those that a machine lacks."""

import importlib.metadata
import re
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

from .schedule import ROOT

# Besides the project's own dependencies: packages to run the tests, build the extension and compile the kernels.
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "setuptools", "ninja", "triton")


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def roots() -> list[str]:
    """Return the names that the project itself requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*(re.match(r"[\w.-]+", requirement)[0] for requirement in project["dependencies"]), *TOOLS]


def wheel_needs(folder: Path) -> dict[str, list[str]]:
    """Return the requirements of each wheel in a folder, by name."""
    found = {}
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            metadata = Parser().parsestr(archive.read(name).decode())
        found[normalized(metadata["Name"])] = metadata.get_all("Requires-Dist") or []
    return found


def lacking(names: Iterable[str], present: set[str], wheels: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Return (the missing packages, including those that they need in turn; those of them with unknown requirements).

    A package that is present has what it needs.
    """
    from packaging.requirements import Requirement

    found: dict[str, None] = {}
    unknown = []
    waiting = [normalized(name) for name in names]
    while waiting:
        name = waiting.pop(0)
        if name in found or name in present:
            continue
        found[name] = None
        needs = wheels.get(name)
        if needs is None:
            try:
                needs = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                unknown.append(name)
                continue
        for requirement in map(Requirement, needs):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(normalized(requirement.name))
    return list(found), unknown


def installed(listing: Path | None) -> set[str]:
    """Return the names of the packages here, or of a list such as `pip freeze` or `pip list` prints elsewhere."""
    if listing is None:
        return {normalized(d.metadata["Name"]) for d in importlib.metadata.distributions() if d.metadata["Name"]}
    words = re.split(r"[,\n]", listing.read_text())
    return {normalized(re.match(r"[\w.-]+", word.strip())[0]) for word in words if re.match(r"[\w.-]+", word.strip())}


def missing(listing: Path | None = None, wheels: Path | None = None) -> tuple[list[str], list[str]]:
    """Return (needed and not installed, those of them with unknown requirements)."""
    return lacking(roots(), installed(listing), wheel_needs(wheels) if wheels else {})
