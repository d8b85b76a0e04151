"""The benchmark suite measures, agrees, and writes what it says; never how fast anything is."""

import copy
import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.draw.tables import __main__ as tables
from benchmarks.draw.tables import ops as summary
from benchmarks.draw.tables import records, steps
from benchmarks.measure import growth, inputs, memory, ops, registry, results, roofline, runner, step_memory
from benchmarks.measure.workloads import NAMED, REPORTED, Workload
from u2pl_fast import ops as u2pl_ops

OPS = {name: registry.load(name) for name in ops.names()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A rehearsal over every op, without the compiler (minutes) and the memory (a process for each)."""
    path = tmp_path_factory.mktemp("benchmarks") / "quick.json"
    impls = ("eager", "class-loop", "fused", "networks-only", "u2pl-lean", "u2pl-class-loop")
    status = main(["--quick", "--device", "cpu", "--no-memory", "--json", str(path), "--impl", *impls])
    return status, results.load(path)


def test_a_quick_run_measures_every_op_and_all_agree(quick):
    status, data = quick
    assert status == 0
    assert {record["op"] for record in data["records"]} == set(OPS)
    for record in data["records"]:
        if record["op"] == "step_as_graph":
            assert record["reason"] == "needs a GPU"
        elif record["impl"] != "fused":
            assert len(record["ms_all"]) == 3 and record["ms_median"] == sorted(record["ms_all"])[1]
        assert record["peak_mb"] is None and "peak" in record["reason"] or record["ms_all"] is None


def test_ratios_are_formed_within_a_round(quick):
    _, data = quick
    settings = {}
    for record in data["records"]:
        settings.setdefault(results.key(record)[:6] + results.key(record)[7:], {})[record["impl"]] = record
    for setting in settings.values():
        if "eager" not in setting:
            told = ("eager was not measured", "needs a GPU")
            assert all(r["ratio_vs_eager"] is None and any(t in r["reason"] for t in told) for r in setting.values())
            continue
        for record in setting.values():
            if record["ms_all"]:
                pairs = [a / b for a, b in zip(setting["eager"]["ms_all"], record["ms_all"], strict=True)]
                assert record["ratio_vs_eager"] == sorted(pairs)[1]
        assert setting["eager"]["ratio_vs_eager"] == 1


def test_stages_of_the_branch_are_timed(quick):
    _, data = quick
    loops = [row for row in data["parts"] if row["impl"] == "class-loop"]
    assert {row["bank"] for row in loops} == {"literal", "capped"}
    assert all(list(row["parts"]) == ["threshold", "masks", "push", "sampling", "loss"] for row in loops)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ms_median": None}, "ms_median"),
        ({"reason": None}, "without a reason"),
        ({"dtype": "fp32"}, "dtype"),
        ({"layout": "nhwc"}, "layout"),
        ({"floor_kind": "magic"}, "floor_kind"),
        ({"ms_all": [1.0]}, "rounds"),
    ],
)
def test_a_record_that_breaks_the_schema_is_refused(quick, change, message):
    data = copy.deepcopy(quick[1])
    next(r for r in data["records"] if (r["op"], r["impl"]) == ("pixel_stats", "eager")).update(change)
    with pytest.raises(ValueError, match=message):
        results.validate(data)


def test_a_second_record_of_the_same_key_is_refused(quick):
    data = copy.deepcopy(quick[1])
    data["records"].append(data["records"][0])
    with pytest.raises(ValueError, match="two with the key"):
        results.validate(data)


def test_merging_replaces_equal_keys_and_keeps_the_others(quick, tmp_path):
    old = quick[1]
    new = copy.deepcopy(old)
    new["records"] = [dict(new["records"][0], ms_median=123.0)]
    both = results.merged(old, new)
    assert len(both["records"]) == len(old["records"])
    assert both["records"][0]["ms_median"] == 123.0
    results.save(tmp_path / "both.json", both)
    assert results.load(tmp_path / "both.json") == both
    new["machine"]["versions"] |= {"u2pl_fast": "another"}  # each record has its commit
    results.merged(old, new)
    new["machine"]["threads"] += 1
    with pytest.raises(SystemExit, match="threads"):
        results.merged(old, new)


def test_disagreement_is_an_error():
    right = (torch.ones(1000), torch.zeros(1000, dtype=torch.int64))
    runner.assert_agree("x", right, right, "float32")
    for wrong in (
        (right[0] * 1.0001, right[1]),
        (right[0] * math.nan, right[1]),
        (right[0], right[1] + 1),
        (right[0][:5], right[1]),
        right[:1],
    ):
        with pytest.raises(runner.Disagreement):
            runner.assert_agree("x", wrong, right, "float32")


@pytest.mark.slow
def test_peak_memory_counts_what_the_call_adds_and_not_its_inputs():
    """Eager cross-entropy stores the upsampled logits at least twice; they are far larger than noise and inputs."""
    camvid = dataclasses.replace(NAMED["camvid"], num_classes=40)
    setting = registry.Setting("upsampled_cross_entropy", camvid, "cpu", "float32", "contiguous", None, registry.BOTH)
    stored = camvid.labeled * camvid.num_classes * camvid.crop[0] * camvid.crop[1] * 4 / 2**20
    assert 2 * stored <= memory.peak_growth(setting, "eager") <= 8 * stored


@pytest.mark.parametrize("layout", registry.LAYOUTS)
def test_inputs_have_their_layout_and_repeat(layout):
    first, again = (inputs.Inputs(NAMED["tiny"], "cpu", torch.bfloat16, layout, "capped") for _ in range(2))
    channels_last = layout == "channels_last"
    for x in (first.all_logits, first.features):
        assert x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert first.all_logits.equal(again.all_logits) and first.negative_draw.equal(again.negative_draw)


def test_inputs_resemble_a_step():
    """Of `camvid`: most pixels are sure, some labels are missing, keys per class exceed what a capped ring takes."""
    x = inputs.Inputs(NAMED["camvid"], "cpu", torch.float32, "contiguous", "capped")
    assert 0.01 < float((x.labels == 255).float().mean()) < 0.2
    assert 0.5 < float(x.statistics.confidence.mean()) < 0.95
    assert int((x.masks.anchors > 0).sum()) >= 8
    p = x.all_logits.softmax(1)
    assert not bool(((p - inputs.POSITIVE_THRESHOLD).abs() < 1e-5).any())


def test_costs_grow_with_the_work():
    base = NAMED["camvid"]
    wider = {
        "pixels": dataclasses.replace(base, crop=(512, 640), grid=(128, 160)),
        "classes": dataclasses.replace(base, num_classes=22, classes_per_image=16),
    }
    for op, w in itertools.product(roofline.COSTS, wider.values()):
        small, large = (roofline.COSTS[op](v, 4, True, roofline.expected(v, False)) for v in (base, w))
        for field in dataclasses.fields(roofline.Cost):
            assert getattr(large, field.name) >= getattr(small, field.name), (op, field.name)
    deeper: Workload = dataclasses.replace(base, dim=256)
    for op in ("ring_push", "info_nce", "contrastive_loss"):
        small, large = (roofline.COSTS[op](v, 4, True, roofline.expected(v, False)).bytes for v in (base, deeper))
        assert 1.5 < large / small < 2.5


def test_floors_fall_as_ceilings_rise():
    for op, name in itertools.product(roofline.COSTS, REPORTED):
        predicted = roofline.predictions(op, NAMED[name], itemsize=4, gradient=True, capped=False)
        assert predicted["H200 SXM"][0] <= predicted["H100 SXM"][0] <= predicted["A100 SXM 80 GB"][0]
    assert roofline.floor(roofline.Cost(bytes=10), roofline.Ceilings(1e3, 1, 1)) == (10.0, "bytes")
    assert roofline.floor(roofline.Cost(10, 10, 10), roofline.Ceilings(1e3, 1e3, 100)) == (100.0, "exp")


def test_every_public_op_has_a_benchmark():
    """One op, one name in every folder. ``draws`` makes the random numbers that all implementations share."""
    folder = Path(u2pl_ops.__file__).parent
    public = {path.stem for path in folder.glob("[a-z]*.py")} - {"draws"}
    assert public == set(OPS) - set(ops.TRAININGS)


def test_every_op_has_a_cost():
    assert set(OPS) == {*roofline.COSTS, *ops.TRAININGS}


def test_literal_voc_offers_what_was_counted():
    assert 360_000 < roofline.offered_keys(NAMED["voc"]) < 430_000


def test_exponent_is_the_slope_of_the_log_log_line():
    x = [1, 2, 4, 8]
    assert growth.exponent(x, [3 * v**1.5 for v in x]) == pytest.approx(1.5)
    assert growth.exponent(x, [7.0] * 4) == pytest.approx(0)


def test_the_documentation_shows_what_the_results_say(capsys):
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


def test_a_table_that_differs_is_found_and_rewritten(quick, tmp_path, capsys):
    data = copy.deepcopy(quick[1])
    for row in (*data["records"], *data["parts"]):
        row["workload"] = "voc"
    results.save(tmp_path / "results" / "cpu" / "ops.json", data)
    page = tmp_path / "page.md"
    names = [*tables.TABLES, *OPS]
    page.write_text("".join(f"<!-- table: {name} cpu -->\n<!-- end of table -->\n\n" for name in names))
    where = ["--results", str(tmp_path / "results")]
    assert tables.main(["--check", *where], [page]) == 1
    assert tables.main(where, [page]) == 0
    assert tables.main(["--check", *where], [page]) == 0
    text = page.read_text()
    assert "\n<sub>Generated from `benchmarks/results/cpu` by `python -m benchmarks.draw.tables`.</sub>\n" in text
    eager = next(r for r in data["records"] if r["op"] == "pixel_stats" and r["impl"] == "eager")
    assert records.number(eager["ms_median"]) in text and "class-loop" in text
    page.write_text(text.replace(records.number(eager["ms_median"]), "0.001"))
    assert tables.main(["--check", *where], [page]) == 1
    assert "differs" in capsys.readouterr().out


def test_the_summary_has_a_row_for_each_op(tmp_path, monkeypatch):
    assert set(summary.REPLACES) == {name for name in ops.names() if name not in ops.TRAININGS}
    eager = {"impl": "eager", "ms_median": 20.0, "ms_all": [20.0, 22.0], "peak_mb": 30.0}
    same = {"workload": "voc", "dtype": "float32", "layout": "contiguous", "device": "cpu", "op": "info_nce"}
    passes = ({"pass": "forward", "bank": None}, {"pass": "forward+backward", "bank": None})
    rows = [eager | same | passes[0], eager | same | passes[1]]
    rows += [row | {"impl": "fused", "ms_median": ms, "ms_all": [ms, ms]} for row, ms in zip(rows, (4, 2), strict=True)]
    monkeypatch.setattr(summary, "records_of", lambda folder: rows)
    lines = {line.split("|")[1].strip(): line for line in summary.op_summary(tmp_path).splitlines()[2:]}
    assert len(lines) == len(summary.REPLACES)
    assert lines["`info_nce`"].endswith("| 20 → 2 | 10.5× | 30 → 30 |")  # with gradient
    assert lines["`ring_push`"].endswith("| not measured | — | — |")
    lines = {line.split("|")[1].strip(): line for line in summary.speedups(tmp_path).splitlines()[2:]}
    assert lines["`info_nce`"].endswith("| with gradient | reference | 10.5× | — | — | — | — |")
    assert "not measured yet" in lines["`ring_push`"]
    rows.append(eager | same | passes[1] | {"impl": "plain", "ms_median": 8.0, "ms_all": [8.0, 8.0], "peak_mb": 9.0})
    lines = {line.split("|")[1].strip(): line for line in summary.op_summary(tmp_path).splitlines()[2:]}
    assert lines["`info_nce`"].endswith("| plain PyTorch | 8 → 2 | 4× | 9 → 30 |")  # what users write, if measured


def test_an_unknown_table_is_named(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- table: nothing cpu -->\n<!-- end of table -->\n")
    with pytest.raises(SystemExit, match="nothing"):
        tables.main([], [page])


def test_pictures_are_drawn(quick, tmp_path):
    plots = pytest.importorskip("benchmarks.draw.measurement_plots", exc_type=ImportError)
    plots.bars(quick[1], tmp_path)
    curve = growth._traffic("cpu")
    plots.growth({"machine": quick[1]["machine"], "curves": [curve]}, tmp_path)
    assert {path.name for path in tmp_path.glob("*.png")} == {"cpu-time.png", "cpu-growth.png"}


def test_another_version_is_refused_before_anything_is_measured(quick, tmp_path, monkeypatch):
    data = copy.deepcopy(quick[1])
    data["machine"]["versions"]["torch"] = "0.0.1"
    results.save(tmp_path / "old.json", data)
    monkeypatch.setattr("benchmarks.__main__.describe", lambda device, quick: machine)
    monkeypatch.setattr(runner, "measure", None)
    machine = quick[1]["machine"]
    with pytest.raises(SystemExit, match=r"versions .*0\.0\.1"):
        main(["--quick", "--device", "cpu", "--op", "thin_mask", "--json", str(tmp_path / "old.json"), "--merge"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge"], "--json"),
        (["--op", "thin_mask", "--layout", "channels_last"], "nothing to measure"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], "no GPU")]),
    ],
)
def test_an_impossible_request_says_what_to_do(arguments, message):
    with pytest.raises(SystemExit, match=message):
        main(arguments)


def test_the_json_is_one_record_a_line(quick, tmp_path):
    path = tmp_path / "out.json"
    results.save(path, quick[1])
    lines = path.read_text().splitlines()
    assert sum(line.startswith('{"op"') for line in lines) == len(quick[1]["records"]) + len(quick[1]["parts"])
    assert json.loads(path.read_text()) == quick[1]


def test_predicted_memory_is_what_was_measured():
    """Over every training step in the results; the prediction leaves out workspaces and rounding up."""
    compared = 0
    for record in records.records_of(results.RESULTS / "cpu"):
        if record["op"] == "step" and record["impl"] in steps.MEMORY_OF and record["peak_mb"]:
            choices = steps.MEMORY_OF[record["impl"]]
            predicted = step_memory.predicted(NAMED[record["workload"]], **choices).step
            assert predicted == pytest.approx(record["peak_mb"], rel=0.15), record["workload"]
            compared += 1
    assert compared >= 3
