"""Write the tables of the workloads, of the machines that measured them, and of predicted times on others."""

from pathlib import Path

from ...measure import roofline
from ...measure.workloads import NAMED, REPORTED
from .markdown import markdown
from .records import folder_data, machine_rows, number, records_of


def machines(folder: Path) -> str:
    """Return the machines that the results of a folder come from."""

    def ceilings(c: dict[str, float]) -> str:
        return f"{c['bytes'] / 1e9:.1f} GB/s, {c['flops'] / 1e9:.0f} GFLOP/s, {c['exps'] / 1e9:.2f} G/s"

    rows = machine_rows(folder, ceilings)
    if not rows:
        return f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return markdown(["machine", "threads", "versions", "commit", "time", "measured copy, matmul, exp"], rows)


def workloads(_: Path) -> str:
    rows = []
    for name in REPORTED:
        w = NAMED[name]
        bank = (
            f"{w.background_capacity:,} / {w.capacity:,}" if w.background_capacity != w.capacity else f"{w.capacity:,}"
        )
        row = [f"`{name}`", f"{w.labeled} + {w.unlabeled}", w.num_classes, f"{w.crop[0]}×{w.crop[1]}"]
        row += [f"{w.grid[0]}×{w.grid[1]}", w.align_corners, w.dim, w.anchors, w.negatives, bank]
        rows.append([str(cell) for cell in row])
    return markdown(["name", "images", "C", "crop", "h×w", "align_corners", "D", "M", "N", "K"], rows)


def predictions(folder: Path) -> str:
    """Return the predicted floors on published machines, beside the measured times if there are any."""
    measured = {}
    for record in records_of(folder / "cuda"):
        chosen = (record["impl"], record["dtype"], record["layout"]) == ("fused", "float32", "contiguous")
        # The same case as the floors: with gradient if the op has one, and the literal bank.
        if chosen and record["bank"] != "capped" and record["ms_median"]:
            key = record["op"], record["workload"]
            measured[key] = max(measured.get(key, 0), record["ms_median"])
    header = ["op", "workload", *(f"{machine}, *predicted*" for machine in roofline.PUBLISHED)]
    if measured:
        (name,) = {data["machine"]["name"] for data in folder_data(folder / "cuda")}
        header.append(f"{name}, measured")
    rows = []
    for op, name in ((op, name) for op in roofline.COSTS for name in REPORTED):
        floors = roofline.predictions(op, NAMED[name], itemsize=4, gradient=True, capped=False)
        row = [f"`{op}`", name, *(f"{number(ms)} ({kind})" for ms, kind in floors.values())]
        rows.append([*row, *([number(measured.get((op, name)))] if measured else [])])
    return markdown(header, rows)


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    machines: "benchmarks/results/{device}",
    workloads: "benchmarks/measure/workloads.py",
    predictions: "benchmarks/measure/roofline.py",
}
