"""Write the tables of single ops: times, memory, stages of the contrastive loss, and growth."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...measure import results
from ...measure.workloads import REPORTED
from .gpu import NOTHING
from .markdown import markdown
from .records import folder_data, grouped, number, ratio, records_of, times

IMPLS = ("plain", "eager", "class-loop", "compile", "fused")
# What people know the implementations as that an op is compared with.
WORDS = {"plain": "plain PyTorch", "eager": "reference", "class-loop": "loop over classes"}
BRANCH = "contrastive_loss"  # runs several other ops
# A table leaves out a column that holds this value throughout.
USUAL = {"dtype": "float32", "layout": "contiguous", "bank": "", "pass": "forward"}
SOURCE = "benchmarks/results/{device}"

# Each op and what it replaces in a training loop, in the order of a step.
REPLACES = {
    "upsampled_cross_entropy": "`F.interpolate`, then `F.cross_entropy`",
    "pixel_stats": "`F.interpolate`, `softmax`, then label, confidence, and entropy",
    "ohem_mask": "the pixel choice of OHEM cross-entropy",
    "masked_quantile": "`np.percentile(x[mask])`",
    "contrast_masks": "ranks and class masks for anchors and negatives",
    "thin_mask": "`torch.randperm` on the true elements of a mask",
    "class_sum": "a masked sum of features for each class",
    "class_sample": "`torch.nonzero` and `torch.randint` for each class",
    "gather_pixels": "indexing pixels of an (N, C, H, W) map",
    "ring_push": "the queue of a memory bank, one per class",
    "info_nce": "`F.cross_entropy` on cosine similarities, one class at a time",
    BRANCH: "the whole contrastive loss of U²PL, with its bank",
    "ema_update": "a loop over the parameters of an EMA teacher",
}


def headline(folder: Path) -> str:
    """Return the figures that matter most."""
    nothing = f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return headline_of(records_of(folder)) or nothing


def gpu_headline(folder: Path) -> str:
    """Return the main figures of a GPU, or a sentence that there are none."""
    return headline_of(records_of(folder)) or NOTHING


def headline_of(records: Iterable[results.Record]) -> str:
    """Return the main figures among the records; empty if there are none."""
    wanted = (
        ("`pixel_stats`", "pixel_stats", "voc", None, "forward"),
        (
            "`upsampled_cross_entropy`, with gradient",
            "upsampled_cross_entropy",
            "voc",
            None,
            "forward+backward",
        ),
        ("`contrastive_loss`, with gradient", BRANCH, "voc", "literal", "forward+backward"),
    )
    settings = grouped(records)
    rows = []
    for title, op, workload, bank, passes in wanted:
        key = (op, workload, "float32", "contiguous", bank, passes)
        names = ("op", "workload", "dtype", "layout", "bank", "pass")
        for setting in settings:
            fused = setting.get("fused")
            if fused and fused["ms_median"] and tuple(fused[name] for name in names) == key:
                other = baseline(setting)
                theirs = setting.get(other, {})
                memory = [
                    f"{number(r.get('peak_mb'))} MiB" if r.get("peak_mb") is not None else "—" for r in (theirs, fused)
                ]
                speed = f"{number(theirs.get('ms_median'))} → {number(fused['ms_median'])} ms"
                rows.append([title, WORDS[other], speed, times(ratio(setting, other)), " → ".join(memory)])
    for setting in settings:
        lean, teacher = setting.get("u2pl-lean"), ratio(setting, "u2pl-lean", "mean-teacher")
        if lean and teacher:
            speed = f"{number(setting['mean-teacher']['ms_median'])} → {number(lean['ms_median'])} ms"
            title = f"U²PL training step, `{lean['workload']}`"
            rows.append(
                [
                    title,
                    "mean-teacher step",
                    speed,
                    f"{teacher:.2f}× the time",
                    "—",
                ]
            )
    return markdown(["", "compared with", "time", "faster", "extra memory"], rows) if rows else ""


def baseline(setting: dict[str, results.Record]) -> str:
    """Return what users would write without the op: its plain code, a loop over classes, or else the reference."""
    return next((impl for impl in ("plain", "class-loop") if setting.get(impl, {}).get("ms_median")), "eager")


def pixel_costs(folder: Path) -> str:
    return costs(folder, ("upsampled_cross_entropy", "pixel_stats", "ohem_mask", "masked_quantile"))


def contrastive_costs(folder: Path) -> str:
    names = ("contrast_masks", "thin_mask", "class_sum", "class_sample", "gather_pixels", "ring_push", "info_nce")
    return costs(folder, (*names, BRANCH))


def costs(folder: Path, names: Sequence[str]) -> str:
    """Return one row per op and pass: the `voc` workload in float32, contiguous."""
    settings = grouped(records_of(folder))
    rows = []
    for op in names:
        for setting in settings:
            if _shown(setting) != ("voc", "float32", "contiguous", op):
                continue
            fused, other = setting["fused"], baseline(setting)
            theirs = setting[other]
            title = f"the whole branch, `{op}`" if op == BRANCH else f"`{op}`"
            row = [title, fused["bank"] or "", fused["pass"], WORDS[other]]
            row += [f"{number(theirs['ms_median'])} → {number(fused['ms_median'])}", times(ratio(setting, other))]
            rows.append([*row, f"{number(theirs['peak_mb'])} → {number(fused['peak_mb'])}"])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --json benchmarks/results/{folder.name}/ops.json`\n"
    return markdown(["op", "bank", "pass", "compared with", "ms", "faster", "extra MiB"], rows)


def op_summary(folder: Path) -> str:
    """Return one row for each op: what it replaces, time and memory of `voc`, with gradient where it has one."""
    settings = grouped(records_of(folder))
    rows = []
    for op, replaced in REPLACES.items():
        found = _chosen(settings, op, "voc")
        if found:
            fused, other = found["fused"], baseline(found)
            memory = f"{number(found[other]['peak_mb'])} → {number(fused['peak_mb'])}"
            speed = f"{number(found[other]['ms_median'])} → {number(fused['ms_median'])}"
            rows.append([f"`{op}`", replaced, WORDS[other], speed, times(ratio(found, other)), memory])
        else:
            rows.append([f"`{op}`", replaced, "—", "not measured", "—", "—"])
    return markdown(["op", "replaces", "compared with", "ms", "faster", "extra MiB"], rows, keep_empty=True)


def speedups(folder: Path) -> str:
    """Return one row for each op: how many times as fast as its baseline, by workload, and the share of the floor."""
    settings = grouped(records_of(folder))
    rows = []
    for op in REPLACES:
        found = {workload: _chosen(settings, op, workload) for workload in REPORTED}
        first = next((s["fused"] for s in found.values() if s), None)
        if first is None:
            rows.append([f"`{op}`", "not measured yet", *["—"] * (len(REPORTED) + 2)])
            continue
        passes = "with gradient" if first["pass"] == "forward+backward" else "forward"
        shares = [_of_floor(s["fused"]) for s in found.values() if s]
        known = [share for share in shares if share is not None]
        of_floor = f"{100 * min(known):.0f} – {100 * max(known):.0f} %" if known else "—"
        faster = [times(ratio(s, baseline(s))) if s else "—" for s in found.values()]
        compared = WORDS[next(baseline(s) for s in found.values() if s)]
        rows.append(
            [f"`{op}`", ", ".join(part for part in (passes, first["bank"]) if part), compared, *faster, of_floor]
        )
    return markdown(
        ["op", "pass", "compared with", *(f"`{workload}`" for workload in REPORTED), "of floor"], rows, keep_empty=True
    )


def _chosen(settings: list[dict[str, results.Record]], op: str, workload: str) -> dict[str, results.Record] | None:
    """Return the setting that stands for an op: with gradient if it has one, literal bank before capped bank."""
    found = [s for s in settings if _shown(s) == (workload, "float32", "contiguous", op)]
    return max(found, key=lambda s: (s["fused"]["pass"], s["fused"]["bank"] or ""), default=None)


def _of_floor(fused: results.Record) -> float | None:
    """Return floor ÷ time, or None where one of them is unknown."""
    return fused["floor_ms"] / fused["ms_median"] if fused.get("ms_median") and fused.get("floor_ms") else None


def _shown(setting: dict[str, results.Record]) -> tuple | None:
    """Return what a setting measures, or None where plain PyTorch or the op was not measured."""
    fused = setting.get("fused")
    if not fused or not fused["ms_median"] or not setting.get("eager", {}).get("ms_median"):
        return None
    return tuple(fused[name] for name in ("workload", "dtype", "layout", "op"))


def op_table(op: str, folder: Path) -> str:
    """Return times, ratios and memory of one op. Columns that hold ``USUAL`` throughout are left out."""
    names = ["workload", *USUAL]
    header = [*names, *(f"{impl} ms" for impl in IMPLS)]
    header += [f"{impl} ÷ fused" for impl in IMPLS[:-1]] + [
        "plain +MiB",
        "eager +MiB",
        "fused +MiB",
        "floor ms",
        "of floor",
    ]
    rows, reasons = [], {}
    for setting in grouped(r for r in records_of(folder) if r["op"] == op):
        any_record = next(iter(setting.values()))
        row = [any_record[name] or "" for name in names]
        row += [number(setting.get(impl, {}).get("ms_median")) for impl in IMPLS]
        row += [times(ratio(setting, impl)) for impl in IMPLS[:-1]]
        row += [number(setting.get(impl, {}).get("peak_mb")) for impl in ("plain", "eager", "fused")]
        fused = setting.get("fused", {})
        share = _of_floor(fused)
        row.append("—" if share is None else f"{number(fused['floor_ms'])} ({fused['floor_kind']})")
        row.append("—" if share is None else f"{100 * share:.0f} %")
        rows.append(row)
        reasons |= {f"`{impl}`: {r['reason']}": None for impl, r in setting.items() if r["ms_median"] is None}
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op {op} --json benchmarks/results/{folder.name}/{op}.json`\n"
    for i, usual in enumerate(USUAL.values(), 1):
        if all(row[i] == usual for row in rows):
            for row in rows:
                row[i] = ""
    notes = "".join(f"\n- {reason}" for reason in reasons)
    return markdown(header, rows) + (f"\nNot measured:\n{notes}\n" if notes else "")


def parts(folder: Path) -> str:
    """Return the time of each stage of the contrastive loss."""
    found = {results.key(row): row for data in folder_data(folder) for row in data.get("parts", [])}
    found = {k: row for k, row in found.items() if row["op"] == BRANCH}
    rows, stages = [], list(dict.fromkeys(stage for row in found.values() for stage in row["parts"]))
    for row in found.values():
        if row["workload"] in REPORTED and (row["dtype"], row["layout"]) == ("float32", "contiguous"):
            rows.append([row["workload"], row["bank"], row["impl"], *(number(row["parts"].get(s)) for s in stages)])
    if not rows:
        return f"Not measured yet: `python -m benchmarks --op {BRANCH} --json benchmarks/results/{folder.name}/…`\n"
    return markdown(["workload", "bank", "impl", *(f"{stage} ms" for stage in stages)], rows)


def growth(folder: Path) -> str:
    """Return the exponents of the growth curves."""
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


# Each table and where its numbers come from; {device} is the second word of the marker.
TABLES = {
    headline: "benchmarks/results/{device}",
    gpu_headline: "benchmarks/results/{device}",
    pixel_costs: "benchmarks/results/{device}",
    op_summary: "benchmarks/results/{device}",
    speedups: "benchmarks/results/{device}",
    contrastive_costs: "benchmarks/results/{device}",
    parts: "benchmarks/results/{device}",
    growth: "benchmarks/results/{device}/growth.json",
}
