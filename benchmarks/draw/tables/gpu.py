"""Write the tables of GPU results, and of the predicted time of each stage of the GPU check.

Until there are results, one sentence replaces all tables.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from ...gpu_check.counters import METRICS, name_of
from ...gpu_check.out import Out, loss_pairs
from ...gpu_check.parts import SECONDS, Plan
from ...gpu_check.schedule import timetable as times_of
from ...measure import results
from ...measure.ops import TRAININGS
from ...measure.workloads import NAMED
from .markdown import markdown
from .records import folder_data, grouped, machine_rows, number, ratio, records_of, times

NOTHING = "No figure comes from a GPU yet. To measure on yours, run `make gpu-check`.\n"


def gpu(folder: Path) -> str:
    """Return every table of the folder that has rows, each below a line that describes it."""
    parts = (
        ("Measured on", _machines(folder)),
        (
            "Ops. *ms*: the device's work alone; *graph*: as a CUDA graph; *host*: until Python has queued it; "
            "*of floor*: the share of what the ceilings measured there allow",
            _ops(folder),
        ),
        ("Whole training steps, as a loop runs them", _steps(folder)),
        ("Kernels of one call, `voc`, float32, contiguous", _launches(folder)),
        ("Hardware counters of the heaviest kernels", _counters(folder)),
        ("The same training with the fused ops and with the reference", _training(folder)),
    )
    return "\n".join(f"{title}:\n\n{table}" for title, table in parts if table) or NOTHING


def _table(header: list[str], rows: list[list[str]]) -> str:
    return markdown(header, rows) if rows else ""


def _machines(folder: Path) -> str:
    def ceilings(c: dict[str, float]) -> str:
        return f"{c['bytes'] / 1e9:,.0f} GB/s, {c['flops'] / 1e12:.1f} TFLOP/s, {c['exps'] / 1e12:.2f} T/s"

    header = ["GPU", "CPU threads", "versions", "commit", "time", "copy, fp32 matmul, exp"]
    return _table(header, machine_rows(folder, ceilings))


def _ops(folder: Path) -> str:
    rows = []
    for setting in grouped(r for r in records_of(folder) if r["op"] not in TRAININGS):
        fused = setting.get("fused", {})
        if not fused.get("ms_median"):
            continue
        row = [f"`{fused['op']}`", *(fused[n] or "" for n in ("workload", "dtype", "layout", "bank", "pass"))]
        row += [number(fused.get(n)) for n in ("ms_median", "graph_ms", "host_ms")]
        row += [times(ratio(setting, other)) for other in ("eager", "compile", "class-loop")]
        row.append(f"{100 * fused['floor_ms'] / fused['ms_median']:.0f} %" if fused["floor_ms"] else "—")
        peaks = [number(setting.get(impl, {}).get("peak_mb")) for impl in ("eager", "fused")]
        rows.append([*row, " → ".join(peaks)])
    header = ["op", "workload", "dtype", "layout", "bank", "pass", "ms", "graph ms", "host ms"]
    return _table([*header, "eager ÷", "compile ÷", "class loop ÷", "of floor", "+MiB, eager → fused"], rows)


def _steps(folder: Path) -> str:
    rows = []
    for setting in grouped(r for r in records_of(folder) if r["op"] in TRAININGS):
        for impl, record in setting.items():
            if not record["ms_median"]:
                continue
            w = NAMED[record["workload"]]
            images = number(1e3 * w.images / record["ms_median"])
            row = [record["workload"], f"`{impl}`", number(record["ms_median"]), number(record.get("host_ms")), images]
            row += [times(ratio(setting, impl, other)) for other in ("mean-teacher", "networks-only")]
            rows.append([*row, number(record["peak_mb"])])
    header = ["workload", "method", "ms", "host ms", "images/s", "÷ mean-teacher", "÷ networks-only", "+MiB"]
    return _table(header, rows)


def _launches(folder: Path) -> str:
    found = {results.key(row): row for data in folder_data(folder) for row in data.get("kernels", ())}
    rows = []
    for row in found.values():
        if (row["workload"], row["dtype"], row["layout"]) != ("voc", "float32", "contiguous"):
            continue
        own = [(name_of(k["kernel"]), k) for k in row["kernels"]]
        heavy = [f"`{name}` {1e3 * k['ms']:.1f} µs" for name, k in own if name][:3]
        launches = str(sum(k["launches"] for k in row["kernels"]))
        rows.append([f"`{row['op']}`", row["bank"] or "", row["pass"], launches, ", ".join(heavy)])
    return _table(["op", "bank", "pass", "launches", "heaviest kernels"], rows)


def _counters(folder: Path) -> str:
    path = folder / "counters.json"
    kernels = json.loads(path.read_text())["kernels"] if path.exists() else []
    rows = [[f"`{name_of(k['kernel']) or k['kernel']}`", *(k.get(metric, "—") for metric in METRICS)] for k in kernels]
    return _table(["kernel", *METRICS.values()], rows)


def _training(folder: Path) -> str:
    pairs = loss_pairs(folder / "training.json")
    if not pairs:
        return ""
    apart = [abs(a - b) / abs(b) for a, b in pairs if b]
    row = [str(len(pairs)), number(pairs[0][0]), number(pairs[-1][0]), number(pairs[-1][1])]
    header = ["steps", "first loss", "last loss, fused", "last loss, reference", "median distance"]
    return _table(header, [[*row, f"{100 * statistics.median(apart):.2f} %"]])


def timetable(_: Path) -> str:
    """Return the predicted begin, end and limit of each stage of ``benchmarks.gpu_check``."""
    args = argparse.Namespace(device="cuda", quick=False, seconds=SECONDS, msrc=None, encoder_weights="imagenet")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(args, Out(Path(folder)), Path(folder))
        for part in ("right", "fast"):
            stages = plan.part(part)
            expected = times_of(stages, "expected")
            for stage in stages:
                begin, end = expected[stage.name]
                rows.append([f"`{part}`", stage.name, f"{begin:.0f} to {end:.0f}", f"{stage.limit:.0f}"])
            end = max(end for _, end in expected.values())
            rows.append([f"`{part}`", "**all**", f"**{end:.0f}**", f"**{SECONDS[part]}**"])
    return markdown(["part", "stage", "*predicted*, s", "limit, s"], rows)


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    gpu: "benchmarks/results/{device}",
    timetable: "benchmarks/gpu_check/parts.py",
}
