"""The check for a machine with a GPU, rehearsed without one: on a bare image, and ended at any moment."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks.aot import precompile
from benchmarks.draw.tables import __main__ as tables
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import again, carried, counters, extension, needs, reporter
from benchmarks.gpu_check.install import install
from benchmarks.gpu_check.out import COUNTERS, FILES, LOG, RESULTS, STAGES, TESTS, TRAINING, Out, append, rows
from benchmarks.gpu_check.parts import SECONDS, TEST_FILES, Plan
from benchmarks.gpu_check.schedule import ROOT, Stage, run, timetable
from benchmarks.measure import machine, results, runner

IMAGE = Path(__file__).parent / "gpu_image"
ON_CPU = ("--device", "cpu", "--quick")
# A check that begins with what it measures: the extension and the kernels are other tests' matter.
MEASURING = """
import dataclasses, sys
from benchmarks.gpu_check import __main__ as command, parts

whole, kept = parts.Plan.fast, ("ops voc", "ops ade20k")

def fast(plan):
    stages = [stage for stage in whole(plan) if stage.name in kept]
    return [dataclasses.replace(stage, after=tuple(name for name in stage.after if name in kept)) for stage in stages]

parts.Plan.fast = fast
sys.exit(command.main(sys.argv[1:]))
"""


def environment(**more: str) -> dict[str, str]:
    """That of a machine whose image has none of the packages that only this project needs."""
    return os.environ | {"PYTHONPATH": str(IMAGE), "OMP_NUM_THREADS": "1"} | more


def plan(tmp_path: Path, *arguments: str) -> Plan:
    args = command.parse(["--out", str(tmp_path), *arguments])
    return Plan(args, Out(tmp_path / "out"), tmp_path)


# --- A whole rehearsal ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels of the packages that the image lacks, packed from those that are installed here."""
    import importlib.metadata

    folder = tmp_path_factory.mktemp("wheels")
    for name in ("docstring-parser", "segmentation-models-pytorch", "typeguard", "tyro"):
        distribution = importlib.metadata.distribution(name)
        file_name = f"{name.replace('-', '_')}-{distribution.version}-py3-none-any.whl"
        with zipfile.ZipFile(folder / file_name, "w") as wheel:
            for file in distribution.files:
                if ".." not in file.parts and file.suffix != ".pyc":
                    wheel.write(file.locate(), str(file))
    return folder


@pytest.fixture(scope="module")
def prepared(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What --prepare makes, but for its two slow parts: the ops that are built here, and no kernels."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(carried, "_build", lambda *_: "no extension")
        patch.setattr(carried, "_compile", lambda *_: ["no kernels"])
        said = carried.prepare(folder, target="sm_90", wheels=wheels, msrc=None, weights=None)
    assert "package tyro" in said
    for built in (ROOT / "u2pl_fast").glob(f"_C*{carried.versions()['python']}"):
        shutil.copyfile(built, folder / built.name)
    return folder


def rehearse(part: str, prepared: Path, folder: Path) -> tuple[str, dict[str, str]]:
    """Run a whole part. Return what it printed, and why each stage that did not pass was skipped."""
    command_line = [sys.executable, "-m", "benchmarks.gpu_check", *ON_CPU, "--part", part]
    command_line += ["--carried", str(prepared), "--out", str(folder)]
    done = subprocess.run(command_line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    log = (folder / LOG).read_text()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:] + log[-2000:]
    stages = {row["stage"]: row for row in Out(folder).stages()}
    assert set(stages) == {stage.name for stage in plan(folder).part(part)}
    assert all(name in done.stdout for name in stages)
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files <= set(FILES) and len(FILES) <= 8
    assert "carried: packages from site/, the compiled ops" in done.stdout
    return done.stdout, {name: row["note"] for name, row in stages.items() if row["status"] != "passed"}


@pytest.mark.slow
def test_a_rehearsal_on_a_bare_image_asks_whether_it_is_right(prepared: Path, tmp_path: Path):
    printed, skipped = rehearse("right", prepared, tmp_path)
    assert skipped == dict.fromkeys(("memcheck", "racecheck", "whole step"), "needs a GPU")
    losses = json.loads((tmp_path / TRAINING).read_text())
    fused, plain = (losses[name]["loss"] for name in ("train fused", "train reference"))
    assert fused[0] == pytest.approx(plain[0], rel=1e-2) and len(fused) == len(plain) == 6
    assert "% apart over 6 steps" in printed
    assert {row["outcome"] for row in rows(tmp_path / TESTS)} <= {"passed", "skipped"}


@pytest.mark.slow
def test_a_rehearsal_on_a_bare_image_measures_everything(prepared: Path, tmp_path: Path):
    _, skipped = rehearse("fast", prepared, tmp_path)
    assert set(skipped) == {"counters"} and skipped["counters"] in ("needs a GPU", "ncu is not found")
    data = results.load(tmp_path / RESULTS)
    assert {r["op"] for r in data["records"]} >= {"pixel_stats", "thin_mask", "contrastive_loss", "ring_push", "step"}
    assert {r["impl"] for r in data["records"] if r["op"] == "step"} >= {"mean-teacher", "networks-only", "u2pl-lean"}


@pytest.mark.slow
def test_ops_are_measured_where_packages_are_missing(tmp_path: Path):
    command_line = [sys.executable, "-m", "benchmarks", "--quick", "--device", "cpu", "--no-memory", "--impl", "eager"]
    command_line += ["--op", "thin_mask", "step", "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command_line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "step: skipped, No module named" in done.stderr, done.stderr
    assert {r["op"] for r in results.load(tmp_path / "r.json")["records"]} == {"thin_mask"}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.slow
def test_what_was_measured_before_a_kill_is_kept_and_a_later_call_adds_to_it(seed: int, tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURING, *ON_CPU, "--part", "fast", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    path, draw = tmp_path / RESULTS, random.Random(seed)
    try:
        deadline = time.monotonic() + 200
        while not path.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 4))
        before = results.load(path)["records"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pid in _running(tmp_path):  # stages have groups of their own, and nobody is left to end them
            os.kill(pid, signal.SIGKILL)
    kept = {results.key(r): r for r in results.load(path)["records"]}
    assert before and all(kept[results.key(r)] == r for r in before)
    assert any(row["status"] == "running" for row in Out(tmp_path).stages())
    assert (tmp_path / LOG).read_text().count("ops voc | ") >= len(before)

    arguments = ["--quick", "--device", "cpu", "--no-memory", "--op", "class_sum", "--dtype", "float16"]
    arguments += ["--impl", "eager"]
    later = [sys.executable, "-m", "benchmarks", *arguments, "--json", str(path), "--merge"]
    assert subprocess.run(later, cwd=ROOT, env=environment(), capture_output=True).returncode == 0
    merged = {results.key(r) for r in results.load(path)["records"]}
    assert merged > set(kept) and len(merged) == len(kept) + 1


def _running(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_check_that_is_asked_to_end_ends_its_stages_and_tells(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", MEASURING, *ON_CPU, "--part", "fast", "--out", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not rows(tmp_path / STAGES):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the check was ended" in printed
    assert Out(tmp_path).stages()[-1]["status"] == "stopped"
    assert not _running(tmp_path)


# --- Stages -----------------------------------------------------------------------------------------------------------


def stage(name: str, code: str, limit: float = 20, **options: object) -> Stage:
    return Stage(name, [sys.executable, "-c", code], 1, limit, **options)


@pytest.mark.slow
def test_stages_run_in_their_order_and_each_says_how_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture):
    out = Out(tmp_path)
    stages = [
        stage("first", "print('all well')"),
        stage("fails", "print('FAILED one thing'); raise SystemExit(3)"),
        stage("hangs", "import time; print('so far', flush=True); time.sleep(60)", limit=1.5),
        stage("lacks", "pass", imports=("no_such_module",)),
        stage("told not to", "pass", skipped="no reason"),
        stage("after all", "print('RESULT {\"value\": 7}')", after=("fails", "hangs", "lacks")),
    ]
    seen = {row["stage"]: row for row in run("right", stages, 60, dict(os.environ), out)}
    assert {name: row["status"] for name, row in seen.items()} == {
        "first": "passed",
        "fails": "failed",
        "hangs": "stopped",
        "lacks": "skipped",
        "told not to": "skipped",
        "after all": "passed",
    }
    assert seen["first"]["note"] == "all well" and "exit status 3" in seen["fails"]["note"]
    assert "kept" in seen["hangs"]["note"] and "so far" in (tmp_path / LOG).read_text()
    assert seen["lacks"]["note"] == "no module no_such_module; see --missing"
    assert seen["after all"]["result"] == [{"value": 7}]
    assert "fails: FAILED one thing" in capsys.readouterr().out
    assert [row["stage"] for row in out.stages()][-1] == "after all"
    late = run("right", [stage("too late", "pass")], 1, dict(os.environ), out)
    assert late[0]["note"] == "no time left"


@pytest.mark.slow
def test_what_a_running_stage_has_measured_is_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks.gpu_check import schedule

    monkeypatch.setattr(schedule, "COLLECT", 0.1)
    seen = []
    slow = stage("s", "import time; time.sleep(1)", collect=lambda out: seen.append(time.monotonic()))
    run("right", [slow], 60, {}, Out(tmp_path))
    assert len(seen) >= 3 and max(b - a for a, b in zip(seen, seen[1:], strict=False)) < 1


@pytest.mark.parametrize("part", ["right", "fast"])
def test_a_part_fits_its_time_with_a_fifth_to_spare(part: str, tmp_path: Path):
    stages = plan(tmp_path).part(part)
    assert max(end for _, end in timetable(stages, "expected").values()) <= 0.8 * SECONDS[part]
    # The last ones take what is left; the others must not be able to use up each other's time.
    wanted = [s for s in stages if s.name not in ("step as graph", "ops others", "growth")]
    assert max(end for _, end in timetable(wanted, "limit").values()) <= SECONDS[part]
    assert all(s.limit >= 1.2 * s.expected for s in stages)


def test_the_commands_of_every_stage_are_ones_that_exist(tmp_path: Path):
    """Their flags are parsed here; what they do needs the GPU."""
    from benchmarks.__main__ import parse as parse_benchmarks

    for part in SECONDS:
        for one in plan(tmp_path, "--msrc", str(tmp_path)).part(part):
            module = one.command[one.command.index("-m") + 1]
            assert (
                module in ("pytest", "u2pl_fast.train")
                or (ROOT / f"{module.replace('.', '/')}.py").exists()
                or (ROOT / module.replace(".", "/") / "__main__.py").exists()
            ), module
            if module == "benchmarks":
                arguments = one.command[one.command.index("benchmarks") + 1 :]
                parse_benchmarks([a if a != "cuda" else "cpu" for a in arguments])


class Collected:
    """A plugin of pytest that remembers the files of the tests it found."""

    files: set[str]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.files = {item.path.relative_to(ROOT).as_posix() for item in session.items}


@pytest.mark.slow
def test_every_test_that_needs_a_gpu_is_in_a_file_that_is_run():
    found = Collected()
    # In this process: when all tests run, most of their modules are imported.
    arguments = ["--collect-only", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    assert pytest.main([*arguments, str(ROOT / "tests")], plugins=[found]) == pytest.ExitCode.OK
    assert len(found.files) >= 14 and found.files <= set(TEST_FILES)


# --- Tests on a GPU ---------------------------------------------------------------------------------------------------

TEST_FILE = """
import os
import pytest

def test_good(): pass
def test_bad(): assert 1 + 1 == 3, "sums are off"
def test_skipped(): pytest.skip("not here")
def test_dies():
    if not os.path.exists("died"):
        open("died", "w").close()
        os._exit(1)
"""


@pytest.mark.slow
def test_each_test_is_told_at_once_and_one_that_died_runs_again(tmp_path: Path, capfd: pytest.CaptureFixture):
    (tmp_path / "test_it.py").write_text(TEST_FILE)
    report = tmp_path / TESTS
    command_line = [sys.executable, "-m", "pytest", "-q", "-rN", "-n", "2"]
    command_line += ["-p", "benchmarks.gpu_check.reporter", "--report-to", str(report), "test_it.py"]
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command_line, cwd=tmp_path, env=path, capture_output=True, text=True)
    told = {row["test"].partition("::")[2]: row for row in rows(report)}
    assert {name: row["outcome"] for name, row in told.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_skipped": "skipped",
        "test_dies": reporter.CRASHED,
    }
    assert "sums are off" in told["test_bad"]["message"] and "not here" in told["test_skipped"]["message"]
    assert sum(line.startswith("FAILED ") for line in done.stdout.splitlines()) == 2

    assert again.main([str(tmp_path), "--processes", "2", "--folder", str(tmp_path)]) == 1
    assert "1 of 2 tests that failed pass alone" in capfd.readouterr().out
    assert [name.partition("::")[2] for name in again.failed(report)] == ["test_bad"]


@pytest.mark.slow
def test_a_failing_test_makes_its_process_look_for_its_context(tmp_path: Path):
    """By pytest itself: its hooks have an order."""
    (tmp_path / "test_it.py").write_text("def test_a(): assert 0\ndef test_b(): pass\n")
    (tmp_path / "conftest.py").write_text(
        "import torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "def lost(): raise RuntimeError('no context')\n"
        "torch.cuda.synchronize = lost\n"
    )
    report, path = tmp_path / TESTS, os.environ | {"PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", "pytest", "-q", "-rN", "-n", "1", "-p", "benchmarks.gpu_check.reporter"]
    command_line += ["--report-to", str(report), "test_it.py"]
    subprocess.run(command_line, cwd=tmp_path, env=path, capture_output=True)
    outcomes = {row["test"].partition("::")[2]: row["outcome"] for row in rows(report)}
    assert outcomes == {"test_a": "failed", "test_b": reporter.CRASHED}


def test_a_process_without_a_context_ends_before_its_next_test(monkeypatch: pytest.MonkeyPatch):
    ended = []
    monkeypatch.setattr(reporter.os, "_exit", ended.append)
    monkeypatch.setattr(reporter.torch.cuda, "is_available", lambda: True)

    def broken() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    failing = pytest.CallInfo.from_call(lambda: 1 / 0, "call")
    worker = reporter.Worker()
    monkeypatch.setattr(reporter.torch.cuda, "synchronize", lambda: None)
    worker.pytest_runtest_makereport(failing)
    worker.pytest_runtest_protocol()
    assert not ended
    monkeypatch.setattr(reporter.torch.cuda, "synchronize", broken)
    worker.pytest_runtest_makereport(failing)
    worker.pytest_runtest_protocol()
    assert ended == [reporter.LOST]


# --- What is carried --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_closure_of_needs_is_printed(wheels: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    lacking = {"docstring-parser", "segmentation-models-pytorch", "typeguard", "tyro"}
    listing = tmp_path / "freeze.txt"
    listing.write_text("\n".join(f"{name}==1.0" for name in (IMAGE / "packages.txt").read_text().split()))
    assert command.main(["--missing", "--installed", str(listing)]) == 0
    assert set(capsys.readouterr().out.split()) == lacking
    there = [sys.executable, "-m", "benchmarks.gpu_check", "--missing"]
    alone = subprocess.run(there, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert "tyro need is unknown here" in alone.stderr
    told = subprocess.run([*there, "--wheels", wheels], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert set(told.stdout.split()) == lacking and not told.stderr
    assert needs.missing() == ([], [])
    without_torch = "import sys; sys.modules['torch'] = None; from benchmarks.gpu_check import __main__"
    assert subprocess.run([sys.executable, "-c", without_torch], cwd=ROOT).returncode == 0


def test_what_does_not_fit_is_left_with_the_reason(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "carried"
    shutil.copytree(prepared, folder)
    made = json.loads((folder / carried.DESCRIPTION).read_text())
    monkeypatch.setattr(machine, "commit", lambda: "unknown")
    loaded = next((ROOT / "u2pl_fast").glob(f"_C*{carried.versions()['python']}"), None)
    before = loaded and loaded.stat().st_ino
    taken = carried.take(folder)
    assert taken.environment[machine.COMMIT] == made["commit"]
    assert before is None or loaded.stat().st_ino != before, "processes that have it loaded would crash"
    (folder / "_C.other.so").write_text("not for this machine")

    for changed, said in (
        ({"torch": "1.0"}, "torch 1.0 there"),
        ({"extension": "0"}, "sources have changed"),
    ):
        (folder / carried.DESCRIPTION).write_text(json.dumps(made | changed | {"code": "0"}))
        taken = carried.take(folder)
        assert said in "; ".join(taken.said) and taken.environment[machine.COMMIT] == made["commit"] + "+"
    (folder / carried.KERNELS).write_text("not an archive")
    assert "not the kernels: ReadError" in "; ".join(carried.take(folder).said)
    with pytest.raises(SystemExit, match="--prepare"):
        carried.take(tmp_path)


@pytest.mark.slow
def test_kernels_are_compiled_once_and_found_after_they_were_carried(tmp_path: Path):
    pytest.importorskip("triton")
    chosen = ["--target", "sm_90", "--workload", "tiny", "--dtype", "float32", "--layout", "contiguous"]
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "kernels.tar.xz"
    code = (
        "import json, sys, triton\n"
        "from benchmarks.aot import precompile\n"
        "hits = []\n"
        "triton.knobs.compilation.listener = lambda **told: hits.append(told['cache_hit'])\n"
        "for job in precompile.jobs(['tiny'], ['float32'], ['contiguous']):\n"
        "    if not sys.argv[1:] or job.op in sys.argv[1:]: precompile.compile_job(job, 'sm_90')\n"
        "print(json.dumps(hits))\n"
    )

    def python(cache: Path, *arguments: str) -> str:
        run_there = [sys.executable, "-W", "ignore", *arguments]
        where = {"TRITON_CACHE_DIR": str(cache), "TRITON_STORE_BINARY_ONLY": "1"}
        done = subprocess.run(run_there, cwd=ROOT, env=os.environ | where, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = python(here, "-m", "benchmarks.aot.precompile", *chosen, "--processes", "2", "--pack", str(file))
    count = int(said.split()[0])
    assert count >= 20 and f"{count} kernels" in said.splitlines()[1]
    assert precompile.unpacked(file, there) == count
    hits = json.loads(python(there, "-c", code))
    assert len(hits) >= count and all(hits)
    elsewhere = json.loads(python(tmp_path / "nowhere", "-c", code, "pixel_stats"))
    assert elsewhere and not all(elsewhere)


def test_an_extension_that_loads_is_not_built(capsys: pytest.CaptureFixture):
    if extension.problem("cpu") is not None:
        pytest.skip("the compiled ops are not built here")
    assert extension.main(["--device", "cpu"]) == 0
    assert "it loads as it is" in capsys.readouterr().out


# --- What is left -----------------------------------------------------------------------------------------------------


def measured(folder: Path, device: str = "cuda", name: str = "a card") -> dict:
    """Results such as a GPU leaves, of one op."""
    key = ("pixel_stats", "voc", device, "float32", "contiguous", None, "fused", "forward")
    record = dict(zip(results.KEY, key, strict=True)) | dict.fromkeys(results.VALUES) | {"commit": "c", "time": "t"}
    record |= {"ms_median": 0.05, "ms_all": [0.05], "reason": "alone", "host_ms": 0.2, "graph_ms": 0.04}
    kernels = [
        {"kernel": "pixel_stats_fwd_kernel", "launches": 1, "ms": 0.04},
        {"kernel": "void at::native::vectorized_elementwise_kernel<4>(int)", "launches": 2, "ms": 0.5},
        {"kernel": "void (anonymous namespace)::write_kernel<float, float>(cpu::Features)", "launches": 1, "ms": 0.2},
    ]
    block = dict.fromkeys(results.MACHINE, "") | {"name": name, "device": device, "threads": 1, "versions": {}}
    row = {name: record[name] for name in results.KEY}
    data = {"machine": block, "records": [record], "parts": [], "kernels": [row | {"kernels": kernels}]}
    results.save(folder / RESULTS, data)
    return data


def test_results_are_put_where_the_pages_read_them(tmp_path: Path):
    first, second, parent = tmp_path / "first", tmp_path / "second", tmp_path / "results"
    measured(first)
    append(first / "accuracy.jsonl", {"name": "msrc-40-supervised-seed0", "miou": {"last": 0.5}})
    data = measured(second)
    data["records"][0]["ms_median"] = 0.06
    results.save(second / RESULTS, data)
    (second / TRAINING).write_text("{}\n")
    said = install([first, second], parent)
    assert said[-1] == "now: python -m benchmarks.draw.tables"
    assert results.load(parent / "cuda" / "ops.json")["records"][0]["ms_median"] == 0.06
    assert json.loads((parent / "accuracy/cuda/msrc-40-supervised-seed0.json").read_text()) == {"miou": {"last": 0.5}}
    assert (parent / "cuda" / "training.json").exists()
    with pytest.raises(SystemExit, match="no results"):
        install([tmp_path / "empty"], parent)
    measured(tmp_path / "cpu", "cpu")
    with pytest.raises(SystemExit, match="not on a GPU"):
        install([tmp_path / "cpu"], parent)
    measured(tmp_path / "other", name="another card")
    with pytest.raises(SystemExit, match="another card"):
        install([tmp_path / "other"], parent)


def test_pages_show_gpu_figures_as_soon_as_there_are_some(tmp_path: Path):
    """One sentence before; afterwards tables, and a measured column beside the predictions."""
    page, parent, folder = tmp_path / "page.md", tmp_path / "results", tmp_path / "out"
    names = ("gpu cuda", "gpu_headline cuda", "predictions", "timetable")
    page.write_text("".join(f"<!-- table: {name} -->\n<!-- end of table -->\n\n" for name in names))
    tables.main(["--results", str(parent)], [page])
    before = page.read_text()
    assert before.count("No figure comes from a GPU yet") == 2 and "measured |" not in before

    data = measured(folder)
    data["machine"]["ceilings"] = {"bytes": 4e12, "flops": 5e13, "exps": 4e12}
    (fused,) = data["records"]
    eager = fused | {"impl": "eager", "ms_median": 1.0, "ms_all": [1.0], "graph_ms": None}
    lean = fused | {"op": "step", "impl": "u2pl-lean", "pass": "step", "ms_median": 60.0, "ms_all": [60.0]}
    teacher = lean | {"impl": "mean-teacher", "ms_median": 50.0, "ms_all": [50.0]}
    wrong = fused | {"workload": "ade20k", "ms_median": 0.7777, "reason": "disagrees: by much"}
    data["records"] += [eager, lean, teacher, wrong]
    results.save(folder / RESULTS, data)
    losses = {"step": [1, 2], "loss": [2.0, 1.0]}
    (folder / TRAINING).write_text(json.dumps({"train fused": losses, "train reference": losses}))
    kernel = {"kernel": "void write_kernel<float>(int)", "dram__bytes.sum": "12 Mbyte"}
    (folder / COUNTERS).write_text(json.dumps({"kernels": [kernel]}))
    install([folder], parent)
    tables.main(["--results", str(parent)], [page])
    after = page.read_text()
    assert "No figure" not in after and "0.7777" not in after
    for shown in ("20×", "a card, measured", "`write_kernel` 200.0 µs", "12 Mbyte", "1.2×", "4,000 GB/s", "0.00 %"):
        assert shown in after, shown


def test_the_heaviest_kernels_are_the_projects_own(tmp_path: Path):
    data = measured(tmp_path)
    assert counters.heaviest(data) == {"write_kernel": "pixel_stats", "pixel_stats_fwd_kernel": "pixel_stats"}
    assert {"write_kernel", "info_nce_part_kernel", "class_order_kernel"} <= set(counters.own())


def test_counters_are_read_from_what_the_profiler_prints():
    text = io.StringIO(
        '==PROF== Connected to process 7\n"ID","Kernel Name","dram__bytes.sum","launch__registers_per_thread"\n'
        '"","","Mbyte","register/thread"\n"0","pixel_stats_fwd_kernel","12.5","154"\n'
    )
    assert counters.parsed(text) == [
        {
            "kernel": "pixel_stats_fwd_kernel",
            "dram__bytes.sum": "12.5 Mbyte",
            "launch__registers_per_thread": "154 register/thread",
        }
    ]
    assert counters.parsed(['"ID","Kernel Name"\n', '"",""\n']) == []


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path):
    append(tmp_path / "a.jsonl", {"n": 1})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"n": 2')
    assert rows(tmp_path / "a.jsonl") == [{"n": 1}] and rows(tmp_path / "none.jsonl") == []


def test_a_long_log_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from benchmarks.gpu_check import out as module

    monkeypatch.setattr(module, "STAGE_LOG_BYTES", 100)
    out = Out(tmp_path)
    for _ in range(20):
        out.log("loud", "x" * 20)
    out.log("quiet", "heard")
    text = (tmp_path / LOG).read_text()
    assert text.count("loud") < 6 and "quiet | heard" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--out DIR is needed"),
        (["--out", "x", "--wheels", "nowhere"], "--wheels: there is no nowhere"),
        (["--out", "x", "--carried", "nowhere"], "--carried: there is no nowhere"),
        (["--missing", "--installed", "nowhere"], "--installed: there is no nowhere"),
    ],
)
def test_bad_arguments_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


def test_the_timetable_is_printed(capsys: pytest.CaptureFixture):
    assert command.main(["--timetable"]) == 0
    printed = capsys.readouterr().out
    assert "fast: 360 s, expected to end after" in printed and "ops voc" in printed


def test_a_changed_file_that_measures_is_noticed():
    """What the commit's "+" and the digest of what is carried look at is all there, the measuring code included."""
    files = {path for pattern in machine.CODE for path in ROOT.glob(pattern)}
    assert all(any(ROOT.glob(pattern)) for pattern in machine.CODE)
    assert any(Path(runner.__file__).is_relative_to(path) for path in files)
