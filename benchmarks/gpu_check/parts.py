"""Define the stages of each part, with their seconds on a machine with an H200, 16 cores and a carried folder.

``right`` checks whether the kernels are correct, all at once, because nothing there is timed. ``fast`` measures, one
stage after another, the most wanted first; only compiling runs beside it. ``learn`` trains for the accuracy tables in
the remaining time. ``benchmarks.draw.tables`` writes the timetable into docs/benchmark-tables.md.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from u2pl_fast.utils.atomic import write_text

from ..measure.ops import TRAININGS, names
from .out import ACCURACY, FUSED, GROWTH, REFERENCE, RESULTS, TESTS, TRAINING, Out, replace, rows
from .schedule import ROOT, Stage

SECONDS = {"right": 180, "fast": 360, "learn": 240}
TRAINED_WITH = ("tyro", "segmentation_models_pytorch", "timm")
TEST_FILES = (
    *sorted(f"tests/ops/{path.name}" for path in (ROOT / "tests/ops").glob("test_*.py")),
    "tests/utils/test_cuda_graph.py",
    "tests/inference/test_metrics.py",
    "tests/training/test_async_scalars.py",
)
TEST_SECONDS = 40  # of one test
QUICK_TRAINING = (
    "--encoder",
    "mobilenetv3_small_050",
    "--resize",
    "64",
    "80",
    "--crop-size",
    "64",
    "64",
    "--steps",
    "6",
)
TRAINING_FLAGS = ("--dataset", "shapes", "--amp", "--channels-last", "--log-every", "1", "--seed", "0")
MAIN_FORMATS = ("--dtype", "float32", "bfloat16", "--layout", "contiguous", "channels_last", "--paired")
SINGLE_FORMAT = ("--dtype", "float32", "--layout", "contiguous")
STEPS = ("mean-teacher", "networks-only", "u2pl-lean", "u2pl-lean-cuda-graph", "u2pl-paper")
QUICKLY_COMPILED = "class_sample"  # integers, which no compiler rounds
REHEARSED = {"voc": "tiny", "camvid": "tiny", "ade20k": "tiny-wide", "cityscapes": "tiny-wide"}
MAIN_OPS = ("pixel_stats", "upsampled_cross_entropy", "contrastive_loss", "ring_push")  # measured first
COMPILED = ("pixel_stats", "upsampled_cross_entropy")


class Plan:
    """Build the stages for one call; ``quick`` tries them with tiny workloads."""

    def __init__(self, args: argparse.Namespace, out: Out, work: Path) -> None:
        self.device, self.quick, self.out, self.work = args.device, args.quick, out, work
        self.args = args
        self.on_gpu = None if args.device == "cuda" else "needs a GPU"

    def part(self, name: str) -> list[Stage]:
        return {"right": self.right, "fast": self.fast, "learn": self.learn}[name]()

    # --- right --------------------------------------------------------------------------------------------------------

    def right(self) -> list[Stage]:
        begun = ("extension",)
        return [
            self.extension(),
            self.kernels(limit=40, processes=6),
            self.tests(),
            Stage(
                "tests again",
                [sys.executable, "-m", "benchmarks.gpu_check.again", str(self.out.folder)],
                15,
                30,
                ("tests",),
                ("pytest",),
            ),
            # Ignore driver calls of libraries, which may fail.
            self.sanitized("memcheck", "--padding", "512", "--report-api-errors", "no"),
            self.sanitized("racecheck"),
            Stage(
                "whole step",
                [sys.executable, "-m", "benchmarks.measure.whole_step"],
                30,
                75,
                ("kernels",),
                TRAINED_WITH,
                skipped=self.on_gpu,
            ),
            self.train(FUSED, begun),
            self.train(REFERENCE, begun, U2PL_FAST_BACKEND="reference"),
        ]

    def extension(self) -> Stage:
        """Build the compiled ops for this GPU, unless they exist."""
        command = [sys.executable, "-m", "benchmarks.gpu_check.extension", "--device", self.device]
        return Stage("extension", command, 6, 45, imports=("torch", "setuptools"))

    def kernels(self, limit: float, processes: int) -> Stage:
        chosen = ["--workload", "tiny", "--dtype", "float32", "--layout", "contiguous"] if self.quick else []
        target = [] if self.device == "cuda" else ["--target", "sm_90"]
        command = [sys.executable, "-m", "benchmarks.aot.precompile", "--processes", str(processes), *chosen, *target]
        return Stage("kernels", command, 15, limit, ("extension",), ("torch", "triton"))

    def tests(self) -> Stage:
        marked, files = ("gpu", TEST_FILES) if self.device == "cuda" else ("not gpu", ("tests/ops/test_thin_mask.py",))
        processes = str(10 if self.device == "cuda" else 2)
        command = [sys.executable, "-m", "pytest", "-q", "-rN", "--tb", "short", "-m", marked]
        command += ["-p", "benchmarks.gpu_check.reporter", "--report-to", str(self.out / TESTS)]
        command += ["-p", "no:cacheprovider", "--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
        command += ["-n", processes, "--dist", "worksteal", "--max-worker-restart", "100", *files]
        return Stage("tests", command, 60, 100, ("extension",), ("pytest", "xdist", "pytest_timeout"))

    def sanitized(self, tool: str, *options: str) -> Stage:
        """Run every op under compute-sanitizer. Without torch's memory cache, an overrun hits unallocated memory."""
        from .counters import own

        found = shutil.which("compute-sanitizer")
        toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")
        sanitizer = found or (str(toolkit) if toolkit.exists() else None)
        watched = [option for kernel in own() for option in ("--kernel-name", f"kns={kernel}")]
        command = [sanitizer or "compute-sanitizer", "--tool", tool, *options, "--error-exitcode", "9"]
        command += ["--target-processes", "application-only", "--launch-timeout", "60", *watched]
        command += [sys.executable, "-m", "benchmarks.measure.exercise", "--device", "cuda"]
        reason = self.on_gpu or (None if sanitizer else "compute-sanitizer is not found")
        return Stage(
            tool,
            command,
            60,
            80,
            ("kernels",),
            ("torch",),
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            reason,
        )

    def train(self, name: str, after: tuple[str, ...], **environment: str) -> Stage:
        """Run a short training that logs every loss."""
        folder = self.work / name.replace(" ", "-")
        chosen = [*QUICK_TRAINING, "--steps", "6"] if self.quick else ["--steps", "100"]
        flags = [*TRAINING_FLAGS, *chosen, "--device", self.device, "--eval-every", "1000", "--workers", "2"]
        command = [sys.executable, "-m", "u2pl_fast.train", *flags, "--out", str(folder)]
        return Stage(
            name, command, 40, 80, after, TRAINED_WITH, environment, collect=self.collect_training(name, folder)
        )

    def collect_training(self, name: str, folder: Path) -> Callable[[Out], None]:
        def collect(out: Out) -> None:
            log = folder / "log.jsonl"
            steps = [row for row in rows(log) if "loss" in row]
            if steps:
                path = out / TRAINING
                found = json.loads(path.read_text()) if path.exists() else {}
                found[name] = {"step": [s["step"] for s in steps], "loss": [s["loss"] for s in steps]}
                write_text(path, json.dumps(found) + "\n")

        return collect

    # --- fast ---------------------------------------------------------------------------------------------------------

    def fast(self) -> list[Stage]:
        return [
            self.extension(),
            self.kernels(limit=22, processes=os.cpu_count() or 1),
            # On cores that are otherwise idle: torch.compile takes minutes, and keeps its results on disk.
            self.compilers("voc", "ade20k"),
            self.bench("ops voc", 38, 52, ("kernels",), *self._ops("voc")),
            self.bench("ops ade20k", 38, 48, ("ops voc",), *self._ops("ade20k")),
            self.bench("class loop", 28, 36, ("ops ade20k",), *self._class_loop("voc")),
            self.bench("steps camvid", 18, 30, ("class loop",), *self._steps("camvid")),
            self.bench("steps voc", 38, 54, ("steps camvid",), *self._steps("voc")),
            self.bench("ops compiled", 20, 30, ("steps voc", "compilers"), *self._compiled("voc", "ade20k")),
            self.counters(("ops compiled",)),
            # In the remaining time:
            self.bench("step as graph", 18, 40, ("counters",), "--op", "step_as_graph", *self._on("voc")),
            self.bench("ops others", 18, 40, ("step as graph",), *self._others("camvid")),
            self.growth(("ops others",)),
        ]

    def compilers(self, *workloads: str) -> Stage:
        ops, workloads = self._baselines(*workloads)
        command = [sys.executable, "-m", "benchmarks.aot.warm_compile", "--device", self.device]
        command += ["--op", *ops, *self._on(*workloads)]
        return Stage("compilers", command, 90, 150, ("extension",), ("torch",))

    def _baselines(self, *workloads: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the ops that `torch.compile` is measured for, with their workloads."""
        return ((QUICKLY_COMPILED,), workloads[:1]) if self.quick else (COMPILED, workloads)

    def _on(self, *workloads: str) -> list[str]:
        return ["--workload", *(REHEARSED[w] if self.quick else w for w in workloads)]

    def _ops(self, workload: str) -> list[str]:
        ordered = [*MAIN_OPS, *(name for name in names() if name not in (*MAIN_OPS, *TRAININGS))]
        return ["--op", *ordered, *self._on(workload), *MAIN_FORMATS, "--impl", "eager", "fused"]

    def _others(self, *workloads: str) -> list[str]:
        return ["--op", *MAIN_OPS, *self._on(*workloads), *SINGLE_FORMAT, "--impl", "eager", "fused"]

    def _class_loop(self, workload: str) -> list[str]:
        chosen = [*self._on(workload), *SINGLE_FORMAT, "--bank", "literal"]
        return ["--op", "contrastive_loss", *chosen, "--impl", "eager", "class-loop", "fused"]

    def _compiled(self, *workloads: str) -> list[str]:
        ops, workloads = self._baselines(*workloads)
        return ["--op", *ops, *self._on(*workloads), *SINGLE_FORMAT, "--impl", "eager", "compile", "fused"]

    def _steps(self, workload: str) -> list[str]:
        return ["--op", "step", *self._on(workload), "--impl", *STEPS]

    def bench(self, name: str, expected: float, limit: float, after: tuple[str, ...], *arguments: str) -> Stage:
        """Run part of the suite, and add its records to the results."""
        command = [sys.executable, "-m", "benchmarks", "--device", self.device, *arguments]
        command += ["--json", str(self.out / RESULTS), "--merge", "--keep-disagreeing"]
        command += [*(["--quick"] if self.quick else []), *([] if self.device == "cuda" else ["--no-memory"])]
        imports = ("torch", *TRAINED_WITH) if set(TRAININGS) & set(arguments) else ("torch",)
        return Stage(name, command, expected, limit, after, imports)

    def counters(self, after: tuple[str, ...]) -> Stage:
        from .counters import profiler

        reason = self.on_gpu or (None if profiler() else "ncu is not found")
        command = [sys.executable, "-m", "benchmarks.gpu_check.counters", str(self.out.folder)]
        return Stage("counters", command, 30, 42, after, ("torch",), skipped=reason)

    def growth(self, after: tuple[str, ...]) -> Stage:
        command = [sys.executable, "-m", "benchmarks", "--growth", "--impl", "fused", "--device", self.device]
        command += ["--json", str(self.out / GROWTH), *(["--quick"] if self.quick else [])]
        return Stage("growth", command, 20, 40, after, ("torch",))

    # --- learn --------------------------------------------------------------------------------------------------------

    def learn(self) -> list[Stage]:
        args, seconds = self.args, self.args.seconds["learn"]
        results = self.work / "accuracy-results"
        command = [sys.executable, "-m", "benchmarks.accuracy", "--device", self.device, "--only", "msrc"]
        command += ["--msrc", str(args.msrc), "--encoder-weights", str(args.encoder_weights)]
        command += [
            "--minutes",
            f"{(seconds - 10) / 60:.2f}",
            "--jobs",
            str(min(6, max(1, (os.cpu_count() or 1) // 2))),
        ]
        command += ["--work", str(self.work / "accuracy"), "--results", str(results)]

        def collect(out: Out) -> None:
            known = {row["name"]: row for row in rows(out / ACCURACY)}
            known |= {path.stem: {"name": path.stem} | json.loads(path.read_text()) for path in results.glob("*.json")}
            if known:
                replace(out / ACCURACY, known.values())

        reason = None if args.msrc else "no --msrc"
        return [
            self.extension(),
            Stage("accuracy", command, seconds - 10, seconds, ("extension",), TRAINED_WITH, {}, reason, collect),
        ]
