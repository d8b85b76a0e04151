"""Prepare a folder that saves time on the GPU machine: everything that can be built and compiled elsewhere.

``prepare`` makes it on a machine without a GPU, with the Python of the other machine (its version, torch's and
triton's):

    prepared.json      what it was made from and for
    site/              packages that the other machine lacks, unpacked from wheels
    _C.*.so            the compiled ops
    kernels.tar.xz     the Triton kernels of the benchmarks
    msrc/, *.safetensors   images and pretrained weights for the accuracy runs, if given

``take`` puts it in place. What does not fit (another version, changed sources) is skipped, with the reason, and built
there instead.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from u2pl_fast.utils.atomic import replacing

from ..aot.precompile import cache_folder, unpacked
from ..measure import machine
from .schedule import ROOT

DESCRIPTION, SITE, KERNELS, MSRC = "prepared.json", "site", "kernels.tar.xz", "msrc"
EXTENSION_SOURCES = ("csrc", "setup.py")


def digest(patterns: Iterable[str]) -> str:
    """Return a digest of the files below some paths of the project; compiled files do not count."""
    found = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(ROOT.glob(pattern)):
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                if file.is_file() and file.suffix in (".py", ".h", ".cpp", ".cu", ".inc", ".yaml"):
                    found.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that compiled files must fit."""
    import torch

    try:
        from triton import __version__ as triton
    except ImportError:
        triton = ""
    return {"python": sysconfig.get_config_var("EXT_SUFFIX"), "torch": torch.__version__, "triton": triton}


def prepare(folder: Path, *, target: str, wheels: Path | None, msrc: Path | None, weights: Path | None) -> list[str]:
    """Fill ``folder``. Return what to print. Raise SystemExit if something does not build."""
    folder.mkdir(parents=True, exist_ok=True)
    said = []
    if wheels:
        shutil.rmtree(folder / SITE, ignore_errors=True)
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / SITE)
            said.append(f"package {wheel.name.split('-')[0]}")
    said.append(_build(folder, target))
    said += _compile(folder, target)
    if msrc:
        for file in (path for path in msrc.rglob("*") if path.is_file()):
            copy = folder / MSRC / file.relative_to(msrc)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    if weights:
        shutil.copyfile(weights, folder / weights.name)
    description = versions() | {
        "target": target,
        "commit": machine.commit(),
        "code": digest(machine.CODE),
        "extension": digest(EXTENSION_SOURCES),
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [*said, f"{folder}: {size / 2**20:.1f} MiB"]


def _build(folder: Path, target: str) -> str:
    number = target.removeprefix("sm_")
    environment = os.environ | {"TORCH_CUDA_ARCH_LIST": f"{number[:-1]}.{number[-1]}", "U2PL_FAST_CUDA": "1"}
    with tempfile.TemporaryDirectory() as build:
        places = ["--build-lib", f"{build}/lib", "--build-temp", f"{build}/temp"]
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", *places],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        built = list(Path(build).rglob("_C*.so"))
        if done.returncode or not built:
            raise SystemExit(f"--prepare: the extension did not build:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        for old in folder.glob("_C*.so"):
            old.unlink()
        carried = folder / built[0].name
        shutil.copyfile(built[0], carried)
    return f"extension {carried.name}, {carried.stat().st_size / 1e6:.1f} MB"


def _compile(folder: Path, target: str) -> list[str]:
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"TRITON_CACHE_DIR": cache, "TRITON_STORE_BINARY_ONLY": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.aot.precompile", "--target", target]
        done = subprocess.run(
            [*command, "--pack", folder / KERNELS], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(f"--prepare: kernels did not compile:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.splitlines()


class Taken(NamedTuple):
    """Hold the additions to a stage's environment, and what was put in place or why not."""

    environment: dict[str, str]
    said: list[str]


def take(folder: Path) -> Taken:
    """Put what ``folder`` holds in place."""
    path = folder / DESCRIPTION
    if not path.exists():
        raise SystemExit(f"--carried: {folder} holds no {DESCRIPTION}; make it with --prepare {folder}")
    made, here = json.loads(path.read_text()), versions()
    environment, said = {}, []
    if (folder / SITE).is_dir():
        environment["PYTHONPATH"] = str((folder / SITE).resolve())
        said.append(f"packages from {SITE}/")
    if machine.commit() == "unknown":  # without git: the commit it was prepared from, with a mark if files differ
        environment[machine.COMMIT] = made["commit"] + ("" if digest(machine.CODE) == made["code"] else "+")
    other = [
        f"{name} {made[name]} there, {here[name]} here" for name in ("python", "torch") if made[name] != here[name]
    ]
    if digest(EXTENSION_SOURCES) != made["extension"]:
        other.append("its sources have changed")
    files = list(folder.glob("_C*.so"))
    if files and not other:
        # In one rename: a process that has the old file loaded would crash if its bytes changed.
        with replacing(ROOT / "u2pl_fast" / files[0].name) as temporary:
            shutil.copyfile(files[0], temporary)
        said.append("the compiled ops")
    elif files:
        said.append(f"not the compiled ops: {'; '.join(other)}")
    if (folder / KERNELS).exists():
        said.append(_take_kernels(folder, made["triton"], here["triton"]))
    return Taken(environment, said)


def _take_kernels(folder: Path, made: str, here: str) -> str:
    if made != here:
        return f"not the kernels: triton {made} there, {here} here"
    try:
        return f"{unpacked(folder / KERNELS, cache_folder())} kernels"
    except Exception as error:  # a damaged archive: they can be compiled here
        return f"not the kernels: {error!r}"
