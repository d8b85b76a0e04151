"""Read, check, merge and write the JSON of a run: one machine, and one record for each measurement.

    {"machine": {...}, "records": [...], "parts": [...]}

``machine``: ``name`` (CPU model, cores, instruction set; or the GPU), ``device``, ``threads``, ``versions``;
``commit``, ``time`` (UTC) and ``ceilings`` (bytes/s, flop/s, exp/s, measured then) of the last run that wrote the file.

The key of a record is op, workload, device (cpu | cuda), dtype (float32 | bfloat16 | float16), layout (contiguous |
channels_last), bank (literal | capped | null), impl, pass (forward | forward+backward | step). Its values:

- ``ms_all``: milliseconds of each round; element i of every implementation comes from round i. ``ms_median``: their
  median.
- ``peak_mb``: MiB that one call adds at its peak to its inputs. CUDA: the allocator's peak. CPU: the growth of the peak
  resident set over the inputs, in a new process.
- ``ratio_vs_eager``, ``ratio_vs_compile``: how many times as fast as that implementation: the median over rounds of its
  time ÷ this one's.
- ``floor_ms``, ``floor_kind`` (bytes | flops | exp): the least time that the machine's ceilings allow (``roofline``).
- ``reason``: null, or why a value above is null. A reason that begins with "disagrees:" belongs to an implementation
  whose results differ from the first one's. It has values, but tables leave it out.
- ``commit``, ``time``: of this record; a merged file may hold several.
- On CUDA also ``host_ms``: milliseconds until Python has queued the call; ``graph_ms``: the call replayed as a CUDA
  graph (``fused`` only). ``ms_all`` is then the device's time without gaps, and for a step, the time in a loop
  (``clocks``).

``parts`` holds the same keys with ``parts``: median milliseconds of each stage of the contrastive loss, measured in
separate calls, because timing a stage makes a GPU wait. ``kernels``, on CUDA: ``launches`` and ``ms`` of one call, by
kernel.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from u2pl_fast.utils.atomic import write_text

KEY = ("op", "workload", "device", "dtype", "layout", "bank", "impl", "pass")
VALUES = ("ms_median", "ms_all", "peak_mb", "ratio_vs_eager", "ratio_vs_compile", "floor_ms", "floor_kind")
GPU_VALUES = ("host_ms", "graph_ms")
DISAGREES = "disagrees:"
LISTS = ("records", "parts", "kernels")
MACHINE = ("name", "device", "threads", "versions", "commit", "time", "ceilings")
CHOICES = {
    "device": ("cpu", "cuda"),
    "dtype": ("float32", "bfloat16", "float16"),
    "layout": ("contiguous", "channels_last"),
    "bank": ("literal", "capped", None),
    "pass": ("forward", "forward+backward", "step"),
    "floor_kind": ("bytes", "flops", "exp", None),
}
RESULTS = Path(__file__).resolve().parents[1] / "results"

Record = dict[str, Any]


def key(record: Record) -> tuple:
    return tuple(record[name] for name in KEY)


def validate(data: dict[str, Any]) -> None:
    """Raise ValueError for the first error, with the name of the field."""
    for name in MACHINE:
        if name not in data["machine"]:
            raise ValueError(f"machine: no {name!r}")
    seen = set()
    for record in data["records"]:
        _validate_record(record)
        if key(record) in seen:
            raise ValueError(f"records: two with the key {key(record)}")
        seen.add(key(record))
    for rounds in _by_setting(data["records"]):
        if len(rounds) > 1:
            raise ValueError(f"records: {sorted(rounds)} rounds among the implementations of one setting")


def _validate_record(record: Record) -> None:
    for name in (*KEY, *VALUES, "reason", "commit", "time"):
        if name not in record:
            raise ValueError(f"record {record.get('op')}: no {name!r}")
    where = "record " + " ".join(str(value) for value in key(record))
    for name, choices in CHOICES.items():
        if record[name] not in choices:
            raise ValueError(f"{where}: {name} is {record[name]!r}, expected one of {choices}")
    numbers = ["ms_median", "peak_mb", "ratio_vs_eager", "ratio_vs_compile", "floor_ms"]
    if record["device"] == "cuda":
        numbers += GPU_VALUES
    for name in numbers:
        if name not in record:
            raise ValueError(f"{where}: no {name!r}")
        value = record[name]
        if value is not None and not (isinstance(value, int | float) and value >= 0):
            raise ValueError(f"{where}: {name} is {value!r}, expected a number ≥ 0 or null")
    missing = [name for name in VALUES if record[name] is None]
    if missing and not record["reason"]:
        raise ValueError(f"{where}: {', '.join(missing)} null without a reason")
    if (record["ms_median"] is None) != (record["ms_all"] is None):
        raise ValueError(f"{where}: ms_median and ms_all must be null together")


def _by_setting(records: Iterable[Record]) -> list[set[int]]:
    settings: dict[tuple, set[int]] = {}
    for record in records:
        if record["ms_all"] is not None:
            settings.setdefault(_setting(record), set()).add(len(record["ms_all"]))
    return list(settings.values())


def load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise SystemExit(f"{path}: not JSON ({error}); delete it or measure again") from error
    validate(data)
    return data


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Put ``new`` over ``old``: rows of the same key are replaced, others stay. Refuse another machine or versions.

    The version of this project may differ: each record names the commit that it was measured with.
    Implementations of one setting are compared round by round, so old records with another number of rounds than the
    new ones of their setting go as well.
    """
    for name in ("name", "device", "threads", "versions"):
        before, now = (_without_own_version(data["machine"][name]) for data in (old, new))
        if before != now:
            raise SystemExit(
                f"--merge: the file was measured with {name} {before}, this run with {now}; write to another file"
            )
    rounds = {_setting(r): len(r["ms_all"]) for r in new["records"] if r["ms_all"]}
    fits = [r for r in old["records"] if not r["ms_all"] or rounds.get(_setting(r)) in (None, len(r["ms_all"]))]
    old = old | {"records": fits}
    return {"machine": new["machine"]} | {
        name: _replaced(old.get(name, []), new.get(name, [])) for name in LISTS if name in old or name in new
    }


def _without_own_version(value: Any) -> Any:
    return {name: v for name, v in value.items() if name != "u2pl_fast"} if isinstance(value, dict) else value


def _setting(record: Record) -> tuple:
    return tuple(record[name] for name in KEY if name != "impl")


def _replaced(old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    return list({key(record): record for record in (*old, *new)}.values())


def save(path: Path, data: dict[str, Any]) -> None:
    """Write one record per line, so that a change of one record changes one line. Never leave half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ['{\n"machine": ' + json.dumps(data["machine"], indent=1)]
    for name in [name for name in data if name != "machine"]:
        rows = ",\n".join(json.dumps(row) for row in data[name])
        lines.append(f'"{name}": [\n{rows}\n]')
    write_text(path, ",\n".join(lines) + "\n}\n")
