"""Write the tables of whole training steps: time, memory, phases, and traffic between processes."""

import itertools
import statistics
from pathlib import Path

from u2pl_fast.training.learner import PHASES
from u2pl_fast.training.traffic import step_traffic

from ...measure import results, step_memory
from ...measure.registry import load
from ...measure.workloads import NAMED, REPORTED
from .markdown import markdown
from .records import folder_data, grouped, number, ratio, records_of, times

WORLDS = (2, 4, 8, 32, 128, 1024)
PAPER_PARTS = {
    "mean-teacher": "mean-teacher",
    "labeled-teacher": "+ labeled images",
    "paper-networks": "+ 3×3 head",
    "u2pl-paper": "+ loss",
}
SHOWN = {
    "supervised": "labeled images only",
    "mean-teacher": "no contrastive loss",
    "u2pl-lean": "`--recipe lean`, the default",
    "u2pl-paper": "`--recipe paper`",
    "u2pl-class-loop": "networks of `lean`, losses as Python loops over classes",
}
MEMORY_OF = {"mean-teacher": {"method": "mean-teacher"}, "u2pl-lean": {}, "u2pl-paper": {"recipe": "paper"}}


def step(folder: Path) -> str:
    """Return speed, ratios to cheaper methods, and memory of whole training steps."""
    rows = []
    for setting in grouped(r for r in records_of(folder) if r["op"] == "step"):
        for impl in load("step").implementations:
            record = setting.get(impl, {})
            if not record.get("ms_median"):  # not measured, or only on a GPU
                continue
            w = NAMED[record["workload"]]
            images = w.labeled if impl == "supervised" else w.images
            row = [record["workload"], f"`{impl}`", number(record["ms_median"])]
            row.append(number(1e3 * images / record["ms_median"]))
            row += [times(ratio(setting, impl, other)) for other in ("mean-teacher", "networks-only")]
            rows.append([*row, number(record["peak_mb"])])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    header = ["workload", "method", "ms", "images/s", "÷ mean-teacher", "÷ networks-only", "+MiB"]
    return markdown(header, rows)


def step_summary(folder: Path) -> str:
    """Return the time of a step of the main methods, one row each, by workload."""
    found = {next(iter(s.values()))["workload"]: s for s in grouped(r for r in records_of(folder) if r["op"] == "step")}
    rows = []
    for impl, what in SHOWN.items():
        row = [f"`{impl}`", what]
        for setting in found.values():
            row += [number(setting.get(impl, {}).get("ms_median")), times(ratio(setting, impl, "mean-teacher"))]
        rows.append(row)
    header = ["method", "is", *(name for w in found for name in (f"`{w}` ms", f"`{w}` ÷ mean-teacher"))]
    if not found:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    return markdown(header, rows)


def paper(folder: Path) -> str:
    """Return the time that each part of the paper recipe adds to a mean-teacher step: medians over rounds."""
    rows = []
    for setting in grouped(r for r in records_of(folder) if r["op"] == "step"):
        if any(name not in setting or setting[name]["ms_median"] is None for name in PAPER_PARTS):
            continue
        rounds = [setting[name]["ms_all"] for name in PAPER_PARTS]
        added = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(rounds)]
        row = [number(statistics.median(part)) for part in (rounds[0], *added, rounds[-1])]
        rows.append([setting["mean-teacher"]["workload"], *row, times(ratio(setting, "u2pl-paper", "mean-teacher"))])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    return markdown(["workload", *(f"{part} ms" for part in PAPER_PARTS.values()), "all ms", "÷ mean-teacher"], rows)


def memory(folder: Path) -> str:
    """Return the predicted memory of a training step, beside the measured memory."""
    measured = {
        (r["workload"], r["impl"]): r["peak_mb"] for r in records_of(folder) if r["op"] == "step" and r["peak_mb"]
    }
    rows = []
    for name in REPORTED:
        for impl, choices in MEMORY_OF.items():
            m = step_memory.predicted(NAMED[name], **choices)
            parts = (m.weights, m.bank, m.step, m.total)
            row = [name, f"`{impl}`", f"{m.parameters:.1f}", *(f"{part:,.0f}" for part in parts)]
            rows.append([*row, number(measured.get((name, impl)))])
    columns = ("weights", "bank", "step", "all")
    return markdown(["workload", "method", "M parameters", *columns, "step, measured"], rows)


def phases(folder: Path) -> str:
    """Return the time of each phase of a training step."""
    found = {results.key(row): row for data in folder_data(folder) for row in data.get("parts", [])}
    rows = []
    for row in found.values():
        if row["op"] == "step" and row["workload"] in REPORTED:
            rows.append([row["workload"], f"`{row['impl']}`", *(number(row["parts"].get(p)) for p in PHASES)])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    return markdown(["workload", "method", *(f"{phase} ms" for phase in PHASES)], rows)


def traffic(_: Path) -> str:
    """Return the predicted traffic of a `voc` step, from shapes."""
    memory, w = step_memory.predicted(NAMED["voc"]), NAMED["voc"]
    sizes = {"parameters": round(1e6 * memory.parameters), "buffers": memory.buffers}
    sizes |= {"num_classes": w.num_classes, "dim": w.dim}
    rows = []
    for world in WORLDS:
        parts = step_traffic(world, shared_keys=-(-max(w.caps) // world), **sizes)
        rows.append([f"{world:,}", *(f"{size / 1e6:,.3g}" for size in parts.values())])
    return markdown(["processes", *parts], rows)


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    step: "benchmarks/results/{device}",
    step_summary: "benchmarks/results/{device}",
    paper: "benchmarks/results/{device}",
    memory: "benchmarks/measure/step_memory.py",
    phases: "benchmarks/results/{device}",
    traffic: "benchmarks/measure/step_memory.py",
}
