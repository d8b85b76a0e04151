"""The one command for a machine with a GPU, rehearsed without one."""

import pytest

from benchmarks import gpu_check, results


def test_rehearsal_reaches_every_stage_and_leaves_its_results(tmp_path, capsys):
    status = gpu_check.main(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    data = results.load(tmp_path / "results.json")
    stages = {row["stage"]: row for row in data["stages"]}
    wrong = {name: row["note"] for name, row in stages.items() if row["status"] not in ("passed", "left out")}
    assert status == 0 and not wrong, (wrong, (tmp_path / "log.txt").read_text()[-3000:])
    assert {name for name, row in stages.items() if row["status"] == "left out"} <= {
        "build",
        "sanitizer memcheck",
        "sanitizer racecheck",
        "accuracy",
    }
    assert {r["op"] for r in data["records"]} >= {"pixel_stats", "contrastive", "ring_push", "step"}
    assert {r["impl"] for r in data["records"] if r["op"] == "step"} >= {"mean-teacher", "networks-only", "u2pl-lean"}
    assert data["curves"] and [row["name"] for row in data["training"]] == ["train fused", "train reference"]
    fused, plain = (row["loss"] for row in data["training"])
    assert fused[0] == pytest.approx(plain[0], rel=1e-2) and len(fused) == len(plain) == 6
    assert "% apart over 6 steps" in printed and all(name in printed for name in stages)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert {"log.txt", "results.json"} <= set(files) and 1 <= sum(f.endswith(".png") for f in files) <= 4


def test_a_stage_that_fails_hangs_or_lacks_a_package_is_told_and_no_more(tmp_path):
    python = gpu_check.sys.executable
    with (tmp_path / "log.txt").open("w") as log:

        def status(command: list[str], seconds: float = 60, **options) -> tuple[str, str]:
            row = gpu_check.run(gpu_check.Stage("s", command, 6, **options), seconds, {}, log)
            return row["status"], row["note"]

        assert status([python, "-c", "print('all well')"]) == ("passed", "all well")
        assert status([python, "-c", "raise SystemExit(3)"]) == ("failed", "exit status 3")
        assert status([python, "-c", "import time; time.sleep(60)"])[0] == "stopped"
        assert status([python], imports=("no_such_module",)) == ("left out", "no module no_such_module; see --missing")
        assert status([python], seconds=1) == ("left out", "no time left")
    assert "all well" in (tmp_path / "log.txt").read_text()


def test_bad_arguments_are_named(tmp_path, capsys):
    for arguments, message in (
        ([], "--out DIR is needed"),
        (["--out", str(tmp_path), "--wheels", str(tmp_path / "none")], "--wheels: no folder"),
    ):
        with pytest.raises(SystemExit):
            gpu_check.main(arguments)
        assert message in capsys.readouterr().err


def test_missing_packages_are_those_that_cannot_be_imported(monkeypatch, capsys):
    assert {"torch", "triton", "pytest", "timm"} <= set(gpu_check.packages())
    monkeypatch.setattr(gpu_check, "packages", lambda: {"torch": "torch", "no-such": "no_such_module"})
    assert gpu_check.main(["--missing"]) == 0
    assert capsys.readouterr().out.split() == ["no-such"]
