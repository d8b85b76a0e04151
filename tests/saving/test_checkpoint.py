"""Checkpoints: whole or not at all, no code from the file, and a message that says what differs."""

import errno
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from u2pl_fast.saving import checkpoint
from u2pl_fast.saving.checkpoint import CheckpointError


def small_state(**changes):
    return {
        "config": {"dataset": "shapes", "crop_size": [96, 96], "lr": 1e-3, "out": None},
        "num_classes": 6,
        "class_names": ["background", "ring"],
        "network": "teacher",
        "student": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)},
        "teacher": None,
        "step": 12,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
    } | changes


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b


def test_round_trip_keeps_every_bit_and_type(tmp_path):
    state = small_state(bank=torch.randn(5, 4).bfloat16(), draws=torch.tensor([2**62]), flag=True)
    checkpoint.save(tmp_path / "last.pt", state)
    assert_equal(checkpoint.load(tmp_path / "last.pt"), {**state, "format": 1})
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_models_and_optimizers_own_state_dicts_can_be_saved(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path / "a.pt", {"student": model.state_dict(), "optimizer": optimizer.state_dict()})
    state = checkpoint.load(tmp_path / "a.pt")
    model.load_state_dict(state["student"])
    optimizer.load_state_dict(state["optimizer"])
    assert type(model.state_dict()) is OrderedDict and type(state["student"]) is dict


def test_a_view_does_not_drag_its_storage_into_the_file(tmp_path):
    whole = torch.zeros(1_000_000)
    checkpoint.save(tmp_path / "a.pt", {"part": whole[10:20], "wide": torch.ones(1).expand(50)})
    assert (tmp_path / "a.pt").stat().st_size < 20_000
    state = checkpoint.load(tmp_path / "a.pt")
    assert torch.equal(state["part"], torch.zeros(10)) and torch.equal(state["wide"], torch.ones(50))


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.float32(1), r"state\['x'\]\['y'\]\[1\] is a float32"),
        (Path("a"), "PosixPath"),
        ({1.5: 0}, "key 1.5"),
        (torch.device("cpu"), "is a device"),
        (torch.zeros(2, device="meta"), "plain, dense"),
    ],
)
def test_refuses_to_save_anything_but_tensors_and_primitives(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        checkpoint.save(tmp_path / "a.pt", {"x": {"y": [0, value]}})
    assert os.listdir(tmp_path) == []


def fail_replace(monkeypatch):
    def replace(*_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)


def fail_fsync(monkeypatch):
    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)


def fill_disk(monkeypatch):
    class Full:
        def __init__(self, file):
            self._file, self._left = file, 2000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            self._left -= len(data)
            if self._left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._file.write(data)

        def __getattr__(self, name):
            return getattr(self._file, name)

    real = open
    monkeypatch.setattr(checkpoint, "open", lambda *a: Full(real(*a)), raising=False)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (fail_replace, "Permission denied"),
        (fail_fsync, "Input/output error"),
        (fill_disk, "No space left on device"),
    ],
)
def test_a_failed_save_leaves_the_older_file(tmp_path, monkeypatch, fault, reason):
    path = tmp_path / "last.pt"
    checkpoint.save(path, small_state(step=1))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(CheckpointError, match=rf"{path}: {reason}; the existing file is unchanged"):
            checkpoint.save(path, small_state(step=2, bank=torch.zeros(4000)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["last.pt"]
    checkpoint.save(path, small_state(step=3))
    assert checkpoint.load(path)["step"] == 3


def test_the_new_bytes_are_on_the_disk_before_the_name_moves(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))

    def spy(source, target):
        calls.append("replace")
        assert zipfile.ZipFile(source).testzip() is None and not Path(target).exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    checkpoint.save(tmp_path / "a.pt", small_state())
    assert calls == ["fsync", "replace", "fsync"]  # the file, then its folder


def test_an_interrupt_leaves_the_older_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save(path, small_state(step=1))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, small_state(step=2))
    assert checkpoint.load(path)["step"] == 1 and os.listdir(tmp_path) == ["last.pt"]


def test_the_leftover_of_a_killed_save_is_overwritten(tmp_path):
    (tmp_path / ".tmp.last.pt").write_bytes(b"half a file")
    checkpoint.save(tmp_path / "last.pt", small_state())
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_is_not_there_or_is_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="No such file or directory.*writable folder"):
        checkpoint.save(tmp_path / "missing" / "a.pt", small_state())
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        checkpoint.save(tmp_path / "file" / "a.pt", small_state())


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["weights", "format", "bare pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, where):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    payload = Payload(f"touch {marker}")
    if where == "bare pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save({**small_state(), "format": 1, where: payload}, path)
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(path)
    assert not marker.exists()
    os.system(payload.command)  # the payload would have worked
    assert marker.exists()


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_files(tmp_path, kept):
    path = tmp_path / "a.pt"
    checkpoint.save(path, small_state(bank=torch.randn(100, 10)))
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(CheckpointError, match=f"{path} is truncated, damaged, or not a checkpoint"):
        checkpoint.load(path)


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    path = tmp_path / "a.pt"
    weights = torch.full((1000,), 1.2345)
    checkpoint.save(path, small_state(bank=weights))
    content = bytearray(path.read_bytes())
    position = content.index(weights.numpy().tobytes()[:400]) + 200
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), pickle.dumps({"format": 1})])
def test_foreign_bytes(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is truncated, damaged, or not a checkpoint"):
        checkpoint.load(tmp_path / "a.pt")


def test_foreign_archives(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=f"refused {path}"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="no format number"):
        checkpoint.load(path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError, match="no format number"):
        checkpoint.load(path)
    torch.save({"format": 2}, path)
    with pytest.raises(CheckpointError, match="checkpoint format 2, but this version of u2pl_fast reads 1"):
        checkpoint.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=f"no checkpoint at {tmp_path / 'a.pt'}"):
        checkpoint.load(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoint.load(tmp_path)


def test_layout():
    checkpoint.check_layout(small_state(), "a.pt")
    with pytest.raises(CheckpointError, match="a.pt is not a training checkpoint: config, step missing or of"):
        checkpoint.check_layout({k: v for k, v in small_state(config=[]).items() if k != "step"}, "a.pt")
    with pytest.raises(CheckpointError, match="network must be 'teacher' or 'student', got 'best'"):
        checkpoint.check_layout(small_state(network="best"), "a.pt")


def test_check_match_says_what_differs():
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 5)})
    state = small_state(num_classes=5, student=model.state_dict())
    checkpoint.check_match(state, model, num_classes=5)

    weights = dict(model.state_dict())
    del weights["body.bias"]
    weights["projection.weight"] = torch.zeros(1)
    weights["head.weight"] = torch.zeros(21, 4)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_match(small_state(num_classes=21, student=weights), model, num_classes=5, source="a.pt")
    message = str(caught.value)
    for part in (
        "a.pt",
        "21 classes, the data set has 5",
        "missing from the file: body.bias",
        "unknown to the model: projection.weight",
        "head.weight is (21, 4) in the file, (5, 4) in the model",
    ):
        assert part in message
    with pytest.raises(CheckpointError, match="no teacher weights"):
        checkpoint.check_match(state, model, key="teacher")


def test_check_match_shortens_long_lists():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(CheckpointError, match=r"0\.weight, 0\.bias, 1\.weight, 1\.bias and 36 more"):
        checkpoint.check_match(small_state(student={}), model)
