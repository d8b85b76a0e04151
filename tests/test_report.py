"""The page of a run: all of it in one file, from whatever the run has left so far."""

import json
import re

import pytest
from test_train import tiny

from u2pl_fast.report import ReportConfig, main, page, read
from u2pl_fast.train import run as train

SECTIONS = ["Losses", "Validation", "Intersection over union", "Pseudo-labels", "Memory bank", "Confusion", "Last eval"]


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
    outside = [link for link in re.findall(r'(?:src|href)="([^"]+)"', text) if not link.startswith(("data:", "#"))]
    assert not outside


def test_a_run_that_was_killed(finished, tmp_path):
    for name in ("config.yaml", "log.jsonl"):
        (tmp_path / name).write_bytes((finished / name).read_bytes())
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    assert "<h2>Losses</h2>" in page(read(tmp_path))


def test_labels_alone(tmp_path):
    train(tiny(tmp_path, steps=2, method="supervised"))
    text = page(read(tmp_path))
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
    assert ReportConfig(finished).out is None
