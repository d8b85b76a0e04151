"""The page of a run: all of it in one file, from whatever the run has left so far."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.training.runs import run as train
from tests.training.runs import tiny
from u2pl_fast.pictures import charts
from u2pl_fast.report import ReportConfig, classes, main, notes, page
from u2pl_fast.training.record import Run

pytestmark = pytest.mark.slow

SECTIONS = [
    "Losses",
    "Validation",
    "Classes",
    "Pseudo-labels",
    "Memory bank",
    "Confusion",
    "Images at the last evaluation",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("a <run>")
    train(tiny(out, steps=6, eval_every=3))
    return out


def test_holds_everything_and_refers_to_nothing(finished, capsys):
    main([str(finished)])
    text = (finished / "report.html").read_text()
    assert str(finished / "report.html") in capsys.readouterr().out
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert all(any(title.startswith(section) for title in titles) for section in SECTIONS)
    assert text.count("<svg") == 5 and text.count('<img src="data:image/png;base64,') == 6
    assert "<h1>a &lt;run&gt;" in text and "striped disc" in text
    score = json.loads((finished / "metrics.json").read_text())["miou"]
    assert f"{score:.4f}" in text
    assert len(text) < 1_000_000
    outside = [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if not link.startswith(("data:", "#"))]
    assert not outside


def test_a_run_that_was_killed(finished, tmp_path):
    for name in ("config.yaml", "log.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    assert "<h2>Losses</h2>" in page(Run.read(tmp_path))


def test_labels_alone(tmp_path):
    train(tiny(tmp_path, steps=2, method="supervised"))
    text = page(Run.read(tmp_path))
    assert "<h2>Losses</h2>" in text and "Memory bank" not in text and "Pseudo-labels" not in text


def test_refusals_name_the_file(finished, tmp_path):
    with pytest.raises(SystemExit, match="log.jsonl.*is this the --out folder"):
        main([str(tmp_path)])
    (tmp_path / "config.yaml").write_text("{}")
    (tmp_path / "log.jsonl").write_text("one\ntwo\n")
    with pytest.raises(SystemExit, match="log.jsonl, line 1: not JSON"):
        main([str(tmp_path)])
    with pytest.raises(SystemExit, match="cannot write .*nowhere"):
        main([str(finished), "--out", str(tmp_path / "nowhere" / "r.html")])
    assert ReportConfig(run=finished).out is None


def logged(*lines: dict, metrics: dict | None = None, **config) -> Run:
    log = [{"step": 10 * (i + 1), **line} for i, line in enumerate(lines)]
    return Run(Path("run"), {"num_negatives": 50, **config}, log, metrics or {}, ["sky", "road", "<car>"])


HEALTHY = {"skipped": 0, "loader_wait_seconds": 0.1, "anchors": [5, 9, 2], "bank_turnover": [0.1, 0.1, 0.1]}
HEALTHY |= {"pseudo_accuracy_reliable": 0.9, "pseudo_accuracy_unreliable": 0.5}


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({}, ""),
        ({"skipped": 3}, "3 updates were skipped"),
        ({"loader_wait_seconds": 30.0}, "60% of the time was spent waiting for images"),
        ({"anchors": [5, 0, 0]}, "No anchor in the last quarter of the log: road, &lt;car&gt;."),
        ({"anchors": [0, 0, 0]}, "No class has an anchor"),
        ({"bank_turnover": [1.0, 1.0, 1.0]}, "little more than the keys of one step"),
        ({"pseudo_accuracy_reliable": 0.4}, "no more accurate than unreliable ones"),
    ],
    ids=lambda x: "-".join(x) or "healthy" if isinstance(x, dict) else "",
)
def test_notes_say_what_is_wrong(change: dict, note: str):
    said = notes(logged(*[HEALTHY | change] * 8, metrics={"seconds": 400.0}))
    assert (note in said) if note else said == ""
    assert said.count("<li>") == (1 if note else 0)


def test_classes_are_listed_with_what_they_are_taken_for():
    metrics = {"iou_per_class": [0.8, 0.25, None], "confusion": [[80, 20, 0], [30, 50, 20], [0, 0, 0]]}
    text = classes(logged({"anchors": [10, 4, 0], "bank_fill": [100, 100, 7]}, metrics=metrics))
    rows = [re.sub(r"<[^>]+>", "|", row) for row in text.split("<tr>")[2:]]
    assert "sky" in rows[0] and "0.800" in rows[0] and "50.00%" in rows[0] and "road, 20%" in rows[0]
    assert "sky, 30%" in rows[1] and "not in the data" in rows[2] and "&lt;car&gt;" in rows[2]


def test_long_curves_are_thinned_to_means():
    steps, values = charts.thinned(range(1000), [[i, 2 * i] for i in range(1000)])
    assert len(steps) == charts.MOST_POINTS == len(values)
    assert values[:, 0] == pytest.approx(steps) and values[:, 1] == pytest.approx(2 * steps)
    assert np.average(steps, weights=np.diff(np.linspace(0, 1000, 241).astype(int))) == pytest.approx(499.5)
    assert len(charts.thinned(range(5), range(5))[0]) == 5


def test_a_smoothed_constant_is_that_constant():
    assert charts.smooth([3.0] * 100) == pytest.approx([3.0] * 100)
    assert charts.smooth([5.0, 1.0]) == pytest.approx([5.0, 1.0])  # too few to smooth


def test_the_report_starts_without_torch():
    command = "import sys, u2pl_fast.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
