"""``python -m benchmarks.gpu_check --out DIR``: everything that needs a GPU, in one command and under nine minutes.

Builds the extension for the card present, runs the tests on it, the ring buffer under compute-sanitizer, the
benchmarks, and a short training by the fused ops and by the reference; with ``--camvid`` also as many runs of the
accuracy suite as there is time for. Needs an unpacked checkout, torch ≥ 2.10 and nvcc, and no network: what
``--missing`` prints can be brought along as pure-Python wheels in a folder (``--wheels``).

A stage that fails, or whose packages are missing, is reported, and the others run. All ends in DIR:
``results.json`` (the schema of ``benchmarks/results.py``, and ``stages``, ``training``, ``curves``), ``log.txt``,
pictures, and the finished runs in ``accuracy/``. ``--device cpu --quick`` rehearses every stage that needs no GPU.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MINUTES = 9.0
LOG_BYTES = 2**20  # of each stage's output, the end
IMPORTS = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "pytest-benchmark": "pytest_benchmark",
}
NEEDLESS = {"pybind11", "ruff", "hypothesis", "pytest-benchmark", "pytest-xdist"}  # torch brings pybind11's headers
TRAINED_WITH = ("torch", "tyro", "segmentation_models_pytorch")
TRAINING = ("--dataset", "shapes", "--amp", "--channels-last", "--log-every", "1", "--seed", "0")
PATIENCE = 5  # a rehearsal on a CPU may take so many times the seconds that a stage has on a GPU


@dataclass
class Stage:
    """One command: ``limit`` seconds at most; left out, with the reason, where an import is missing."""

    name: str
    command: list[str]
    limit: float
    imports: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    left_out: str | None = None


def packages() -> dict[str, str]:
    """Every package that the stages use: its name, and what it is imported as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in named]
    return {name: IMPORTS.get(name, name) for name in names if name not in NEEDLESS} | {"triton": "triton"}


def missing() -> list[str]:
    return [name for name, module in packages().items() if importlib.util.find_spec(module) is None]


def stages(args: argparse.Namespace, work: Path) -> list[Stage]:
    """What to run, what others build upon first."""
    python, device = sys.executable, args.device
    results, few = str(work / "ops.json"), ["--quick"] if args.quick else []
    on_card = None if device == "cuda" else "needs a GPU"
    sanitizer = shutil.which("compute-sanitizer") or next(
        (str(p) for p in [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin/compute-sanitizer")] if p.exists()),
        None,
    )
    tests = ["tests"] if device == "cuda" else ["tests/test_ops_ring_push.py", "tests/test_ops_pixel_stats.py"]

    def sanitized(tool: str) -> Stage:
        watched = [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        command = [*watched, python, "-m", "pytest", "-q", "tests/test_ops_ring_push.py", "-k", "cuda and not graph"]
        reason = on_card or (None if sanitizer else "compute-sanitizer is not found")
        return Stage(f"sanitizer {tool}", command, 60, ("pytest",), left_out=reason)

    def bench(name: str, limit: float, *arguments: str, merge: bool = True) -> Stage:
        command = [python, "-m", "benchmarks", "--device", device, *few, "--json", results, "--op", *arguments]
        return Stage(name, [*command, *(["--merge"] if merge else [])], limit, ("torch",))

    def train(name: str, **environment: str) -> Stage:
        steps = "6" if args.quick else "200"
        flags = [*TRAINING, "--device", device, "--steps", steps, "--eval-every", steps, "--out", str(work / name)]
        return Stage(name, [python, "-m", "u2pl_fast.train", *flags], 90, TRAINED_WITH, environment)

    pixel = ("pixel_stats", "upsampled_cross_entropy", "masked_quantile")
    ring = ("contrastive", "ring_push", "info_nce", "contrast_masks", "thin_mask")
    fast = ("--impl", "eager", "class-loop", "fused")
    single = ("--dtype", "float32", "--layout", "contiguous")
    tested = "cuda or triton or graph" if device == "cuda" else "cpu"
    built = device == "cpu" and any((ROOT / "u2pl_fast").glob("_C*.so"))
    compiled = ("--workload", "tiny") if few else ("upsampled_cross_entropy", "contrastive", "--workload", "voc")
    growth = [python, "-m", "benchmarks", "--growth", "--impl", "fused", "--device", device, *few]
    return [
        Stage(
            "build",
            [python, "setup.py", "-q", "build_ext", "--inplace"],
            200,
            ("torch", "setuptools"),
            {"TORCH_CUDA_ARCH_LIST": _architecture()} if device == "cuda" else {},
            "the extension is built" if built else None,
        ),
        Stage("tests", [python, "-m", "pytest", "-q", "-k", tested, *tests], 120, ("pytest",)),
        sanitized("memcheck"),
        sanitized("racecheck"),
        bench("bench fused", 100, *pixel, *ring, *fast, *(("--no-memory",) if few else single), merge=False),
        train("train fused"),
        train("train reference", U2PL_FAST_BACKEND="reference"),
        bench("bench step", 60, "step", "--no-memory", *(() if few else ("--workload", "camvid", "voc"))),
        Stage(
            "bench growth",
            [*growth, "--json", str(work / "growth.json"), "--plot", str(args.out)],
            60,
            ("torch", "matplotlib"),
        ),
        bench("bench half", 60, *pixel, *ring, *fast, "--dtype", "bfloat16", "--no-memory"),
        bench("bench compile", 100, "pixel_stats", *compiled, *single, "--impl", "eager", "compile", "fused"),
        accuracy(args, work),
    ]


def accuracy(args: argparse.Namespace, work: Path) -> Stage:
    """Cells of the accuracy suite, those wanted most first, until the time is over."""
    command = [sys.executable, "-m", "benchmarks.accuracy", "--device", args.device, "--work", str(work / "accuracy")]
    command += ["--data-root", str(args.camvid), "--results", str(args.out / "accuracy")]
    command += ["--encoder-weights", args.encoder_weights]
    return Stage("accuracy", command, 60 * args.minutes, TRAINED_WITH, left_out=None if args.camvid else "no --camvid")


def _architecture() -> str:
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}"


def run(stage: Stage, seconds: float, environment: dict[str, str], log: Any) -> dict[str, Any]:
    """Status, seconds and the last line of one stage; its output goes to ``log``."""
    absent = [name for name in stage.imports if importlib.util.find_spec(name) is None]
    reason = stage.left_out or (f"no module {', '.join(absent)}; see --missing" if absent else None)
    limit = min(stage.limit, seconds)
    if reason is None and limit < 5:
        reason = "no time left"
    row = {"stage": stage.name, "status": "left out", "seconds": 0.0, "note": reason or ""}
    print(f"\n=== {stage.name}: {reason or ' '.join(stage.command)}", file=log, flush=True)
    if reason:
        return row
    start = time.monotonic()
    # Into a file, and a session of its own: what a stage leaves running is ended with it.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            stage.command,
            cwd=ROOT,
            env=environment | stage.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status, note = ("passed", "") if code == 0 else ("failed", f"exit status {code}")
        except subprocess.TimeoutExpired:
            status, note = "stopped", f"after {limit:.0f} s; what it had measured is kept"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - LOG_BYTES))
        text = output.read().decode(errors="replace")
    print(text, file=log, flush=True)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return row | {"status": status, "seconds": round(time.monotonic() - start, 1), "note": note or last[:120]}


def training(work: Path) -> list[dict[str, Any]]:
    """The loss of every step of both trainings."""
    rows = []
    for name in ("train fused", "train reference"):
        path = work / name / "log.jsonl"
        if path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            steps = [line for line in lines if "loss" in line]
            rows.append({"name": name, "step": [s["step"] for s in steps], "loss": [s["loss"] for s in steps]})
    return rows


def collect(args: argparse.Namespace, work: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``results.json``, whatever was reached, and the pictures."""
    from . import machine, results

    ops, growth = work / "ops.json", work / "growth.json"
    if ops.exists():
        data = json.loads(ops.read_text())
    else:
        data = {"machine": machine.describe(args.device, quick=True), "records": [], "parts": []}
    if growth.exists():
        data["curves"] = json.loads(growth.read_text())["curves"]
    data |= {"training": training(work), "stages": rows}
    results.save(args.out / "results.json", data)
    if importlib.util.find_spec("matplotlib") and data["records"]:
        from . import plots

        plots.bars(data, args.out)


def summary(args: argparse.Namespace, rows: list[dict[str, Any]]) -> str:
    """The stages, and the figures that matter."""
    from .tables import headline_of

    lines = [f"{row['stage']:<20} {row['status']:<9} {row['seconds']:7.1f} s  {row['note']}" for row in rows]
    data = json.loads((args.out / "results.json").read_text())
    lines += ["", *headline_of(data["records"]).splitlines()]
    losses = [row["loss"] for row in data["training"]]
    if len(losses) == 2 and all(losses):
        fused, plain = losses
        every = list(zip(fused, plain, strict=False))
        mean = sum(abs(a - b) for a, b in every) / sum(b for _, b in every)
        lines.append(
            f"training, fused and reference: first losses {fused[0]:.5f} and {plain[0]:.5f}, "
            f"{100 * mean:.2f} % apart over {len(every)} steps"
        )
    return "\n".join(lines)


def unpack(wheels: Path, site: Path) -> None:
    """Pure-Python wheels are importable as they lie in the archive."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for results.json, log.txt and pictures")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a rehearsal, on tiny workloads")
    parser.add_argument("--wheels", type=Path, help="folder of pure-Python wheels to add")
    parser.add_argument("--minutes", type=float, help=f"for everything together; unset: {MINUTES:g} on a GPU")
    parser.add_argument("--camvid", type=Path, help="folder of CamVid, for the accuracy suite")
    parser.add_argument("--encoder-weights", default="imagenet", help="of the accuracy suite: a .safetensors file")
    parser.add_argument("--missing", action="store_true", help="print the packages that are not installed, and end")
    args = parser.parse_args(argv)
    if args.missing:
        print("\n".join(missing()))
        return 0
    if args.out is None:
        parser.error("--out DIR is needed")
    if args.camvid and not args.camvid.is_dir():
        parser.error(f"--camvid: no folder {args.camvid}")
    if args.wheels and not args.wheels.is_dir():
        parser.error(f"--wheels: no folder {args.wheels}")
    patience = 1 if args.device == "cuda" else PATIENCE
    args.minutes = args.minutes or MINUTES * patience
    deadline = time.monotonic() + 60 * args.minutes - 15  # for pictures and the table
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work, site = Path(folder), Path(folder) / "site"
        if args.wheels:
            unpack(args.wheels, site)
            sys.path.append(str(site))
        import torch

        if args.device == "cuda" and not torch.cuda.is_available():
            parser.error("--device cuda: torch sees no GPU here; rehearse with --device cpu --quick")
        paths = [os.environ.get("PYTHONPATH", ""), str(site) if args.wheels else ""]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p), "PYTHONUNBUFFERED": "1"}
        rows = []
        with (args.out / "log.txt").open("w") as log:
            for stage in stages(args, work):
                stage.limit *= patience
                rows.append(run(stage, deadline - time.monotonic(), environment, log))
                print(f"{rows[-1]['stage']:<20} {rows[-1]['status']:<9} {rows[-1]['note']}", flush=True)
        collect(args, work, rows)
        print("\n" + summary(args, rows))
    return 1 if any(row["status"] in ("failed", "stopped") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
