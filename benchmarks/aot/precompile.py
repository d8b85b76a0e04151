"""Compile the Triton kernels of the benchmarks in parallel: ``python -m benchmarks.aot.precompile --target sm_90``.

Triton compiles a kernel at its first launch, one after another, which would take minutes of GPU time. Here the ops run
on CPU tensors of the workloads' shapes, and every launch is stopped after Triton's own launcher has chosen the
specialization and compiled it. So exactly the kernels that will be launched are compiled, and they are in Triton's
cache (``TRITON_CACHE_DIR``, or ``~/.triton/cache``) for the process that measures.

With ``--target`` no GPU is needed. The cache then serves another machine with the same Triton: ``packed`` writes what
that machine needs to one file, and ``unpacked`` puts it in place there.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from u2pl_fast import reference
from u2pl_fast.ops import _backend

from ..measure import exercise
from ..measure.inputs import Inputs
from ..measure.ops import names
from ..measure.registry import DEFAULT_DTYPES, DTYPES, LAYOUTS, Setting
from ..measure.workloads import NAMED, REPORTED, Workload, trained

WARP = 32
TARGETS = {"sm_80": 80, "sm_90": 90, "sm_100": 100}
# What a training step of a workload launches: its format, and crops that its network can divide.
TRAINED, TRAINED_FORMAT = ("camvid", "voc"), ("bfloat16", "channels_last")


class Shapes(Inputs):
    """Make inputs of the right shapes, dtypes and strides that hold zeros: launches depend on nothing else."""

    @cached_property
    def all_logits(self) -> Tensor:
        w = self.workload
        return self._place(torch.zeros(w.images, w.num_classes, *w.grid))

    @cached_property
    def features(self) -> Tensor:
        w = self.workload
        return self._place(torch.zeros(w.images, w.dim, *w.grid))

    @cached_property
    def labels(self) -> Tensor:
        w = self.workload
        return torch.zeros(w.labeled, *w.crop, dtype=_label_type(w))

    @cached_property
    def statistics(self) -> reference.PixelStats:
        maps = torch.zeros(self.workload.unlabeled, *self.workload.crop)
        return reference.PixelStats(maps.to(_label_type(self.workload)), maps, maps)

    @cached_property
    def masks(self) -> reference.ContrastMasks:
        w = self.workload
        counts = torch.zeros(w.num_classes, dtype=torch.int64)
        words = torch.zeros(w.grid_pixels, -(-w.num_classes // 32), dtype=torch.int32)
        return reference.ContrastMasks(words, torch.full((w.grid_pixels,), -1, dtype=torch.int16), counts, counts)

    @property
    def push_mask(self) -> Tensor:
        return self.masks.mask

    def new_bank(self) -> tuple[Tensor, Tensor]:
        w = self.workload
        return torch.zeros(sum(w.capacities), w.dim, dtype=self.dtype), torch.tensor(w.capacities)


def _label_type(w: Workload) -> torch.dtype:
    return torch.uint8 if w.num_classes <= 255 else torch.int16


class _StandIn:
    """Replace the GPU driver for what Triton's launcher asks before it compiles."""

    def __init__(self, target: str) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", TARGETS[target], WARP)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(target: str | None) -> Iterator[list[Any]]:
    """Compile every launch within the block, for ``target`` or the local GPU, without running it.

    Yields the list of what was compiled, as Triton's CompiledKernel.
    """
    import triton
    from triton.runtime.jit import JITFunction

    from u2pl_fast.kernels import _launch

    run, compiled = JITFunction.run, []

    def only_compile(kernel: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
        binary = run(kernel, *args, grid=grid, warmup=True, **options)
        if target is None:
            binary.run  # noqa: B018  the launcher of the kernel is compiled when it is asked for
        compiled.append(binary)

    def zeroed(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *size, **options: allocate(*size, **options).zero_()

    def resolve(op: str, tensor: Tensor) -> str:
        if _backend._has_kernel(op):
            return "triton"
        return "cpu" if _backend._exists(op, "cpu") else "reference"

    if target is not None:
        triton.runtime.driver.set_active(_StandIn(target))
    with (
        mock.patch.object(JITFunction, "run", only_compile),
        mock.patch.object(_backend, "resolve", resolve),
        # No kernel fills its outputs here, but later code must be able to use them as labels and indices.
        mock.patch.object(torch, "empty_like", zeroed(torch.empty_like)),
        mock.patch.object(Tensor, "new_empty", zeroed(Tensor.new_empty)),
        mock.patch.object(_launch, "warp_size", lambda device: WARP),
    ):
        yield compiled
    if target is not None:
        triton.runtime.driver._active = None


class Job(NamedTuple):
    """Name all settings of one op in one format."""

    op: str
    workload: Workload
    dtype: str
    layout: str


def jobs(workloads: Sequence[str], dtypes: Sequence[str] | None, layouts: Sequence[str]) -> list[Job]:
    """Return what the benchmarks launch, and what a training step of the chosen workloads launches.

    Without ``dtypes``: those of the benchmarks, and for the small workloads all, which ``exercise`` uses.
    """

    def chosen(workload: str) -> Sequence[str]:
        return dtypes or (tuple(DTYPES) if workload in exercise.SMALL else DEFAULT_DTYPES)

    formats = [(NAMED[w], dtype, layout) for w in workloads for dtype in chosen(w) for layout in layouts]
    formats += [(trained(NAMED[w]), *TRAINED_FORMAT) for w in TRAINED if w in workloads]
    return [Job(op, *one) for one in formats for op in names()]


def compile_job(job: Job, target: str | None) -> tuple[list[str], str | None]:
    """Return (hashes of the kernels, the first failure)."""
    torch.set_num_threads(1)
    # Triton's key of a kernel changes with the kernels that were hashed before, where they share functions. A run takes
    # statistics before it looks for hard pixels.
    _backend.kernel("pixel_stats").pixel_stats_fwd_kernel.cache_key  # noqa: B018
    inputs = Shapes(job.workload, "cpu", DTYPES[job.dtype], job.layout)
    hashes: list[str] = []
    for op in exercise.entries([job.op]):
        for setting in exercise.settings(op, job.workload, "cpu", job.dtype, job.layout):
            with compiling(target) as compiled:
                if op.implementations[exercise.FUSED].missing(setting):  # nothing of Triton's
                    continue
                reason = exercise.call(op, setting, inputs, times=1)
            hashes += [binary.hash for binary in compiled]
            if reason:
                return hashes, f"{_name(setting)}: {reason}"
    return hashes, None


def _name(setting: Setting) -> str:
    return str(setting).replace(" cpu ", " ")


def compile_all(todo: Sequence[Job], target: str | None, processes: int) -> tuple[set[str], list[str]]:
    """Return (hashes of the distinct kernels, failures)."""
    hashes, failures = set(), []
    # A new process for each worker: a forked one could not use the GPU.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for found, failure in pool.map(compile_job, todo, [target] * len(todo)):
            hashes.update(found)
            failures += [failure] if failure else []
    return hashes, failures


# --- Carrying a cache to another machine ------------------------------------------------------------------------------


def cache_folder() -> Path:
    return Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")


def packed(cache: Path, file: Path) -> int:
    """Write the kernels of ``cache`` to ``file``, machine code and description only. Return their number."""
    count = 0
    with tarfile.open(file, "w:xz") as archive:
        for group in sorted(cache.glob("*/__grp__*.json")):
            for name in json.loads(group.read_text())["child_paths"]:
                if name.endswith((".cubin", ".json")):
                    archive.add(group.parent / name, f"{group.parent.name}/{name}")
            count += 1
    return count


def unpacked(file: Path, cache: Path) -> int:
    """Put the kernels of ``file`` into ``cache``. Return their number. Triton needs the path of each file."""
    groups: dict[Path, dict[str, str]] = {}
    with tarfile.open(file) as archive:
        archive.extractall(cache, filter="data")
        for member in archive.getmembers():
            path = cache / member.name
            groups.setdefault(path.parent, {})[path.name] = str(path)
    for folder, files in groups.items():
        (name,) = (name for name in files if name.endswith(".json"))
        (folder / f"__grp__{name}").write_text(json.dumps({"child_paths": files}))
    return len(groups)


def main(argv: Sequence[str] | None = None) -> int:
    """Compile. Exit status: 1 if a kernel does not compile."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot.precompile", description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=list(TARGETS), help="default: the local GPU")
    parser.add_argument("--workload", nargs="+", choices=list(NAMED), default=(*REPORTED, *exercise.SMALL))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="default: those of the benchmarks")
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=LAYOUTS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--pack", type=Path, metavar="FILE", help="also write the cache to one file")
    args = parser.parse_args(argv)
    if args.target is None and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; name a --target")
    if not _backend.has_triton():
        parser.error("triton is not installed")
    start = time.monotonic()
    hashes, failures = compile_all(jobs(args.workload, args.dtype, args.layout), args.target, args.processes)
    for failure in failures:
        print(f"FAILED {failure}", flush=True)
    print(f"{len(hashes)} kernels in {time.monotonic() - start:.0f} s, {args.processes} processes")
    if args.pack:
        count = packed(cache_folder(), args.pack)
        print(f"{args.pack}: {count} kernels, {args.pack.stat().st_size / 1e6:.1f} MB")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
