"""Check the direction of imports. Each part of a package lists the parts that it may import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHOD = ("criterion", "gates", "memory_bank", "mixing", "outputs", "teacher")
COMMANDS = ("__main__", "doctor", "evaluate", "export", "predict", "report", "train")
MAY_IMPORT = {
    "reference": (),
    "utils": (),
    "ops": ("reference", "kernels"),
    "kernels": ("reference", "ops"),  # from ops: names of dtypes and checks
    "method": ("reference", "ops", "utils"),
    "compat": ("reference", "ops", "method"),
    "data": ("reference", "utils"),
    "config": ("data", "method", "utils"),
    "models": ("reference", "method", "data", "config"),
    "saving": ("reference", "utils", "data"),
    "inference": ("reference", "ops", "method", "utils", "data", "config", "models", "saving"),
    "pictures": ("reference", "ops", "method", "utils", "data"),
    "training": ("reference", "ops", "method", "utils", "data", "config", "models", "saving", "inference", "pictures"),
}
BENCHMARKS_MAY_IMPORT = {
    "measure": (),
    "aot": ("measure",),
    "accuracy": ("measure",),
    "gpu_check": ("measure", "aot"),
    "draw": ("measure", "accuracy", "gpu_check"),
}


def part_of(module: str, package: str) -> str | None:
    """Return the part of a dotted module of ``package``; None for the package itself and for other modules."""
    parts = module.split(".")
    if parts[0] != package or len(parts) == 1:
        return None
    return "method" if package == "u2pl_fast" and parts[1] in METHOD else parts[1]


def imports(file: Path, module: str) -> set[str]:
    """Return the dotted names that a file imports, also for type checkers."""
    parts = module.split(".")
    parent = parts if file.name == "__init__.py" else parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = parent[: len(parent) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def wrong(prefix: str, folder: Path, allowed: dict[str, tuple[str, ...]]) -> list[str]:
    """Return imports that ``allowed`` does not list, in a folder whose modules begin with ``prefix``."""
    package, found = prefix.split(".")[0], []
    for file in sorted(folder.rglob("*.py")):
        inside = file.relative_to(folder).with_suffix("").parts
        module = ".".join((prefix, *(inside[:-1] if inside[-1] == "__init__" else inside)))
        part = part_of(module, package)
        if part not in allowed:
            continue  # commands, and the package's own __init__, may import everything
        for target in sorted({part_of(name, package) for name in imports(file, module)} - {None, part}):
            if target not in allowed[part] and not target.startswith("__"):
                found.append(f"{module} imports {target}")
    return found


@pytest.mark.parametrize(
    ("prefix", "folder", "allowed"),
    [
        ("u2pl_fast", "u2pl_fast", MAY_IMPORT),
        ("u2pl_fast.kernels", "kernels", MAY_IMPORT),
        ("benchmarks", "benchmarks", BENCHMARKS_MAY_IMPORT),
    ],
    ids=["u2pl_fast", "kernels", "benchmarks"],
)
def test_imports_run_one_way(prefix, folder, allowed):
    assert wrong(prefix, ROOT / folder, allowed) == []


def test_every_part_is_listed():
    folders = {path.name for path in (ROOT / "u2pl_fast").iterdir() if (path / "__init__.py").exists()}
    files = {path.stem for path in (ROOT / "u2pl_fast").glob("*.py")} - {"__init__"}
    assert folders | files - set(METHOD) <= set(MAY_IMPORT) | set(COMMANDS) | {"recipes"}


def test_nothing_outside_the_tests_imports_them():
    for folder in ("u2pl_fast", "kernels", "benchmarks", "examples"):
        for file in (ROOT / folder).rglob("*.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            assert not any(name.split(".")[0] == "tests" for name in imports(file, module)), file


def test_examples_use_what_is_installed():
    for file in (ROOT / "examples").glob("*.py"):
        assert "sys.path" not in file.read_text(), file
        assert not any(name.split(".")[0] == "benchmarks" for name in imports(file, file.stem)), file
