"""``python -m benchmarks.gpu_check.extension``: build the compiled ops if they are missing or do not load."""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence

from .schedule import ROOT


def problem(device: str) -> str | None:
    """Return why the compiled ops of this checkout cannot be used on the device; None if they can."""
    try:
        module = importlib.import_module("u2pl_fast._C")
    except ImportError as error:
        return str(error)
    if device == "cuda" and not hasattr(module, "ring_push_cuda"):
        return "it was built without CUDA"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.extension", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    args = parser.parse_args(argv)
    import torch  # before the extension, which links against it

    reason = problem(args.device)
    if reason is None:
        print("it loads as it is")
        return 0
    environment = dict(os.environ)
    if args.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        environment |= {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}", "U2PL_FAST_CUDA": "1"}
    print(f"building: {reason}", flush=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=ROOT, env=environment)
    if done.returncode:
        print("FAILED the compiled ops: ring_push runs on plain PyTorch, and waits for the GPU", flush=True)
    else:
        print(f"built in {time.monotonic() - start:.0f} s")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
