"""A wheel and an sdist made from the checkout without a compiler: what they hold, and that the package runs."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("u2pl_fast", "kernels", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command, with nothing of this checkout on the import path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources alone, so that the build leaves nothing behind here and finds nothing built."""
    copy = tmp_path_factory.mktemp("build") / "checkout"
    copy.mkdir()
    for name in SHIPPED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> tuple[Path, str]:
    out = checkout.parent / "wheels"
    log = run(
        *(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index"),
        *("--wheel-dir", out, "."),
        cwd=checkout,
        U2PL_FAST_BUILD="0",
    )
    (path,) = out.glob("*.whl")
    return path, log


def test_wheel_without_compiler_says_what_is_left_out(wheel: tuple[Path, str]) -> None:
    path, log = wheel
    assert path.name.endswith("-py3-none-any.whl")
    assert "u2pl_fast._C" in log and "U2PL_FAST_BUILD=0" in log


def test_wheel_holds_every_module(wheel: tuple[Path, str]) -> None:
    names = set(zipfile.ZipFile(wheel[0]).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "u2pl_fast").rglob("*.py")}
    kernels = {f"u2pl_fast/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert "u2pl_fast/kernels/__init__.py" in kernels
    assert (modules | kernels) - names == set()
    assert not any(name.startswith(("kernels/", "tests/", "csrc/")) for name in names)


def test_installed_wheel_runs_without_the_extension(wheel: tuple[Path, str], tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel[0]).extractall(site)
    program = """
import sys, warnings
warnings.simplefilter("error", SyntaxWarning)
import torch, u2pl_fast, u2pl_fast.kernels
from u2pl_fast import ops
stats = ops.pixel_stats(torch.zeros(1, 4, 2, 2), (3, 3))
print(u2pl_fast.__file__, u2pl_fast.__version__, float(stats.confidence[0, 0, 0]))
"""
    said = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(site))
    where, version, confidence = said.strip().splitlines()[-1].split()
    assert Path(where).is_relative_to(site)
    assert wheel[0].name.split("-")[1] == version
    assert float(confidence) == 0.25


def test_sdist_holds_the_sources(checkout: Path) -> None:
    out = checkout.parent / "sdist"
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out, cwd=checkout, U2PL_FAST_BUILD="0")
    (path,) = out.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder, pattern in (("csrc", "*.*"), ("kernels", "*.py"), ("u2pl_fast", "*.py")):
        sources = {path.relative_to(checkout).as_posix() for path in (checkout / folder).rglob(pattern)}
        assert sources - names == set()
    assert "setup.py" in names
