"""The accuracy suite: experiments are trainings that exist, a finished one is not run again, tables tell what lacks."""

import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.accuracy import __main__ as suite
from benchmarks.accuracy import experiments as experiments_module
from benchmarks.accuracy import labeled_images, paired, plots, predictions
from benchmarks.accuracy.experiments import ALL, ROWS, experiments
from benchmarks.accuracy.runs import current, meaning
from benchmarks.draw.tables import accuracy as tables
from tests.training.runs import start
from u2pl_fast.config import FALLBACKS, resolve
from u2pl_fast.train import parse

TINY = (
    *("--dataset", "folder", "--encoder", "mobilenetv3_small_050", "--encoder-lr", "1e-3"),
    *("--steps", "2", "--eval-every", "1", "--crop-size", "32", "32", "--batch-size", "2"),
)


def test_every_cell_is_a_run_of_its_own():
    found = experiments()
    assert len({experiment.name for experiment in found}) == len(found)
    settings = {}
    for experiment in found:
        config, dataset = resolve(parse(list(experiment.flags))), experiment.dataset
        assert config.seed == experiment.seed and config.dataset == {"msrc": "folder"}.get(dataset, dataset)
        settings[tuple(sorted((k, str(v)) for k, v in config.to_dict().items()))] = experiment.name
    assert len(settings) == len(found), "two experiments train the same thing"


def test_the_recipe_for_few_photographs_is_what_was_measured():
    (experiment,) = [one for one in experiments() if one.name == "msrc-40-u2pl-self-training-8-seed0"]
    recipe, measured = resolve(parse(["--config", "folder-small"])).to_dict(), meaning(experiment)
    assert {name for name, value in measured.items() if recipe[name] != value} == {"labels_first"}  # --teacher-from


def test_what_is_wanted_most_comes_first():
    names = [experiment.name for experiment in experiments()]
    main = [f"camvid-23-{row}-seed{seed}" for seed in range(3) for row in ROWS]
    assert sorted(names[:15]) == sorted(main + [f"camvid-{ALL}-supervised-seed{seed}" for seed in range(3)])


@pytest.fixture
def photographs(tmp_path):
    """Eight images of two scenes, called as MSRC calls them."""
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (tmp_path / "msrc" / part / split).mkdir(parents=True)
        for number in range(1, 9):
            name = f"{1 + number % 2}_{number}_s"
            pixels = np.full((40, 48), number % 2, np.uint8)
            Image.fromarray(np.repeat(120 * pixels[..., None], 3, 2)).save(tmp_path / f"msrc/images/{split}/{name}.png")
            Image.fromarray(pixels).save(tmp_path / f"msrc/labels/{split}/{name}.png")
    (tmp_path / "msrc/classes.txt").write_text("a\nb\n")
    return tmp_path / "msrc"


@pytest.fixture
def tiny(photographs, tmp_path, monkeypatch):
    """Runs of two steps with four labeled ones of those; the flags that name the folders of images and checkpoints."""
    monkeypatch.setitem(experiments_module.DATASETS, "msrc", TINY)
    monkeypatch.setattr(experiments_module, "MSRC_LABELS", 4)
    return ["--msrc", str(photographs), "--encoder-weights", "none", "--work", str(tmp_path / "work")]


class Forked:
    """As much of ``subprocess.Popen`` as the suite needs of a training, which then waits for no import."""

    def __init__(self, command, stdout, **_):
        self.process = start(command[3:], stdout.name)

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


@pytest.fixture
def forked(monkeypatch):
    real = subprocess.Popen

    def popen(command, *arguments, **options):
        is_training = command[:3] == [sys.executable, "-m", "u2pl_fast.train"]
        return (Forked if is_training else real)(command, *arguments, **options)

    monkeypatch.setattr(suite.subprocess, "Popen", popen)


@pytest.mark.slow
def test_a_run_is_trained_once_and_remembered(tmp_path, tiny, forked, monkeypatch, capsys):
    arguments = [*tiny, "--only", "msrc-4-supervised-seed0", "--results", str(tmp_path / "results")]

    assert suite.main([*arguments, "--dry-run"]) == 0
    assert "1 runs to train" in capsys.readouterr().out and not (tmp_path / "results").exists()
    assert suite.main(arguments) == 0
    told = capsys.readouterr().out
    (file,) = (tmp_path / "results").glob("*.json")
    run = json.loads(file.read_text())
    assert f"mIoU {run['miou']['last']:.4f}" in told
    assert run["steps"] == 2 and [e["step"] for e in run["evaluations"]] == [1, 1, 2, 2]
    assert [e["step"] for e in run["evaluations"] if "miou_student" in e] == [1, 2]  # beside those of pseudo-labels
    assert str(tmp_path) not in file.read_text()

    before = file.stat().st_mtime_ns
    assert suite.main(arguments) == 0
    assert "0 runs to train" in capsys.readouterr().out and file.stat().st_mtime_ns == before
    # A run that is older than a setting had that setting's default.
    leftover = tmp_path / "work" / file.stem / "leftover"
    leftover.touch()
    description = leftover.with_name(suite.DESCRIPTION)
    flags, settings = json.loads(description.read_text())
    description.write_text(json.dumps([flags, {k: v for k, v in settings.items() if k != "label_smoothing"}]))
    file.unlink()
    assert suite.main(arguments) == 0
    assert leftover.exists() and file.exists()
    # Another recipe makes it another run.
    # The same flags may come to mean something else; then nothing of the old run is gone on with.
    with monkeypatch.context() as patch:
        patch.setitem(FALLBACKS, "lr", 0.01)
        assert suite.main([*arguments, "--list"]) == 0
        assert "other settings" in capsys.readouterr().out
        assert suite.main(arguments) == 0
    assert not leftover.exists()
    monkeypatch.setitem(experiments_module.DATASETS, "msrc", (*TINY, "--lr", "0.1"))
    assert suite.main([*arguments, "--list"]) == 0
    assert "other settings" in capsys.readouterr().out
    assert suite.main(arguments) == 0
    assert json.loads(file.read_text())["settings"]["lr"] == 0.1


@pytest.mark.slow
def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path, tiny, capsys):
    only = ["--only", "msrc-4-supervised-seed0", "camvid-23-supervised-seed0"]
    (tmp_path / "empty").mkdir()
    arguments = [*tiny, "--camvid", str(tmp_path / "empty"), *only]
    assert suite.main([*arguments, "--results", str(tmp_path / "r")]) == 1
    told = capsys.readouterr().out
    assert "camvid-23-supervised-seed0: failed" in told and "--num-labeled 23" in told
    assert (tmp_path / "r/msrc-4-supervised-seed0.json").exists()


def test_draws_are_even_over_scenes_nested_and_of_their_seed(photographs):
    names = [f"{scene}_{number}_s" for scene in (1, 2, 10) for number in range(7)]
    four, nine = labeled_images.labeled_ids(names, 4, 0), labeled_images.labeled_ids(names, 9, 0)
    assert set(four) < set(nine) and len(nine) == 9
    assert {scene: sum(name.startswith(f"{scene}_") for name in nine) for scene in (1, 2, 10)} == {1: 3, 2: 3, 10: 3}
    assert nine == labeled_images.labeled_ids(names[::-1], 9, 0) != labeled_images.labeled_ids(names, 9, 1)
    listed = labeled_images.write_list(photographs, 4, 0, photographs / "lists" / "four.txt").read_text().split()
    assert len(listed) == 4 and sum(name.startswith("1_") for name in listed) == 2


@pytest.mark.slow
def test_a_run_that_another_one_reads_comes_first(tmp_path, photographs, tiny, forked, monkeypatch, capsys):
    arguments = [*tiny, "--results", str(tmp_path / "results"), "--jobs", "2", "--only", "msrc-4-self-training-8-seed0"]
    assert suite.main(arguments) == 0
    said = capsys.readouterr().out
    order = [
        said.index(f"msrc-4-{row}-seed0: {what}") for row, what in (("supervised", "mIoU"), ("self-training-8", "t"))
    ]
    assert order == sorted(order) and {path.stem for path in (tmp_path / "results").iterdir()} == {
        "msrc-4-supervised-seed0",
        "msrc-4-self-training-8-seed0",
    }
    assert suite.main(arguments) == 0
    assert "0 runs to train" in capsys.readouterr().out

    monkeypatch.setattr(predictions, "MSRC_LABELS", 4)
    monkeypatch.setattr(predictions, "PHOTOGRAPHS", ("1_2_s", "2_3_s"))
    picture = tmp_path / "plots" / "predictions.png"
    drawn, draw = {}, predictions.draw
    monkeypatch.setattr(predictions, "draw", lambda columns, *rest: drawn.update(columns) or draw(columns, *rest))
    arguments = ["--msrc", str(photographs), "--work", str(tmp_path / "work"), "--out", str(picture), "--photographs"]
    predictions.main(arguments)
    assert list(drawn) == ["photograph", "truth", "labels alone", "self-training-8"]
    assert [int(label.max()) for label in drawn["truth"]] == [0, 1]
    assert {x.shape[:2] for column in drawn.values() for x in column} == {(40, 48)}
    assert Image.open(picture).width > 300
    with pytest.raises(SystemExit):
        predictions.main([*arguments, "--seed", "1"])
    assert "no finished run with seed 1" in capsys.readouterr().err


def test_paired_differences():
    assert paired.difference([1.0, None], [None, 2.0]) is None
    one = paired.difference([3.0, None], [1.0, 2.0])
    assert one == paired.Difference(1, 2.0, None) and paired.shown(one) == "+2.0"
    five = paired.difference([1.0, 2, 3, 4, 5], [0.0, 0, 0, 0, 0])  # standard deviation 1.5811, t of 4 degrees 2.776
    assert five.mean == 3 and five.half_width == pytest.approx(1.963, abs=1e-3)
    assert paired.shown(five) == "+3.0 ± 2.0"
    assert paired.difference([1.0, 1.0], [0.0, 0.0]).half_width == 0
    assert paired.shown(paired.difference([0.01, 0.02, 0.03], [0.0, 0.0, 0.0])) == "+0.02 ± 0.02"


def made_up(name: str, miou: float) -> dict:
    (experiment,) = [experiment for experiment in experiments() if experiment.name == name]
    evaluations = [
        {"step": 5, "miou_student": miou / 2, "pseudo_accuracy": 0.8, "pseudo_accuracy_reliable": 0.9}
        | {"pseudo_accuracy_unreliable": 0.5, "pseudo_negatives_right": 0.99, "pseudo_negatives_right_unranked": 0.95},
        {"step": 10, "miou_student": miou},
    ]
    scores = {"last": miou, "best": miou}
    ious = [miou + 0.01 * (c - 5) for c in range(11)]
    run = {
        "seed": experiment.seed,
        "miou": scores,
        "iou_per_class": ious,
        "flags": list(experiment.flags),
        "steps": 10,
        "seconds": 20.0,
        "evaluations": evaluations,
    }
    return run | {"settings": resolve(parse(list(experiment.flags))).to_dict() | {"threads": 7}}


@pytest.fixture
def some_runs(tmp_path):
    folder = tmp_path / "accuracy" / "cpu"
    folder.mkdir(parents=True)
    scores = {("supervised", 23): 0.5, ("u2pl-lean", 23): 0.56, ("mean-teacher", 23): 0.49, ("supervised", ALL): 0.6}
    for (row, labels), miou in scores.items():
        for seed in (0, 1):
            name = f"camvid-{labels}-{row}-seed{seed}"
            (folder / f"{name}.json").write_text(json.dumps(made_up(name, miou + 0.01 * seed)))
    name = "camvid-23-classmix-seed0"
    (folder / f"{name}.json").write_text(json.dumps(made_up(name, 0.58)))
    name = "camvid-23-u2pl-paper-seed0"  # trained when the dataset was another one
    run = made_up(name, 0.7)
    run["settings"] |= {"clip_norm": 1.0}
    (folder / f"{name}.json").write_text(json.dumps(run))
    for name in ("camvid-23-u2pl-paper-seed1", "camvid-23-mean-teacher-seed1"):  # when flags meant something else,
        run = made_up(name, 0.7 if "paper" in name else 0.5)  # of which mean-teacher reads nothing
        run["settings"] |= {"key_encoder": "student"}
        (folder / f"{name}.json").write_text(json.dumps(run))
    name = "camvid-23-u2pl-paper-seed2"  # before there was the setting
    run = made_up(name, 0.7)
    del run["settings"]["freeze_batchnorm"]
    (folder / f"{name}.json").write_text(json.dumps(run))
    return tmp_path


def cells(table: str) -> dict[str, list[str]]:
    """Return the cells of each row after the first one, by the first."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:] if line]
    return {first: rest for first, *rest in lines}


def test_gains_are_paired_and_rows_without_a_run_left_out(some_runs):
    rows = cells(tables.accuracy(some_runs / "cpu"))
    assert list(rows) == ["labels alone", "mean-teacher", "U²PL, `lean`", "all labels"]  # no current run of paper
    assert rows["labels alone"] == ["50.5", "baseline", "50.0, 51.0"]
    assert rows["U²PL, `lean`"] == ["56.5", "+6.00 ± 0.00", "56.0, 57.0"]
    assert rows["mean-teacher"][1] == "-1.00 ± 0.00" and rows["all labels"][1] == "+10.00 ± 0.00"


def test_photographs_are_compared_in_pairs(some_runs):
    folder = some_runs / "accuracy/cpu"

    def rows() -> dict[str, list[str]]:
        return cells(tables.accuracy_msrc(some_runs / "cpu"))

    assert rows() == {}
    for row, more in {"supervised": (0, 0), "self-training": (0.01, 0.03), "fixmatch": (0.04,)}.items():
        for seed, gain in enumerate(more):
            name = f"msrc-40-{row}-seed{seed}"
            (folder / f"{name}.json").write_text(json.dumps(made_up(name, 0.6 + 0.05 * seed + gain)))
    found = rows()
    assert list(found) == ["labels alone", "self-training", "FixMatch"]
    assert found["self-training"] == ["64.5", "+2.0 ± 12.7", "61.0, 68.0"]
    assert found["FixMatch"] == ["64.0", "+4.0", "64.0"]
    name = "msrc-80-supervised-seed0"
    (folder / f"{name}.json").write_text(json.dumps(made_up(name, 0.7)))
    assert rows() == found
    assert "| labels alone | 70.0 | baseline | 70.0 |" in tables.accuracy_msrc_labels(some_runs / "cpu")


def test_parts_of_u2pl_are_compared_in_pairs(some_runs):
    def rows() -> list[str]:
        return tables.accuracy_msrc_parts(some_runs / "cpu").splitlines()[2:]

    assert rows() == []
    for row, scores in {
        "supervised": (0.6, 0.7),
        "contrast-labels": (0.61, 0.73),
        "contrast-negatives": (0.64,),
    }.items():
        for seed, miou in enumerate(scores):
            name = f"msrc-40-{row}-seed{seed}"
            (some_runs / f"accuracy/cpu/{name}.json").write_text(json.dumps(made_up(name, miou)))
    assert rows() == [
        "| L_c, on labeled pixels | labels alone | 65.0 | 67.0 | +2.0 ± 12.7 | 2 |",
        "| unreliable pixels as negatives of L_c | labels alone + L_c | 61.0 | 64.0 | +3.0 | 1 |",
    ]
    few = ("msrc", experiments_module.MSRC_LABELS)
    trained = {experiment.row for experiment in experiments() if (experiment.dataset, experiment.labels) == few}
    assert {row for _, *compared in tables.PARTS for row in compared} <= trained


def test_screening_shows_each_change_beside_what_it_changes(tmp_path):
    assert len(tables.accuracy_msrc_settings(tmp_path / "cpu").splitlines()) == 2  # no results
    run = {"name": "plain", "title": "labels alone", "miou": 0.5, "settings": {"seed": 0}}
    changed = {"name": "new", "base": "plain", "changed": "`--mix none`", "miou": 0.48, "settings": {"seed": 0}}
    runs = [run, changed, {**changed, "miou": 0.9, "settings": {"seed": 1}}]
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "accuracy" / "msrc-screening.json").write_text(json.dumps({"runs": runs}))
    lines = tables.accuracy_msrc_settings(tmp_path / "cpu").splitlines()
    assert lines[2:] == ["| labels alone: `--mix none` | 50.0 | 48.0 | -2.0 |"]


def test_time_counts_the_run_that_a_row_reads(some_runs):
    folder = some_runs / "accuracy/cpu"
    for row, seconds in (("supervised", 60), ("self-training-8", 120)):
        run = made_up(f"msrc-40-{row}-seed0", 0.6) | {"seconds": seconds}
        (folder / f"msrc-40-{row}-seed0.json").write_text(json.dumps(run))
    figure = Figure()
    axis = figure.subplots()
    plots.photographs_in_time(current(folder), axis)
    minutes = {line.get_label(): list(line.get_xdata()) for line in axis.lines}
    assert minutes == {"labels alone": [0.5, 1.0], "self-training-8": [2.0, 3.0]}
    assert tables.accuracy_headline(some_runs / "cpu").splitlines()[2:] == [
        "| labeled images only | 60.0 | baseline | 1 |",
        "| self-training | 60.0 | +0.0 | 3 |",
    ]


def test_classes_are_shown_over_the_seeds_that_have_every_row(some_runs):
    assert len(tables.accuracy_classes(some_runs / "cpu").splitlines()) == 2  # no run of paper counts
    for seed, miou in ((0, 0.5), (1, 0.6)):
        name = f"camvid-23-u2pl-paper-seed{seed}"
        (some_runs / f"accuracy/cpu/{name}.json").write_text(json.dumps(made_up(name, miou)))
    header, _, *rows = [line.split(" | ") for line in tables.accuracy_classes(some_runs / "cpu").splitlines()]
    assert header[0] == "| seeds 0, 1" and len(rows) == 11
    assert rows[0] == ["| Sky", "45.5", "44.5", "51.5", "50.0", "55.5 |"]


def test_longer_runs_are_compared_with_labels_alone_for_as_long(some_runs):
    for row, labels, miou in (("supervised", 23, 0.52), ("u2pl-lean", 23, 0.55), ("supervised", ALL, 0.58)):
        name = f"camvid-{labels}-{row}-longer-seed0"
        (some_runs / f"accuracy/cpu/{name}.json").write_text(json.dumps(made_up(name, miou)))
    rows = cells(tables.accuracy_longer(some_runs / "cpu"))
    assert rows["U²PL, `lean`"] == ["55.0", "+3.0", "55.0"] and rows["all labels"][1] == "+6.0"


def test_ablations_and_quality_tables(some_runs):
    table = tables.accuracy_ablations(some_runs / "cpu")
    (line,) = [line for line in table.splitlines() if "--mix classmix" in line]
    assert "58.0 | +2.0" in line
    assert "99.0 ± 0.0" in tables.accuracy_quality(some_runs / "cpu")


def test_pictures_are_drawn_from_the_runs(some_runs, tmp_path):
    plots.main(["--out", str(tmp_path / "out"), "--results", str(some_runs / "accuracy/cpu")])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"accuracy.png", "accuracy-ablations.png"}


def test_bad_arguments_are_told(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no experiment has nothing-like-it in its name"):
        suite.main(["--only", "nothing-like-it", "--list", "--results", str(tmp_path)])
    with pytest.raises(SystemExit, match="--msrc: expected the folder"):
        suite.main(["--only", "msrc", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):
        suite.main(["--camvid", str(tmp_path / "none"), "--results", str(tmp_path)])
    assert "--camvid: no folder" in capsys.readouterr().err
