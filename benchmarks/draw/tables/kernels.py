"""Write the tables of the GPU kernels, counted without a GPU: resources, instructions, launches."""

import json
from pathlib import Path

from ...measure import roofline
from ...measure.workloads import NAMED, REPORTED
from .markdown import markdown
from .records import number

NOT_COMPILED = "Not compiled yet: `python -m benchmarks.aot > benchmarks/results/aot-triton-VERSION.json`\n"
EXTRAS = ("HAS_WEIGHT", "HAS_PIXEL_WEIGHT", "SMOOTHING")


def resources(folder: Path) -> str:
    """Return the most that any compiled variant of each kernel needs on each target, by version of Triton."""
    versions = _compiled(folder)
    if not versions:
        return NOT_COMPILED
    most: dict[str, dict[tuple[str, str], dict]] = {}
    for version, rows in versions.items():
        for row in rows:
            by_target = most.setdefault(row["kernel"], {})
            known = by_target.setdefault((row["target"], version), row)
            by_target[row["target"], version] = {x: max(known[x], row[x]) for x in ("registers", "spills", "shared")}
    columns = list(dict.fromkeys(column for by_target in most.values() for column in by_target))
    targets = list(dict.fromkeys(target for target, _ in columns))
    columns = sorted(columns, key=lambda column: targets.index(column[0]))
    table = [
        [f"`{kernel}`", *(_used(by_target[x]) if x in by_target else "—" for x in columns)]
        for kernel, by_target in most.items()
    ]
    return markdown(["kernel", *(f"{target}, {version}" for target, version in columns)], table)


def machine_code(folder: Path) -> str:
    """Return the longest variant of each kernel on sm_90 in each format, without weights; equal formats share a row."""
    versions = _compiled(folder)
    if not versions:
        return NOT_COMPILED
    longest: dict[tuple[str, str], dict[str, dict]] = {}
    for version, rows in versions.items():
        for row in rows:
            if row["target"] == "sm_90" and not any(row.get(extra) for extra in EXTRAS):
                by_version = longest.setdefault((row["kernel"], f"{row['dtype']} {row['layout']}"), {})
                if row["instructions"] > by_version.get(version, {"instructions": 0})["instructions"]:
                    by_version[version] = row
    alike: dict[tuple, list[str]] = {}
    for (kernel, form), by_version in sorted(longest.items()):
        both = list(by_version.values())

        def cell(name: str, both: list[dict] = both) -> str:
            return " → ".join(dict.fromkeys(str(row[name]) if row[name] not in (None, "") else "—" for row in both))

        used = " → ".join(dict.fromkeys(map(_used, both)))
        counted = [cell(name) for name in ("instructions", "per_element", "shuffles", "loads", "stores")]
        alike.setdefault((f"`{kernel}`", used, *counted), []).append(form)
    order = list(dict.fromkeys(kernel for kernel, _ in longest))
    every = len({form for _, form in longest})
    table = []
    for (kernel, *cells), forms in alike.items():
        table.append([kernel, "all" if len(forms) == every else ", ".join(forms), *cells])
    table.sort(key=lambda row: order.index(row[0].strip("`")))
    header = ["kernel", "reads", f"registers / spills / shared, {' → '.join(versions)}", "instructions"]
    return markdown([*header, "per pixel and class", "shuffles", "loads", "stores"], table)


def launches(folder: Path) -> str:
    """Return the launches of a step's parts before and after they were merged, counted without a GPU."""
    path = folder / "launches.json"
    if not path.exists():
        return "Not counted yet.\n"
    table = [[row["what"], f"{row['before']:,}", f"{row['after']:,}"] for row in json.loads(path.read_text())]
    return markdown(["launches of", "before", "now"], table)


def issue(folder: Path) -> str:
    """Return the time that the first machine of ``roofline.PUBLISHED`` needs to issue the instructions of each op."""
    (machine, ceilings), *_ = roofline.PUBLISHED.items()
    lanes = ceilings.exps / roofline.EXPS_A_CLOCK * roofline.LANES_A_CLOCK
    versions = _compiled(folder)
    if not versions:
        return NOT_COMPILED
    newest = list(versions.values())[-1]
    rows = []
    for op, images in (("pixel_stats", "unlabeled"), ("ohem_mask", "labeled"), ("upsampled_cross_entropy", "labeled")):
        chosen = next(
            row
            for row in newest
            if row["kernel"].startswith(op)
            and row.get("per_element")
            and (row["target"], row["layout"]) == ("sm_90", "nchw")
        )
        for name in REPORTED:
            w = NAMED[name]
            if (-(-w.crop[0] // w.grid[0])) ** 2 != chosen["R"] * chosen["S"]:  # another number of pixels a lane
                continue
            elements = getattr(w, images) * w.crop[0] * w.crop[1] * w.num_classes
            ms = 1e3 * elements * chosen["per_element"] / lanes
            floor, kind = roofline.predictions(op, w, itemsize=4, gradient=True, capped=False)[machine]
            rows.append([f"`{op}`", name, f"{number(floor)} ({kind})", number(ms), f"{100 * floor / ms:.0f} %"])
    header = [
        "op",
        "workload",
        f"floor, ms, {machine}, *predicted*",
        "instructions, ms, *predicted*",
        "floor ÷ instructions",
    ]
    return markdown(header, rows)


def _compiled(folder: Path) -> dict[str, list[dict]]:
    """Return what was compiled ahead of time, by version of Triton."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("aot-triton-*.json"))]
    return {".".join(one["triton"].split(".")[:2]): one["rows"] for one in found}


def _used(row: dict) -> str:
    return f"{row['registers']} / {row['spills']} / {row['shared']}"


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    resources: "benchmarks/results/aot-triton-*.json",
    machine_code: "benchmarks/results/aot-triton-*.json",
    launches: "benchmarks/results/launches.json",
    issue: "benchmarks/results/aot-triton-*.json",
}
