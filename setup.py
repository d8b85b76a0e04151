"""Builds u2pl_fast._C: the CPU kernels wherever a C++ compiler is found, the CUDA sources where nvcc is found too.

U2PL_FAST_BUILD=0      leaves the extension out; everything then runs on the plain PyTorch backend.
U2PL_FAST_CUDA=0|1     forbids or forces the CUDA sources; unset, they are built where nvcc is of torch's CUDA version.
U2PL_FAST_SANITIZE=1   builds the CPU kernels with AddressSanitizer and UBSan, for `make sanitize`.
TORCH_CUDA_ARCH_LIST   the architectures, "8.0;9.0+PTX" where unset.

Whether a GPU is present is never asked: the machine that builds often has none.
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
# GCC's AVX-512 headers trip this one by themselves.
CXX_FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
SANITIZE_FLAGS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


def say(*lines: str) -> None:
    for line in lines:
        print(f"u2pl_fast: {line}", file=sys.stderr)


def left_out(reason: str, remedy: str) -> tuple[list, dict]:
    say(f"the compiled ops (u2pl_fast._C) are left out: {reason}.", f"Everything runs on plain PyTorch. {remedy}")
    return [], {}


def sources(suffix: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob(f"*{suffix}"))


def cuda_toolkit() -> Path | None:
    """The first toolkit with both nvcc and headers: an nvcc on the path may be a wrapper that lies elsewhere."""
    places = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    places += [Path(nvcc).resolve().parents[1] if nvcc else None, "/usr/local/cuda"]
    for place in filter(None, places):
        if (Path(place) / "bin/nvcc").exists() and (Path(place) / "include/cuda_runtime.h").exists():
            return Path(place)
    return None


def nvcc_version(toolkit: Path) -> str | None:
    """Such as "12.4"; None if it doesn't say."""
    said = subprocess.run([toolkit / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found and found[1]


def wants_cuda() -> bool:
    """Whether to compile csrc/**/*.cu; sets CUDA_HOME if so."""
    import torch

    choice = os.environ.get("U2PL_FAST_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"U2PL_FAST_CUDA={choice!r}: expected 0, 1 or nothing")
    if choice == "0" or not sources(".cu"):
        return False
    missing = None
    toolkit = cuda_toolkit()
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is not a CUDA build"
    elif toolkit is None:
        missing = "no CUDA toolkit with nvcc and headers is found; set CUDA_HOME"
    elif (version := nvcc_version(toolkit)) and version.split(".")[0] != torch.version.cuda.split(".")[0]:
        missing = f"nvcc in {toolkit} is of CUDA {version}, torch of {torch.version.cuda}; set CUDA_HOME"
    if missing and choice == "1":
        raise SystemExit(f"U2PL_FAST_CUDA=1, but {missing}")
    if missing:
        say(f"the CUDA sources are left out: {missing}.")
        return False
    os.environ["CUDA_HOME"] = str(toolkit)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    return True


def extensions() -> tuple[list, dict]:
    """The extension modules and the build commands they need."""
    if os.environ.get("U2PL_FAST_BUILD") == "0":
        return left_out("U2PL_FAST_BUILD=0", "Unset it and install again to have them.")
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return left_out("no C++ compiler", "Install GCC 11 or Clang 14, or newer, or set CXX, and install again.")
    try:
        import torch  # noqa: F401
    except ImportError as error:
        return left_out(
            f"torch cannot be imported here ({error})",
            "Install torch first, then: pip install --no-build-isolation .",
        )
    cuda = wants_cuda()  # sets CUDA_HOME, which the next module reads when it is imported
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    # Not linked: the OpenMP runtime comes with torch, and another one would have threads of its own.
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
    # kernels/ lies at the top of the repository; in a checkout u2pl_fast/kernels is a link to it.
    packages=[*packages, "u2pl_fast.kernels"],
    package_dir={"u2pl_fast.kernels": "kernels"},
    package_data={"u2pl_fast": ["py.typed", "recipes/*.yaml"]},
    include_package_data=False,  # else setuptools takes recipes/ for a package that was forgotten
    ext_modules=ext_modules,
    cmdclass=cmdclass,
)
