"""Build a wheel and an sdist without a compiler, and check their contents and that the package runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("u2pl_fast", "kernels", "csrc", "tests", "benchmarks", "docs", "examples")
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
SHIPPED = (*FOLDERS, *FILES, "CITATION.cff", "Makefile", "mkdocs.yml")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Return the output of a command, with nothing of this checkout on the import path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources, so that the build leaves nothing behind and finds nothing built."""
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


def test_wheel_without_compiler_reports_what_is_missing(wheel: tuple[Path, str]) -> None:
    path, log = wheel
    assert path.name.endswith("-py3-none-any.whl")
    assert "u2pl_fast._C" in log and "U2PL_FAST_BUILD=0" in log


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is not a CUDA build")
def test_nvcc_of_another_cuda_skips_the_cuda_sources(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    (tmp_path / "bin/nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 9.2, V9.2.88'\n")
    (tmp_path / "bin/nvcc").chmod(0o755)
    said = run(sys.executable, "setup.py", "--name", cwd=ROOT, CUDA_HOME=str(tmp_path), U2PL_FAST_CUDA="")
    assert "the CUDA sources: nvcc in" in said and f"has CUDA 9.2, but torch has {torch.version.cuda}" in said


def test_wheel_contains_every_module(wheel: tuple[Path, str]) -> None:
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


def test_wheel_metadata(wheel: tuple[Path, str]) -> None:
    archive = zipfile.ZipFile(wheel[0])
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    said = message_from_string(archive.read(name).decode())
    assert said["License-Expression"] == "Apache-2.0" and said["Requires-Python"] == ">=3.11"
    assert {"dev", "docs"} <= set(said.get_all("Provides-Extra"))
    assert any(line.startswith("torch>=") for line in said.get_all("Requires-Dist"))
    assert said.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


def test_installed_wheel_trains_in_a_new_environment(wheel: tuple[Path, str], tmp_path: Path) -> None:
    """Train in a new environment that uses installed packages of this one, except those in editable mode."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel[0], cwd=tmp_path)
    where = run(python, "-c", "import u2pl_fast; print(u2pl_fast.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(site)
    pixels = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for kind, channels, levels in (("images", (3,), 256), ("labels", (), 2)):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            for index in range(count):
                drawn = pixels.integers(0, levels, (64, 64, *channels), dtype=np.uint8)
                Image.fromarray(drawn).save(tmp_path / "data" / kind / split / f"{index}.png")
    flags = "--dataset folder --data-root data --num-labeled 2 --encoder resnet10t --encoder-weights none --out run"
    flags += " --steps 2 --crop-size 64 64 --batch-size 2 --bank-capacity 100 --device cpu --threads 1 --workers 0"
    said = run(python, "-W", "ignore", "-m", "u2pl_fast.train", *flags.split(), cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] == 2, said


@pytest.fixture(scope="module")
def sdist(checkout: Path) -> Path:
    out = checkout.parent / "sdist"
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out, cwd=checkout, U2PL_FAST_BUILD="0")
    (path,) = out.glob("*.tar.gz")
    return path


def test_sdist_contains_all_files(checkout: Path, sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for folder in FOLDERS:
        files = {path.relative_to(checkout).as_posix() for path in (checkout / folder).rglob("*") if path.is_file()}
        files = {name for name in files if not name.endswith(".pyc") and not name.startswith("u2pl_fast/kernels/")}
        assert files and files - names == set()
    assert {name for name in SHIPPED if name not in FOLDERS} - names == set()
    assert not any(name.endswith((".so", ".pyc")) for name in names)
    assert sdist.stat().st_size < 10e6


def test_sdist_gives_the_same_wheel(sdist: Path, wheel: tuple[Path, str]) -> None:
    out = sdist.parent / "wheels"
    command = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index")
    run(*command, "--wheel-dir", out, sdist, cwd=sdist.parent, U2PL_FAST_BUILD="0")
    (path,) = out.glob("*.whl")
    names = [set(zipfile.ZipFile(file).namelist()) for file in (path, wheel[0])]
    assert names[0] == names[1]
