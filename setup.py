"""Build u2pl_fast._C: the CPU kernels if there is a C++ compiler, and the CUDA sources if there is nvcc too.

U2PL_FAST_BUILD=0      skip the extension; everything then runs on plain PyTorch.
U2PL_FAST_CUDA=0|1     skip or require the CUDA sources; unset, build them if nvcc has torch's CUDA version.
U2PL_FAST_SANITIZE=1   build the CPU kernels with AddressSanitizer and UBSan, for `make sanitize`.
TORCH_CUDA_ARCH_LIST   the CUDA architectures; "8.0;9.0+PTX" if unset.

The build never looks for a GPU, since the machine that builds often has none.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
CXX_FLAGS = ["-O3", "-std=c++20", "-fno-math-errno", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-g0"]
# GCC's own AVX-512 headers cause these warnings.
CXX_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def say(*lines: str) -> None:
    for line in lines:
        print(f"u2pl_fast: {line}", file=sys.stderr)


def left_out(reason: str, remedy: str) -> tuple[list, dict]:
    say(f"skipping the compiled ops (u2pl_fast._C): {reason}.", f"Everything runs on plain PyTorch. {remedy}")
    return [], {}


def sources(suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*{suffix}"))


def cuda_toolkit() -> Path | None:
    """Return the first toolkit with both nvcc and headers; an nvcc on the path may be a wrapper without headers."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    places += [Path(nvcc).resolve().parents[1] if nvcc else None, "/usr/local/cuda"]
    for place in filter(None, places):
        if (Path(place) / "bin/nvcc").exists() and (Path(place) / "include/cuda_runtime.h").exists():
            return Path(place)
    return None


def nvcc_version(toolkit: Path) -> str | None:
    """Return the version of nvcc, such as "12.4", or None if nvcc does not print it."""
    said = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found and found[1]


def wants_cuda() -> bool:
    """Return whether to compile csrc/**/*.cu, and set CUDA_HOME if so."""
    import torch

    choice = os.environ.get("U2PL_FAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"U2PL_FAST_CUDA={choice!r}: use 0, 1, or leave it unset")
    if choice == "0" or not sources(".cu"):
        return False
    missing = None
    toolkit = cuda_toolkit()
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is not a CUDA build"
    elif toolkit is None:
        missing = "no CUDA toolkit with nvcc and headers was found; set CUDA_HOME"
    elif (version := nvcc_version(toolkit)) and version.split(".")[0] != torch.version.cuda.split(".")[0]:
        missing = f"nvcc in {toolkit} has CUDA {version}, but torch has {torch.version.cuda}; set CUDA_HOME"
    if missing and choice == "1":
        raise SystemExit(f"U2PL_FAST_CUDA=1, but {missing}")
    if missing:
        say(f"skipping the CUDA sources: {missing}.")
        return False
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return True


def extensions() -> tuple[list, dict]:
    """Return the extension modules and the build commands they need."""
    if os.environ.get("U2PL_FAST_BUILD") == "0":
        return left_out("U2PL_FAST_BUILD=0", "To build them, unset it and install again.")
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return left_out("no C++ compiler", "Install GCC 11, Clang 14 or newer, or set CXX; then install again.")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return left_out(
            f"torch cannot be imported here ({error})",
            "Install torch first, then: pip install --no-build-isolation .",
        )
    cuda = wants_cuda()  # sets CUDA_HOME before the next import reads it
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    # OpenMP is not linked: torch loads its runtime, and a second runtime would have separate threads.
    flags = [*CXX_FLAGS, *([] if sys.platform == "darwin" else ["-fopenmp"])]
    options = {"include_dirs": [str(ROOT / "csrc")], "language": "c++", "extra_compile_args": {"cxx": flags}}
    if os.environ.get("U2PL_FAST_SANITIZE") == "1":
        flags += [*SANITIZE_FLAGS, "-O1", "-g1", "-fno-omit-frame-pointer"]
        options["extra_link_args"] = SANITIZE_FLAGS
    if cuda:
        options["define_macros"] = [("U2PL_FAST_CUDA", "1")]
        options["extra_compile_args"]["nvcc"] = ["-O3", "-std=c++20", "--expt-relaxed-constexpr"]
        extension = CUDAExtension("u2pl_fast._C", sources(".cpp") + sources(".cu"), **options)
    else:
        extension = CppExtension("u2pl_fast._C", sources(".cpp"), **options)
    return [extension], {"build_ext": BuildExtension}


def version() -> str:
    text = (ROOT / "u2pl_fast" / "__init__.py").read_text()
    return re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)[1]


ext_modules, cmdclass = extensions()
packages = [name for name in find_packages(include=["u2pl_fast", "u2pl_fast.*"]) if name != "u2pl_fast.kernels"]
setup(
    version=version(),
    # kernels/ is at the top of the repository; in a checkout u2pl_fast/kernels is a link to it.
    packages=[*packages, "u2pl_fast.kernels"],
    package_dir={"u2pl_fast.kernels": "kernels"},
    package_data={"u2pl_fast": ["py.typed", "recipes/*.yaml"]},
    include_package_data=False,  # otherwise setuptools reports recipes/ as a forgotten package
    ext_modules=ext_modules,
    cmdclass=cmdclass,
)
