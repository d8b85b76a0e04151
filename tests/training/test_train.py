"""The trainer as a program: what it writes, that it goes on where it was, and how it says no."""

import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.data import dataset_trees
from tests.training.runs import assert_same_state, few_images, run, start, tiny, weights
from u2pl_fast import data, evaluate, ops
from u2pl_fast.config import TrainConfig
from u2pl_fast.criterion import U2PLCriterion
from u2pl_fast.inference import load_model
from u2pl_fast.models import network
from u2pl_fast.ops import _backend
from u2pl_fast.saving import checkpoint
from u2pl_fast.train import main, parse
from u2pl_fast.training import learner
from u2pl_fast.training.learner import Learner
from u2pl_fast.training.summary import backends

CAMVID = os.environ.get("U2PL_FAST_CAMVID")
ENCODER_WEIGHTS = os.environ.get("U2PL_FAST_ENCODER_WEIGHTS")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_run_leaves_its_files(tmp_path, capsys):
    metrics = run(tiny(tmp_path, steps=4, eval_every=2))
    written = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "log.jsonl", "metrics.json", "last.pt", "best.pt", "tensorboard"} <= written
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["miou"] <= metrics["best_miou"]
    assert metrics["network"] == "teacher" and metrics["steps"] == 4 and metrics["world_size"] == 1
    assert len(metrics["iou_per_class"]) == 6
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["student"] and best[best["network"]] and "bank" not in best and "optimizer" not in best
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == [2, 4]
    assert {"gamma", "lambda_u", "reliable_share", "anchors", "bank_fill"} <= losses[-1].keys()
    saved = TrainConfig.from_yaml(tmp_path / "config.yaml")
    assert saved.to_dict() == checkpoint.load(tmp_path / "last.pt")["config"]
    assert "global batch 2 labeled + 2 unlabeled" in capsys.readouterr().out
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(ValueError, match="resume: .*last.pt holds only networks"):
        run(tiny(tmp_path, steps=4, eval_every=2, resume=True))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "u2pl"},
        {"method": "u2pl", "recipe": "paper", "optimizer": "sgd", "accumulate": 2},
        {"method": "mean-teacher", "mix": "classmix"},
        {"method": "supervised", "ohem": (0.7, 500), "auxiliary": True},
        {"method": "supervised", "average_weights": True, "mix_labeled_prob": 1.0, "jitter_labeled": True},
        {"method": "mean-teacher", "strong_views": 2, "feature_dropout": 0.5, "gate": "confidence"},
        {"method": "u2pl", "teacher_input": "whole", "teacher_every": 3, "num_labeled": 390, "unlabeled_batch_size": 3},
    ],
    ids=["lean", "paper-sgd-accumulate", "mean-teacher", "supervised-ohem", "averaged", "unimatch", "whole-images"],
)
@pytest.mark.slow
def test_k_plus_k_steps_are_2k_steps_bit_for_bit(tmp_path, options):
    run(tiny(tmp_path / "straight", **options))
    run(tiny(tmp_path / "parts", stop_after=4, **options))
    run(tiny(tmp_path / "parts", resume=True, workers=2, **options))
    assert_same_state(tmp_path / "straight", tmp_path / "parts")
    straight, parts = ((tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("straight", "parts"))
    timing = {"seconds_per_step", "images_per_second", "loader_wait_seconds"}
    for a, b in zip(map(json.loads, straight), map(json.loads, parts), strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {k: v for k, v in b.items() if k not in timing}


LONGER = {"steps": 30, "log_every": 1}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    run(tiny(out, **LONGER))
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.slow
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(tmp_path, undisturbed, number):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny(tmp_path / "cut", **LONGER).to_dict()))
    process = start(["--config", str(tmp_path / "c.yaml")], tmp_path / "printed.txt")
    log = tmp_path / "cut" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 3):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(120)
    output = (tmp_path / "printed.txt").read_text()
    step = checkpoint.load(tmp_path / "cut" / "last.pt")["step"]
    assert process.exitcode == 0 and 3 <= step < 30
    assert f"stopped and saved at step {step} of 30; continue with the same command and --resume" in output
    run(tiny(tmp_path / "cut", resume=True, **LONGER))
    assert_same_state(undisturbed, tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_train_as_one_program(tmp_path):
    """With gloo: one log, one set of metrics, a ring for each process, and exact resumption."""

    def settings(out: Path) -> list[str]:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny(out, steps=6, eval_every=6).to_dict()))
        return ["--config", str(tmp_path / "c.yaml")]

    def torchrun(out: Path) -> None:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = [*launch, "-m", "u2pl_fast.train", *settings(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]

    def two(out: Path, *flags: str) -> str:
        """Do what torchrun does, without its imports; return what the first process printed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        command = [*settings(out), *flags]
        printed = {rank: tmp_path / f"{out.name}-{len(flags)}-{rank}.txt" for rank in "01"}
        ranks = [start(command, path, RANK=rank, LOCAL_RANK=rank, **shared) for rank, path in printed.items()]
        for process in ranks:
            process.join(300)
        assert [process.exitcode for process in ranks] == [0, 0], [path.read_text() for path in printed.values()]
        return printed["0"].read_text()

    torchrun(tmp_path / "straight")
    two(tmp_path / "parts", "--stop-after", "4")
    two(tmp_path / "parts", "--resume")
    assert_same_state(tmp_path / "straight", tmp_path / "parts")
    metrics = json.loads((tmp_path / "straight" / "metrics.json").read_text())
    assert metrics["world_size"] == 2 and metrics["steps"] == 6 and 0 <= metrics["miou"] <= 1
    rings = sorted(ring.name for ring in (tmp_path / "parts").glob("ring*.pt"))
    assert rings == ["ring1.step4.pt", "ring1.step6.pt"]
    two(tmp_path / "two", "--labels-first", "--teacher-input", "whole", "--num-labeled", "394")
    for folder in (tmp_path / "two", tmp_path / "two" / "labels-alone"):
        assert json.loads((folder / "metrics.json").read_text())["steps"] == 6
    told = two(tmp_path / "nothing", "--dry-run")
    assert "each process receives per step: gradients" in told and not (tmp_path / "nothing").exists()


@pytest.mark.skipif(CAMVID is None, reason="U2PL_FAST_CAMVID names no folder of real images")
@pytest.mark.slow
def test_learns_from_real_photographs(tmp_path):
    options = {
        "dataset": "camvid",
        "data_root": Path(CAMVID),
        "encoder": "tf_efficientnet_lite0" if ENCODER_WEIGHTS else "mobilenetv3_small_050",
        "encoder_weights": ENCODER_WEIGHTS or "none",
        "num_labeled": 23,
        "resize": (96, 128),
        "crop_size": (96, 128),
        "steps": 60,
        "eval_every": 60,
        "sup_only_epochs": 20 / 86,
        "batch_size": 4,
        "log_every": 5,
        "bank_capacity": 500,
    }
    metrics = run(tiny(tmp_path / "run", **options))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    supervised = [line["supervised"] for line in lines if "supervised" in line]
    assert sum(supervised[-3:]) < 0.7 * sum(supervised[:3])
    contrastive = [line["contrastive"] for line in lines if line.get("contrastive")]
    assert contrastive[-1] < math.log(51)  # what anchors that know nothing pay, with 50 negatives each
    last = [line for line in lines if "bank_fill" in line][-1]
    assert sum(last["anchors"]) > 0 and max(last["bank_fill"]) > 100
    assert metrics["skipped"] == 0

    out = tmp_path / "evaluation.json"
    flags = ["--checkpoint", str(tmp_path / "run" / "last.pt"), "--json", str(out)]
    evaluate.main(flags)
    evaluated = json.loads(out.read_text())
    assert evaluated["miou"] == pytest.approx(metrics["miou"], abs=1e-6)
    assert evaluated["network"] == metrics["network"] and evaluated["images"] == 101


@pytest.mark.slow
def test_a_step_that_is_not_finite_moves_nothing_and_too_many_stop(tmp_path, monkeypatch):
    run(tiny(tmp_path / "good", stop_after=4))
    before = weights(tmp_path / "good")

    from u2pl_fast.training import learner

    real = learner.StudentLoss.forward

    def broken(self, *arguments, **options):
        losses = real(self, *arguments, **options)
        losses.total = losses.total * float("nan")
        return losses

    monkeypatch.setattr(learner.StudentLoss, "forward", broken)
    metrics = run(tiny(tmp_path / "good", stop_after=6, resume=True))
    assert metrics["skipped"] == 2
    after = weights(tmp_path / "good")
    moved = [k for k in before if k.split(".")[0] in ("student", "teacher") and not torch.equal(before[k], after[k])]
    assert not moved
    with pytest.raises(FloatingPointError, match="good state is in .*last.pt.*--init-from.*clip-norm"):
        run(tiny(tmp_path / "good", resume=True, max_skipped=1))
    assert checkpoint.load(tmp_path / "good" / "last.pt")["step"] > 6
    after = weights(tmp_path / "good")
    assert not [k for k in before if k.startswith(("student", "teacher")) and not torch.equal(before[k], after[k])]
    monkeypatch.setattr(learner.StudentLoss, "forward", real)
    assert run(tiny(tmp_path / "good", resume=True, max_skipped=1))["steps"] == 8


@pytest.mark.slow
def test_a_contrastive_loss_at_chance_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("u2pl_fast.training.trainer.LOGGED_AT_CHANCE", 2)
    run(tiny(tmp_path / "falls", log_every=1))
    assert "level of chance" not in capsys.readouterr().out
    monkeypatch.setattr("u2pl_fast.training.trainer.AT_CHANCE", 0.1)
    run(tiny(tmp_path / "student", log_every=1, key_encoder="student"))
    assert "level of chance, log(N + 1) = 3.93: the representations do not separate" in (
        told := capsys.readouterr().out
    )
    assert "--key-encoder teacher-head may help" in told
    run(tiny(tmp_path / "head", log_every=1))
    assert "--key-encoder teacher may help" in capsys.readouterr().out
    run(tiny(tmp_path / "teacher", log_every=1, key_encoder="teacher"))
    assert "level of chance" in (told := capsys.readouterr().out) and "may help" not in told
    run(tiny(tmp_path / "none", log_every=1, method="mean-teacher"))
    assert "level of chance" not in capsys.readouterr().out


@pytest.mark.slow
def test_refusals_name_the_setting(tmp_path):
    run(tiny(tmp_path, stop_after=1))
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        run(tiny(tmp_path))
    with pytest.raises(ValueError, match="temperature was 0.5, now 0.1"):
        run(tiny(tmp_path, resume=True, temperature=0.1))
    for options, message in (
        ({"dataset": "nonsense"}, "nonsense"),
        ({"dataset": "folder"}, "data-root"),
        ({"low_rank": 6}, "low_rank"),
        ({"batch_size": 0}, "batch_size"),
        ({"unlabeled_batch_size": 0}, "unlabeled_batch_size: expected at least 1"),
        ({"batch_size": 1}, "batch-size 2"),
        ({"epochs": 1.0}, "steps or epochs"),
        ({"labeled_fraction": "1/4"}, "set only one of labeled_fraction, num_labeled"),
        ({"class_weights": tmp_path / "absent"}, "class_weights"),
        ({"weigh_pseudo_labels": True}, "weigh_pseudo_labels: .*set class_weights"),
        ({"projection": "conv"}, "key_encoder: .*use that, or key_encoder teacher"),
        ({"freeze_batchnorm": True}, "freeze_batchnorm: .*set encoder_weights"),
        ({"device": "cuda"}, "no GPU"),
        ({"init_from": tmp_path / "absent.pt"}, "absent.pt"),
        ({"encoder_weights": "absent.safetensors"}, "absent.safetensors"),
        ({"bank_capacity": (500, "6:9")}, "bank_capacity"),
        ({"eval_every": 0}, "eval_every: expected at least 1"),
        ({"threads": 0}, "threads: expected at least 1"),
        ({"stop_after": 0}, "stop_after: expected at least 1"),
        ({"representation_dim": 0}, "representation_dim: expected at least 1"),
        ({"steps": None, "epochs": math.inf}, "expected at least 1 step"),
        ({"clip_norm": 0.0}, "clip_norm: expected a positive"),
        ({"encoder_lr": -1.0}, "encoder_lr: expected 0 or more"),
        ({"freeze_stages": -1}, "freeze_stages: expected 0 or more, got -1"),
        ({"freeze_stages": 2, "encoder_weights": "none"}, "freeze_stages: .*set encoder_weights or init_from"),
        ({"strong_views": 0}, "strong_views: expected at least 1"),
        ({"feature_dropout": 1.5}, r"feature_dropout: expected a number in \[0, 1\]"),
        ({"teacher_from": Path("best.pt")}, "teacher_from: .*add --teacher-input whole"),
        ({"labels_first": True}, "labels_first: .*add --teacher-input whole"),
        ({"teacher_input": "whole", "recipe": "paper"}, "teacher_input: .*use crop, or recipe lean"),
        ({"teacher_input": "whole", "second_teacher_pass": True}, "teacher_input: .*use crop"),
        ({"teacher_input": "whole", "teacher_scales": (0.0,)}, "teacher_scales: expected positive numbers"),
        ({"sup_only_epochs": -1.0}, "sup_only_epochs"),
        ({"arch": "DeepLabV3Plus", "batch_size": 1}, "batch-size 2"),
        ({"data_root": tmp_path}, "data_root: the built-in data set shapes"),
        ({"out": Path("/proc/self")}, "out: cannot"),
        ({"out": tmp_path / "last.pt"}, "out: cannot create"),
    ):
        if options == {"device": "cuda"} and torch.cuda.is_available():
            continue
        with pytest.raises(ValueError, match=message):
            run(tiny(**{"out": tmp_path / "other"} | options))


def test_commands_exit_with_one_line(tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--dataset", "folder", "--data-root", str(tmp_path / "absent"), "--out", str(tmp_path / "o")])
    assert str(stop.value).startswith("error:") and str(tmp_path / "absent") in str(stop.value)


def test_flags_override_the_yaml_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("temperature: 0.3\ncrop_size: [32, 64]\nout: somewhere\n")
    config = parse(["--config", str(file), "--temperature", "0.7"])
    assert config.temperature == 0.7 and config.crop_size == (32, 64) and config.out == Path("somewhere")
    file.write_text("temprature: 0.3\n")
    with pytest.raises(ValueError, match="temprature"):
        parse(["--config", str(file)])
    file.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ValueError, match="not valid YAML"):
        parse(["--config", str(file)])
    with pytest.raises(ValueError, match="cannot read"):
        parse(["--config", str(tmp_path / "absent.yaml")])


def test_config_survives_a_round_trip():
    config = TrainConfig(data_root=Path("a"), crop_size=(3, 4), labeled_list=Path("b"), encoder_weights="c.safetensors")
    assert TrainConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config
    assert dataclasses.asdict(TrainConfig()) == dataclasses.asdict(TrainConfig.from_dict({}))


@pytest.mark.slow
def test_init_from_takes_the_weights_of_another_run(tmp_path):
    run(tiny(tmp_path / "first", method="supervised", stop_after=2))
    run(tiny(tmp_path / "second", init_from=tmp_path / "first" / "last.pt", stop_after=1, lr=1e-12, encoder_lr=1e-12))
    first, second = (checkpoint.load(tmp_path / name / "last.pt")["student"] for name in ("first", "second"))
    for name, value in first.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(second[name], value, atol=1e-8, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_a_finished_run_labels_for_another_one_once(tmp_path, monkeypatch):
    """Self-training: labels of whole images come from the earlier network, and from it alone."""
    earlier = {"method": "supervised", "steps": 2, "num_labeled": 394, "average_weights": True, "sup_only_epochs": 0}
    run(tiny(tmp_path / "earlier", **earlier))
    looks = []

    def look(self, network, images, *rest):
        looks.append([network, *(index for index, _ in images)])
        self.maps = {index: torch.zeros(6, 16, 16).half() for index in looks[-1][1:]}

    monkeypatch.setattr(learner.WholeImagePredictions, "predict", look)
    options = {"method": "mean-teacher", "teacher_input": "whole", "teacher_every": 1, "sup_only_epochs": 0}
    options |= {"num_labeled": 394, "steps": 3, "gate": "confidence", "confidence_threshold": 0.0}
    run(tiny(tmp_path / "own", teacher_from=tmp_path / "earlier" / "last.pt", **options))
    ((network, *indices),) = looks
    state = checkpoint.load(tmp_path / "earlier" / "last.pt")
    assert len(indices) == 6 and all(torch.equal(x, state["teacher"][name]) for name, x in network.state_dict().items())
    lines = [json.loads(line) for line in (tmp_path / "own" / "log.jsonl").read_text().splitlines()]
    assert [line["reliable_share"] for line in lines if "reliable_share" in line] == [1.0, 1.0]
    looks.clear()
    run(tiny(tmp_path / "following", **options))
    assert len(looks) == 3  # without it the teacher looks as often as teacher_every says
    own = tmp_path / "own"
    (tmp_path / "earlier" / "last.pt").rename(tmp_path / "moved.pt")
    run(tiny(own, teacher_from=tmp_path / "moved.pt", resume=True, **options))
    names, state["class_names"] = state["class_names"], state["class_names"][::-1]
    for change, message in (({}, "other classes"), ({"in_channels": 1}, "takes 1 channels")):
        checkpoint.save(tmp_path / "other.pt", state | {"config": state["config"] | change})
        with pytest.raises(ValueError, match=f"teacher_from: .*other.pt .*{message}"):
            run(tiny(tmp_path / "third", teacher_from=tmp_path / "other.pt", **options))
        state["class_names"] = names


@pytest.mark.slow
def test_one_command_trains_on_labels_alone_first(tmp_path, capsys):
    shared = {"num_labeled": 394, "steps": 4, "sup_only_epochs": 0}  # six unlabeled images
    alone = shared | {"method": "supervised", "average_weights": True}
    taught = shared | {"teacher_input": "whole", "gate": "confidence", "confidence_threshold": 0.0}
    run(tiny(tmp_path / "first", **alone))
    run(tiny(tmp_path / "second", teacher_from=tmp_path / "first" / "last.pt", **taught))
    one = tmp_path / "one"
    run(tiny(one, labels_first=True, dry_run=True, **taught))
    told = capsys.readouterr().out
    assert "supervised on shapes" in told and "u2pl (lean) on shapes" in told and not one.exists()

    stopped = run(tiny(one, labels_first=True, stop_after=2, **taught))
    assert stopped["steps"] == 2 and not (one / "last.pt").exists()
    run(tiny(one, labels_first=True, resume=True, **taught))
    assert_same_state(tmp_path / "first", one / "labels-alone")
    assert_same_state(tmp_path / "second", one)
    before = (one / "labels-alone" / "last.pt").stat().st_mtime_ns
    run(tiny(one, labels_first=True, resume=True, **taught))  # both are complete
    assert_same_state(tmp_path / "second", one)
    assert (one / "labels-alone" / "last.pt").stat().st_mtime_ns == before
    shutil.rmtree(one / "labels-alone")  # its labels are in the second run's checkpoint
    run(tiny(one, labels_first=True, resume=True, **taught))
    assert_same_state(tmp_path / "second", one)
    assert not (one / "labels-alone").exists()
    with pytest.raises(ValueError, match="out: .*one already holds a run"):
        run(tiny(one, labels_first=True, **taught))
    run(tiny(tmp_path / "labels", labels_first=True, **taught | alone))  # on labels alone there is nothing to do first
    assert_same_state(tmp_path / "first", tmp_path / "labels")


@pytest.mark.slow
def test_labeled_images_are_mixed_with_their_labels(tmp_path, monkeypatch):
    seen = {}

    def forward(self, images, labels, *rest, **options):
        seen["images"], seen["labels"] = images, labels
        return real(self, images, labels, *rest, **options)

    real = learner.StudentLoss.forward
    monkeypatch.setattr(learner.StudentLoss, "forward", forward)
    options = {"method": "supervised", "steps": 1, "stop_after": 1}
    run(tiny(tmp_path / "plain", **options))
    plain = dict(seen)
    run(tiny(tmp_path / "mixed", mix_labeled_prob=1.0, **options))
    swapped = (plain["images"].flip(0) == seen["images"]).all(1) & (plain["labels"].flip(0) == seen["labels"])
    kept = (plain["images"] == seen["images"]).all(1) & (plain["labels"] == seen["labels"])
    assert (kept | swapped).all()
    assert 0.2 < (~kept).float().mean() < 0.55  # a box of a quarter to a half of the image


@pytest.mark.slow
def test_the_teacher_sees_the_labeled_images_that_were_mixed(tmp_path, monkeypatch):
    seen = []
    real_look, real_forward = Learner._run_teacher, learner.StudentLoss.forward

    def look(self, images, **options):
        seen.append(images)
        return real_look(self, images, **options)

    def forward(self, images, *rest, **options):
        seen.append(images)
        return real_forward(self, images, *rest, **options)

    monkeypatch.setattr(Learner, "_run_teacher", look)
    monkeypatch.setattr(learner.StudentLoss, "forward", forward)
    run(tiny(tmp_path, recipe="paper", steps=1, stop_after=1, sup_only_epochs=0, mix_labeled_prob=1.0))
    teachers, students = seen
    assert torch.equal(teachers[:2], students[:2])


@pytest.mark.slow
def test_other_normalization_than_the_weights_have_is_refused(tmp_path):
    first = tmp_path / "first"
    run(tiny(first, method="supervised", stop_after=2))
    given = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    with pytest.raises(ValueError, match="init_from: .* --image-mean 0.485 0.456 0.406 --image-std 0.229"):
        run(tiny(tmp_path / "second", init_from=first / "last.pt", **given))
    with pytest.raises(ValueError, match="image_mean was .*0.485.*, now .0.5"):
        run(tiny(first, method="supervised", resume=True, **given))
    # What None stands for may be written out.
    own = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
    assert run(tiny(first, method="supervised", resume=True, stop_after=3, **own))["steps"] == 3


@pytest.mark.parametrize("options", [{}, {"recipe": "paper"}, {"method": "mean-teacher"}, {"mix": "none"}])
@pytest.mark.slow
def test_the_teacher_may_look_twice(tmp_path, options, monkeypatch):
    """The published order: labels from the weak views, all else from the images that the student sees."""
    looks = []
    look = Learner._run_teacher

    def spy(self, images, represent=True):
        output = look(self, images, represent)
        looks.append((images.clone(), represent, output))
        return output

    seen = []
    forward = U2PLCriterion.forward

    def criterion(self, student, labels, pseudo=None, teacher=None, **rest):
        seen.append((pseudo, teacher))
        return forward(self, student, labels, pseudo, teacher, **rest)

    monkeypatch.setattr(Learner, "_run_teacher", spy)
    monkeypatch.setattr(U2PLCriterion, "forward", criterion)
    run(tiny(tmp_path, steps=4, second_teacher_pass=True, **options))
    steps_with_teacher = [pair for pair in seen if pair[0] is not None]
    assert len(looks) == 2 * len(steps_with_teacher) == 2
    (weak, first, _), (again, second, output) = looks
    labeled = 2 if options.get("recipe") == "paper" else 0
    assert (first, second) == (False, True) and len(weak) == 2 and len(again) == 2 + labeled
    pseudo, teacher = steps_with_teacher[0]
    if options.get("method") != "mean-teacher":
        assert teacher.logits is output.logits
    expected = ops.pixel_stats(output.logits[labeled:], pseudo.valid.shape[-2:]).entropy
    torch.testing.assert_close(pseudo.entropy, expected)


@pytest.mark.slow
def test_the_head_of_the_keys_is_the_teachers(tmp_path, monkeypatch):
    learners, heads = [], []
    look, forward = Learner._run_teacher, U2PLCriterion.forward

    def spy(self, *arguments, **options):
        learners.append(self)
        return look(self, *arguments, **options)

    def criterion(self, student, labels, pseudo=None, teacher=None, **rest):
        if teacher is not None:
            rows = student.features.detach().permute(0, 2, 3, 1).flatten(0, 2)
            expected = learners[-1].teacher.module.projection(rows)
            heads.append((teacher.project(rows), expected, student.project(rows).detach()))
            assert teacher.features is None  # nothing is mixed that nobody reads
        return forward(self, student, labels, pseudo, teacher, **rest)

    monkeypatch.setattr(Learner, "_run_teacher", spy)
    monkeypatch.setattr(U2PLCriterion, "forward", criterion)
    run(tiny(tmp_path, steps=6, ema_momentum=0.9))
    assert len(heads) > 1 and all(torch.equal(given, expected) for given, expected, _ in heads)
    given, _, of_student = heads[-1]
    assert not torch.equal(given, of_student)


@pytest.mark.slow
def test_each_process_draws_its_own(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(learner, "rank", lambda group: 3)
    make = learner.generator
    monkeypatch.setattr(learner, "generator", lambda *key, **options: (drawn.append(key), make(*key, **options))[1])
    run(tiny(tmp_path, steps=4))
    assert drawn == [(0, "draws", 3, 3)]


@pytest.mark.slow
def test_compiled_networks_learn_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "COMPILER", "aot_eager")  # the whole machinery but the code generation
    run(tiny(tmp_path / "eager", steps=4))
    run(tiny(tmp_path / "compiled", steps=4, compile=True, eval_every=4))
    eager, compiled = weights(tmp_path / "eager"), weights(tmp_path / "compiled")
    assert eager.keys() == compiled.keys()
    moved = [name for name in eager if name.startswith("student.") and eager[name].is_floating_point()]
    got, want = (torch.cat([state[name].flatten() for name in moved]) for state in (compiled, eager))
    assert (got - want).norm() < 1e-3 * want.norm()


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_it_is(tmp_path, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(network, "COMPILER", "no such compiler")
    with pytest.warns(RuntimeWarning, match="the network runs uncompiled"):
        metrics = run(tiny(tmp_path, steps=2, compile=True))
    assert metrics["steps"] == 2


def test_a_cuda_graph_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="cuda_graph"):
        run(tiny(tmp_path, cuda_graph=True))


@pytest.mark.slow
def test_the_summary_tells_how_long_images_were_waited_for(tmp_path, capsys, monkeypatch):
    metrics = run(tiny(tmp_path / "a", steps=4))
    assert 0 < metrics["loader_seconds"] < metrics["seconds"]
    logged = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    waits = sum(line.get("loader_wait_seconds", 0) for line in logged)
    assert waits == pytest.approx(metrics["loader_seconds"], abs=1e-3)
    run(tiny(tmp_path / "b", steps=4, stop_after=2))
    resumed = run(tiny(tmp_path / "b", steps=4, resume=True))
    assert resumed["loader_seconds"] > 0
    assert "waiting for images" in _printed_by_main(tmp_path / "c", capsys)


def _printed_by_main(out: Path, capsys) -> str:
    flags = ["--encoder", "mobilenetv3_small_050", "--crop-size", "64", "64", "--batch-size", "2", "--steps", "1"]
    with few_images():
        main([*flags, "--num-labeled", "6", "--workers", "0", "--device", "cpu", "--out", str(out)])
    return capsys.readouterr().out


def test_a_dry_run_tells_and_writes_nothing(tmp_path, capsys):
    run(tiny(tmp_path / "out", dry_run=True))
    told = capsys.readouterr().out
    assert f"\nops: {'reference' if _backend.extension() is None else 'cpu'}\n" in told
    assert "memory bank" in told and "keys per class and step" in told and "each process receives" not in told
    assert not (tmp_path / "out").exists()


def test_ops_of_another_backend_are_named(monkeypatch):
    chosen = {"class_sum": "triton", "ring_push": "cuda", "thin_mask": "triton", "info_nce": "triton"}
    monkeypatch.setattr(ops, "info", lambda device: chosen)
    assert backends(torch.device("cuda")) == "triton; cuda for ring_push"


@pytest.mark.slow
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    run(tiny(tmp_path / "straight", save_every=2))
    run(tiny(tmp_path / "parts", save_every=2, stop_after=6))
    last = tmp_path / "parts" / "last.pt"
    last.write_bytes(last.read_bytes()[:-1000])
    capsys.readouterr()
    run(tiny(tmp_path / "parts", save_every=2, resume=True))
    told = capsys.readouterr().out
    assert f"{last} is truncated" in told and "continuing from previous.pt, step 4" in told
    assert_same_state(tmp_path / "straight", tmp_path / "parts")

    for name in ("last.pt", "previous.pt"):
        (tmp_path / "parts" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="last.pt is truncated"):
        run(tiny(tmp_path / "parts", resume=True))


@pytest.mark.slow
def test_nothing_is_saved_between_two_updates(tmp_path, monkeypatch):
    """A checkpoint holds no gradients: a stop in the middle of an accumulation waits for its end."""
    options = {"accumulate": 3, "steps": 9, "save_every": 4}
    saved = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda path, state: (saved.append(state["step"]), save(path, state)))
    run(tiny(tmp_path / "straight", **options))
    assert [step for step in saved if step < 9] == [6]

    train_step = Learner.train_step

    def asked_to_stop(self, batch):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, batch)

    monkeypatch.setattr(Learner, "train_step", asked_to_stop)
    assert run(tiny(tmp_path / "parts", **options))["steps"] == 6
    monkeypatch.setattr(Learner, "train_step", train_step)
    run(tiny(tmp_path / "parts", resume=True, **options))
    assert_same_state(tmp_path / "straight", tmp_path / "parts")
    with pytest.raises(ValueError, match="stop_after"):
        run(tiny(tmp_path / "odd", stop_after=4, **options))


@pytest.mark.slow
def test_an_image_that_vanishes_costs_nothing(tmp_path, monkeypatch):
    for split, names in (("train", "abcdef"), ("val", "a")):
        for name in names:
            for kind, shape in (("images", (64, 64, 3)), ("labels", (64, 64))):
                path = tmp_path / "data" / kind / split / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(ord(name)).integers(0, 3, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    options = {"dataset": "folder", "data_root": tmp_path / "data", "num_labeled": 2, "cache": False}
    options |= {"encoder_weights": "none", "sup_only_epochs": 0.0}
    run(tiny(tmp_path / "straight", **options))

    victims = [tmp_path / "data/images/train" / f"{name}.png" for name in "abcdef"]
    train_step = Learner.train_step

    def lose_images(self, batch):
        done = train_step(self, batch)
        if self.step == 3:
            for path in victims:
                path.rename(path.with_suffix(".gone"))
        return done

    monkeypatch.setattr(Learner, "train_step", lose_images)
    with pytest.raises(data.DataError, match=r"\.png.*saved at step 3; .*--resume"):
        run(tiny(tmp_path / "parts", **options))
    monkeypatch.setattr(Learner, "train_step", train_step)
    for path in victims:
        path.with_suffix(".gone").rename(path)
    run(tiny(tmp_path / "parts", resume=True, **options))
    assert_same_state(tmp_path / "straight", tmp_path / "parts")


@pytest.mark.slow
def test_an_evaluation_that_failed_is_made_up_for(tmp_path, monkeypatch):
    """At the last step, too, after which there are no others."""
    samples = data.evaluation_samples

    def fail(*arguments):
        raise data.DataError("val.png: gone")

    monkeypatch.setattr(data, "evaluation_samples", fail)
    with pytest.raises(data.DataError, match="val.png: gone; saved at step 4"):
        run(tiny(tmp_path, steps=4))
    monkeypatch.setattr(data, "evaluation_samples", samples)
    metrics = run(tiny(tmp_path, steps=4, resume=True))
    assert metrics["steps"] == 4 and metrics["miou"] is not None and (tmp_path / "best.pt").exists()
    again = run(tiny(tmp_path, steps=4, resume=True))
    assert again["miou"] == metrics["miou"]
    evaluated = [line for line in (tmp_path / "log.jsonl").read_text().splitlines() if "iou_per_class" in line]
    assert len(evaluated) == 1


@pytest.mark.slow
def test_masks_that_only_measure_need_not_be_usable(tmp_path, capsys):
    root = dataset_trees.folder(tmp_path / "data")
    (root / "classes.txt").write_text("sky\nroad\ntree\n")
    broken = sorted((root / "labels" / "train").iterdir())[-1]
    Image.fromarray(np.full_like(np.asarray(Image.open(broken)), 77)).save(broken)
    options = {"dataset": "folder", "data_root": root, "num_labeled": None, "labeled_list": tmp_path / "labeled.txt"}
    (tmp_path / "labeled.txt").write_text("train0\ntrain1\n")
    options |= {"encoder_weights": "none", "crop_size": (32, 32), "sup_only_epochs": 0.0, "steps": 2}
    assert run(tiny(tmp_path / "run", **options))["miou"] is not None
    assert f"warning: not used to measure pseudo-labels: {broken}: class id 77" in capsys.readouterr().out
    assert "pseudo_accuracy" in (tmp_path / "run" / "log.jsonl").read_text()


@pytest.mark.slow
def test_resume_takes_what_there_is_and_says_where_there_is_nothing(tmp_path, capsys):
    run(tiny(tmp_path, steps=4, stop_after=2, resume=True))
    assert f"resume: no run in {tmp_path} yet; starting at step 0" in capsys.readouterr().out
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    with pytest.raises(ValueError, match="already holds a run"):
        run(tiny(tmp_path, steps=4))
    assert run(tiny(tmp_path, steps=4, resume=True))["steps"] == 4
    assert "continuing from previous.pt, step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_there_is_no_teacher_before_it_begins(tmp_path):
    run(tiny(tmp_path, stop_after=2))
    assert checkpoint.load(tmp_path / "last.pt")["teacher"] is None
    with pytest.raises(checkpoint.CheckpointError, match="holds no teacher"):
        load_model(tmp_path / "last.pt", network="teacher")


def test_images_without_a_partner_are_told(tmp_path, capsys):
    run(tiny(tmp_path / "odd", batch_size=3, dry_run=True))
    assert "--mix cutmix mixes pairs of images of a process: one image of each step" in capsys.readouterr().out
    run(tiny(tmp_path / "more", unlabeled_batch_size=5, dry_run=True))
    told = capsys.readouterr().out
    assert (
        "global batch 2 labeled + 5 unlabeled" in told
        and "pairs of images of a process: one image of each step" in told
    )
    run(tiny(tmp_path / "even", batch_size=3, unlabeled_batch_size=4, dry_run=True))
    assert "pairs of images" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """A limit on the size of files stands in for a disk without space."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny(tmp_path / "run", steps=8, save_every=2).to_dict()))

    def train(*flags: str) -> None:
        with few_images():
            main(["--config", str(tmp_path / "c.yaml"), *flags])

    def failure(limit: int) -> str:
        """Return the one line that the program ends with where no file may be longer."""
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SystemExit) as stop:
                train("--resume")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert isinstance(stop.value.code, str) and "\n" not in stop.value.code
        return stop.value.code

    train("--stop-after", "4")
    assert failure(2**20).startswith("error: cannot write checkpoint")
    assert checkpoint.load(tmp_path / "run" / "last.pt")["step"] == 4

    before = {name: (tmp_path / "run" / name).read_text() for name in ("log.jsonl", "metrics.json", "config.yaml")}
    assert failure(64).startswith(f"error: out: cannot write in {tmp_path / 'run'}: ")
    assert {name: (tmp_path / "run" / name).read_text() for name in before} == before

    train("--resume")
    run(tiny(tmp_path / "straight", steps=8, save_every=2))
    assert_same_state(tmp_path / "straight", tmp_path / "run")
