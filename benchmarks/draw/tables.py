"""``python -m benchmarks.draw.tables``: writes the tables of the documentation from the results, between their markers.

    <!-- table: pixel_stats cpu -->
    <!-- end of table -->

The first word is a table below or an op; the second, where there is one, a folder of ``benchmarks/results``. A number
in the documentation is thus a number in a results file; ``--check`` fails where they differ.
"""

import argparse
import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from u2pl_fast.training.learner import PHASES
from u2pl_fast.training.traffic import step_traffic

from ..accuracy import tables as accuracy
from ..measure import results, roofline, step_memory
from ..measure.ops import names
from ..measure.records import folder_data, grouped, machine_rows, number, ratio, records_of, times
from ..measure.registry import load
from ..measure.workloads import NAMED, REPORTED
from . import gpu_tables
from .markdown import markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("benchmarks.md", "training.md", "pixel-ops.md", "contrastive-ops.md", "models.md", "accuracy.md", "kernels.md")
DOCUMENTS = (
    *(ROOT / "docs" / page for page in PAGES),
    *(ROOT / "README.md", ROOT / "benchmarks" / "accuracy" / "LOG.md"),
)
MARKED = re.compile(r"(<!-- table: ([a-z_]+)(?: ([a-z0-9-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
BRANCH = "contrastive_loss"  # the op that is several others in one
IMPLS = ("eager", "class-loop", "compile", "fused")
WORLDS = (2, 4, 8, 32, 128, 1024)
PAPER_PARTS = {
    "mean-teacher": "mean-teacher",
    "labeled-teacher": "+ labelled images",
    "paper-networks": "+ 3×3 head",
    "u2pl-paper": "+ loss",
}
MEMORY_OF = {"mean-teacher": {"method": "mean-teacher"}, "u2pl-lean": {}, "u2pl-paper": {"recipe": "paper"}}

Rows = list[list[str]]


def op_table(op: str, folder: Path) -> str:
    """Times, ratios and memory of one op."""
    header = ["workload", "dtype", "layout", "bank", "pass", *(f"{impl} ms" for impl in IMPLS)]
    header += [f"{impl} ÷ fused" for impl in IMPLS[:-1]] + ["eager +MiB", "fused +MiB", "floor ms", "of floor"]
    rows, reasons = [], {}
    for setting in grouped(r for r in records_of(folder) if r["op"] == op):
        any_record = next(iter(setting.values()))
        row = [any_record[name] or "" for name in ("workload", "dtype", "layout", "bank", "pass")]
        row += [number(setting.get(impl, {}).get("ms_median")) for impl in IMPLS]
        row += [times(ratio(setting, impl)) for impl in IMPLS[:-1]]
        row += [number(setting.get(impl, {}).get("peak_mb")) for impl in ("eager", "fused")]
        fused = setting.get("fused", {})
        has_floor = bool(fused.get("ms_median") and fused.get("floor_ms"))
        row.append(f"{number(fused['floor_ms'])} ({fused['floor_kind']})" if has_floor else "—")
        row.append(f"{100 * fused['floor_ms'] / fused['ms_median']:.0f} %" if has_floor else "—")
        rows.append(row)
        reasons |= {f"`{impl}`: {r['reason']}": None for impl, r in setting.items() if r["ms_median"] is None}
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op {op} --json benchmarks/results/{folder.name}/{op}.json`\n"
    notes = "".join(f"\n- {reason}" for reason in reasons)
    return markdown(header, rows) + (f"\nNot measured:\n{notes}\n" if notes else "")


def pixel_costs(folder: Path) -> str:
    return costs(folder, ("upsampled_cross_entropy", "pixel_stats", "ohem_mask", "masked_quantile"))


def contrastive_costs(folder: Path) -> str:
    names = ("contrast_masks", "thin_mask", "class_sum", "class_sample", "gather_pixels", "ring_push", "info_nce")
    return costs(folder, (*names, BRANCH))


def costs(folder: Path, names: Sequence[str]) -> str:
    """One row an op and pass, of the `voc` workload, in float32 and contiguous."""
    settings = grouped(records_of(folder))
    rows = []
    for op in names:
        for setting in settings:
            fused, eager = setting.get("fused"), setting.get("eager")
            shown = ("voc", "float32", "contiguous", op)
            if not fused or not eager or shown != tuple(fused[n] for n in ("workload", "dtype", "layout", "op")):
                continue
            title = f"the whole branch, `{op}`" if op == BRANCH else f"`{op}`"
            row = [title, fused["bank"] or "", fused["pass"]]
            row += [f"{number(eager['ms_median'])} → {number(fused['ms_median'])}", times(ratio(setting, "eager"))]
            rows.append([*row, f"{number(eager['peak_mb'])} → {number(fused['peak_mb'])}"])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return markdown(["op", "bank", "pass", "ms, eager → fused", "faster", "+MiB, eager → fused"], rows)


def headline(folder: Path) -> str:
    """The figures that matter, each with the command that draws it."""
    nothing = f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return headline_of(records_of(folder)) or nothing


def gpu_headline(folder: Path) -> str:
    """The same, or that there is none."""
    return headline_of(records_of(folder)) or gpu_tables.NOTHING


def headline_of(records: Iterable[results.Record]) -> str:
    """Empty where none of the records is among the figures."""
    wanted = (
        ("`pixel_stats`", "pixel_stats", "voc", None, "forward", "eager"),
        (
            "`upsampled_cross_entropy`, with gradient",
            "upsampled_cross_entropy",
            "voc",
            None,
            "forward+backward",
            "eager",
        ),
        ("contrastive branch, with gradient", BRANCH, "voc", "literal", "forward+backward", "class-loop"),
    )
    settings = grouped(records)
    rows = []
    for title, op, workload, bank, passes, other in wanted:
        key = (op, workload, "float32", "contiguous", bank, passes)
        names = ("op", "workload", "dtype", "layout", "bank", "pass")
        for setting in settings:
            fused = setting.get("fused")
            if fused and fused["ms_median"] and tuple(fused[name] for name in names) == key:
                theirs = setting.get(other, {})
                memory = [
                    f"{number(r.get('peak_mb'))} MiB" if r.get("peak_mb") is not None else "—" for r in (theirs, fused)
                ]
                speed = f"{number(theirs.get('ms_median'))} → {number(fused['ms_median'])} ms"
                command = f"`python -m benchmarks --op {op} --workload {workload} --device {fused['device']}`"
                rows.append([title, other, speed, times(ratio(setting, other)), " → ".join(memory), command])
    for setting in settings:
        lean, teacher = setting.get("u2pl-lean"), ratio(setting, "u2pl-lean", "mean-teacher")
        if lean and teacher:
            speed = f"{number(setting['mean-teacher']['ms_median'])} → {number(lean['ms_median'])} ms"
            command = f"`python -m benchmarks --op step --workload {lean['workload']} --device {lean['device']}`"
            title = f"a u2pl step, `{lean['workload']}`"
            rows.append([title, "mean-teacher", speed, f"{number(teacher)}× its price", "—", command])
    return markdown(["", "against", "time", "faster", "extra memory", "command"], rows) if rows else ""


def step(folder: Path) -> str:
    """Whole training steps: speed, price against the cheaper methods, memory."""
    rows = []
    for setting in grouped(r for r in records_of(folder) if r["op"] == "step"):
        for impl in (impl for impl in load("step").implementations if impl in setting):
            record = setting[impl]
            w = NAMED[record["workload"]]
            images = w.labeled if impl == "supervised" else w.images
            row = [record["workload"], f"`{impl}`", number(record["ms_median"])]
            row.append(number(1e3 * images / record["ms_median"]) if record["ms_median"] else "—")
            row += [times(ratio(setting, impl, other)) for other in ("mean-teacher", "networks-only")]
            rows.append([*row, number(record["peak_mb"])])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    header = ["workload", "method", "ms", "images/s", "÷ mean-teacher", "÷ networks-only", "+MiB"]
    return markdown(header, rows)


def paper(folder: Path) -> str:
    """What each part of the paper recipe adds to a mean-teacher step: medians of the differences within a round."""
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
    """Predicted memory of a training step, beside what was measured."""
    measured = {
        (r["workload"], r["impl"]): r["peak_mb"] for r in records_of(folder) if r["op"] == "step" and r["peak_mb"]
    }
    rows = []
    for name in REPORTED:
        for impl, choices in MEMORY_OF.items():
            m = step_memory.predicted(NAMED[name], **choices)
            parts = (m.weights, m.bank, m.gradients, m.activations, m.keys, m.step, m.total)
            row = [name, f"`{impl}`", f"{m.parameters:.1f}", *(f"{part:,.0f}" for part in parts)]
            rows.append([*row, number(measured.get((name, impl)))])
    columns = ("weights", "bank", "gradients", "activations", "keys", "a step", "all")
    return markdown(["workload", "method", "M parameters", *columns, "a step, measured"], rows)


def phases(folder: Path) -> str:
    """Where a training step spends its time."""
    found = {results.key(row): row for data in folder_data(folder) for row in data.get("parts", [])}
    rows = []
    for row in found.values():
        if row["op"] == "step" and row["workload"] in REPORTED:
            rows.append([row["workload"], f"`{row['impl']}`", *(number(row["parts"].get(p)) for p in PHASES)])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op step --json benchmarks/results/{folder.name}/step.json`\n"
    return markdown(["workload", "method", *(f"{phase} ms" for phase in PHASES)], rows)


def parts(folder: Path) -> str:
    """Where the contrastive branch spends its time."""
    found = {results.key(row): row for data in folder_data(folder) for row in data.get("parts", [])}
    found = {k: row for k, row in found.items() if row["op"] == BRANCH}
    rows, stages = [], list(dict.fromkeys(stage for row in found.values() for stage in row["parts"]))
    for row in found.values():
        if row["workload"] in REPORTED and (row["dtype"], row["layout"]) == ("float32", "contiguous"):
            rows.append([row["workload"], row["bank"], row["impl"], *(number(row["parts"].get(s)) for s in stages)])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op {BRANCH} --json benchmarks/results/{folder.name}/…`\n"
    return markdown(["workload", "bank", "impl", *(f"{stage} ms" for stage in stages)], rows)


def machines(folder: Path) -> str:
    """What the results of a folder were measured on."""

    def ceilings(c: dict[str, float]) -> str:
        return f"{c['bytes'] / 1e9:.1f} GB/s, {c['flops'] / 1e9:.0f} GFLOP/s, {c['exps'] / 1e9:.2f} G/s"

    rows = machine_rows(folder, ceilings)
    if not rows:
        return f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return markdown(["machine", "threads", "versions", "commit", "time", "measured copy, matmul, exp"], rows)


def growth(folder: Path) -> str:
    """The exponents of the growth curves."""
    path = folder / "growth.json"
    if not path.exists():
        return (
            f"Not measured yet: `python -m benchmarks --growth --json benchmarks/results/{folder.name}/growth.json`\n"
        )
    rows = [
        [
            c["axis"],
            c["op"],
            c["impl"],
            f"{c['x'][0]:g} … {c['x'][-1]:g}",
            f"{number(c['y'][0])} → {number(c['y'][-1])} {c['unit']}",
        ]
        + [f"{c['exponent']:.2f}"]
        for c in json.loads(path.read_text())["curves"]
    ]
    return markdown(["axis", "op", "impl", "from … to", "first → last", "exponent"], rows)


def plots(folder: Path) -> str:
    """The pictures of a folder that exist."""
    names = sorted(path.name for path in (ROOT / "docs" / "plots").glob(f"{folder.name}-*.png"))
    if not names:
        return "Not drawn yet: add `--plot docs/plots` to a measuring command.\n"
    return "".join(f"![{Path(name).stem}](plots/{name})\n" for name in names)


NOT_COMPILED = "Not compiled yet: `python -m benchmarks.aot > benchmarks/results/aot-triton-VERSION.json`\n"


def _compiled(folder: Path) -> dict[str, list[dict]]:
    """What was compiled ahead of time, by the version of Triton."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("aot-triton-*.json"))]
    return {".".join(one["triton"].split(".")[:2]): one["rows"] for one in found}


def _used(row: dict) -> str:
    return f"{row['registers']} / {row['spills']} / {row['shared']}"


def resources(folder: Path) -> str:
    """The most that any compiled variant of each kernel takes on each target, by versions of Triton."""
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


EXTRAS = ("HAS_WEIGHT", "HAS_PIXEL_WEIGHT", "SMOOTHING")


def machine_code(folder: Path) -> str:
    """Each kernel's longest variant on sm_90 in each format, without weights; formats that are alike share a row."""
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
    """Launches of a step's parts before and after they were merged, counted without a GPU."""
    path = folder / "launches.json"
    if not path.exists():
        return "Not counted yet.\n"
    table = [[row["what"], f"{row['before']:,}", f"{row['after']:,}"] for row in json.loads(path.read_text())]
    return markdown(["launches of", "before", "now"], table)


def issue(folder: Path) -> str:
    """Per-pixel kernels on the first machine of ``roofline.PUBLISHED``: what issuing their instructions takes."""
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


def traffic(_: Path) -> str:
    """Predicted traffic of a `voc` step, from shapes."""
    memory, w = step_memory.predicted(NAMED["voc"]), NAMED["voc"]
    sizes = {"parameters": round(1e6 * memory.parameters), "buffers": memory.buffers}
    sizes |= {"num_classes": w.num_classes, "dim": w.dim}
    rows = []
    for world in WORLDS:
        parts = step_traffic(world, shared_keys=-(-max(w.caps) // world), **sizes)
        rows.append([f"{world:,}", *(f"{size / 1e6:,.3g}" for size in parts.values())])
    return markdown(["processes", *parts], rows)


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
    """Floors of machines that nobody measured, beside what was measured on one that somebody did."""
    measured = {}
    for record in records_of(folder / "cuda"):
        chosen = (record["impl"], record["dtype"], record["layout"]) == ("fused", "float32", "contiguous")
        # As the floors: with gradient where the op has one, and the literal bank.
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


def networks(folder: Path) -> str:
    """Architectures by encoders: what each pair's logits and features are, or that it can't be built."""
    path = folder / "networks.json"
    if not path.exists():
        return "Not measured yet: `python -m benchmarks.measure.networks`\n"
    rows = json.loads(path.read_text())
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    table = []
    for arch in dict.fromkeys(row["arch"] for row in rows):
        own = {row["encoder"]: row for row in rows if row["arch"] == arch}
        built = [row for row in own.values() if "error" not in row]
        cells = [f"`{arch}`", *("—" if "error" in own[encoder] else "✓" for encoder in encoders)]
        for name in ("logits_stride", "features_stride", "multiple"):
            cells.append(" / ".join(dict.fromkeys(f"{row[name]:g}" for row in built)))
        millions = [row["decoder_parameters"] / 1e6 for row in built]
        cells.append(f"{number(min(millions))} – {number(max(millions))}")
        table.append(cells)
    header = ["`--arch`", *(f"`{encoder}`" for encoder in encoders)]
    return markdown([*header, "stride of logits", "of features", "sizes: multiples of", "decoder, M parameters"], table)


TABLES: dict[str, Callable[[Path], str]] = {
    f.__name__: f
    for f in (
        headline,
        gpu_headline,
        pixel_costs,
        contrastive_costs,
        step,
        paper,
        memory,
        phases,
        parts,
        machines,
        growth,
        plots,
        launches,
        resources,
        machine_code,
        issue,
        workloads,
    )
    + (predictions, traffic, networks)
    + gpu_tables.TABLES
    + accuracy.TABLES
}


def rewritten(text: str, folder: Path, document: str) -> str:
    """``text`` with every table made anew from the results in ``folder``."""
    entries = names()

    def table(match: re.Match) -> str:
        begin, name, device, end = match.groups()
        if name in TABLES:
            return begin + TABLES[name](folder / (device or "")) + end
        if name in entries and device:
            return begin + op_table(name, folder / device) + end
        raise SystemExit(f"{document}: no table {name!r} {device or ''}; choose from {', '.join([*TABLES, *entries])}")

    return MARKED.sub(table, text)


def main(argv: Sequence[str] | None = None, documents: Sequence[Path] = DOCUMENTS) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw.tables", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit status 1 where a table differs")
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="DIR")
    args = parser.parse_args(argv)
    stale = []
    for document in documents:
        if not document.exists():
            continue
        old = document.read_text()
        new = rewritten(old, args.results, document.name)
        if new == old:
            continue
        stale.append(document)
        if not args.check:
            document.write_text(new)
        print(
            f"{document.name}: "
            + ("differs from the results; run python -m benchmarks.draw.tables" if args.check else "written")
        )
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
