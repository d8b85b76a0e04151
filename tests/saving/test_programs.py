"""Files that run without this package compute what the network does, or are not written."""

import json
import math
import os
import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from tests.inference.cases import NAMES, failure, make_checkpoint, run_predict
from u2pl_fast import evaluate, export
from u2pl_fast.export import ExportConfig, run
from u2pl_fast.inference import load_model
from u2pl_fast.outputs import SegmentationOutput
from u2pl_fast.saving import programs

pytestmark = pytest.mark.slow

missing = [name for name in programs.ONNX_PACKAGES if programs.importlib.util.find_spec(name) is None]
onnx_only = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
KINDS = [pytest.param("onnx", marks=onnx_only), "torch-export"]
SNIPPETS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "predict.md").read_text(), re.S)


class Small(nn.Module):
    """A network of one convolution: exported in a second."""

    pad_multiple, align_corners = 4, False

    def __init__(self, num_classes=5, align_corners=False):
        super().__init__()
        torch.manual_seed(0)
        self.align_corners = align_corners
        self.conv = nn.Conv2d(3, num_classes, 4, stride=4)
        self.register_buffer("image_mean", torch.tensor([124.0, 116.0, 104.0]).view(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return SegmentationOutput(self.conv((images - self.image_mean) / 50))


class Pooled(Small):
    """Pools to 3×3 cells, which ONNX can't say of an unknown size."""

    def forward(self, images):
        logits = super().forward(images).logits
        return SegmentationOutput(logits + F.interpolate(F.adaptive_avg_pool2d(logits, 3), size=logits.shape[-2:]))


class OneSize(Small):
    def forward(self, images):
        logits = super().forward(images).logits
        return SegmentationOutput(logits * int(images.shape[-1]))


def write(path, network, kind, **options):
    network = network.eval().requires_grad_(False)
    return programs.write(path, network, kind, {"class_names": "[]"}, **{"size": (24, 36)} | options)


def path_of(folder, kind):
    return folder / f"model{export.SUFFIXES[kind]}"


def noise(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


# --- a small network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "align_corners"), [("logits", False), ("labels", True)])
def test_any_batch_and_size(kind, outputs, align_corners, tmp_path):
    network = Small(align_corners=align_corners)
    written = write(path_of(tmp_path, kind), network, kind, outputs=outputs)
    assert written.axes == (0, 2, 3) and not written.reason and written.difference.relative < 1e-5
    assert os.listdir(tmp_path) == [path_of(tmp_path, kind).name]
    file = programs.load(kind, path_of(tmp_path, kind))
    for shape in ((1, 3, 8, 8), (3, 3, 40, 20)):
        images = noise(*shape)
        logits = network(images).logits
        got = file(images)
        if outputs == "logits":
            torch.testing.assert_close(got[0], logits, rtol=1e-4, atol=1e-5)
            continue
        full = F.interpolate(logits, size=shape[-2:], mode="bilinear", align_corners=align_corners).softmax(1)
        assert got[0].dtype == torch.uint8 and (got[0].long() == full.argmax(1)).float().mean() > 0.999
        torch.testing.assert_close(got[1], full.amax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_size_is_raised_to_what_the_network_needs(kind, tmp_path):
    written = write(path_of(tmp_path, kind), Small(), kind, size=(21, 30), fixed=True)
    assert written.axes == (0,) and written.size == (24, 32) and not written.reason
    file = programs.load(kind, path_of(tmp_path, kind))
    assert file(noise(3, 3, 24, 32))[0].shape == (3, 5, 6, 8)
    with pytest.raises(Exception, match="24|32|8"):
        file(noise(1, 3, 28, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_one_size_says_so(kind, tmp_path):
    written = write(path_of(tmp_path, kind), OneSize(), kind)
    assert written.axes == (0,) and written.size == (24, 36) and written.reason
    assert "24×36 only; not any size, because" in export._takes(written)


@onnx_only
def test_what_holds_at_the_traced_size_alone_is_found_out(tmp_path):
    written = write(tmp_path / "m.onnx", Pooled(), "onnx")
    assert written.axes == (0,) and written.reason
    assert write(tmp_path / "m.pt2", Pooled(), "torch-export").axes == (0, 2, 3)


@onnx_only
def test_more_than_255_classes(tmp_path):
    write(tmp_path / "m.onnx", Small(300), "onnx", outputs="labels", fixed=True)
    labels = programs.load("onnx", tmp_path / "m.onnx")(noise(1, 3, 24, 36))[0]
    assert labels.dtype == torch.int16 and labels.max() > 255


@pytest.mark.parametrize(
    ("kind", "outputs"), [pytest.param("onnx", "labels", marks=onnx_only), ("torch-export", "logits")]
)
def test_other_weights_are_found_out_and_nothing_is_written(kind, outputs, tmp_path, monkeypatch):
    save = programs._save

    def tampered(kind, path, network, *arguments):
        network = deepcopy(network)
        network.network.conv.weight.data[2] += 0.01
        save(kind, path, network, *arguments)

    monkeypatch.setattr(programs, "_save", tampered)
    path = path_of(tmp_path, kind)
    path.write_text("an earlier export")
    with pytest.raises(programs.Mismatch, match=f"{path.name} was not written: its .* more than the tolerance 0.001"):
        write(path, Small(), kind, outputs=outputs, fixed=True)
    assert os.listdir(tmp_path) == [path.name] and path.read_text() == "an earlier export"


@onnx_only
def test_a_file_whose_weights_were_changed_differs(tmp_path):
    import onnx
    from onnx import numpy_helper

    network = Small().eval().requires_grad_(False)
    write(tmp_path / "m.onnx", network, "onnx")
    model = onnx.load(tmp_path / "m.onnx")
    weight = next(x for x in model.graph.initializer if list(x.dims) == [5, 3, 4, 4])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.01, weight.name))
    onnx.save(model, tmp_path / "m.onnx")
    wrapped = programs.ExportedNetwork(network, "logits")
    found = programs.compare(programs.load("onnx", tmp_path / "m.onnx"), wrapped, noise(1, 3, 24, 36))
    assert 1e-3 < found.relative < 0.1


@pytest.mark.parametrize(
    "change",
    [
        lambda x: [x[0] * math.nan, x[1]],
        lambda x: [x[0][..., 1:], x[1]],
        lambda x: [x[0], x[1][:, 1:]],
        lambda x: [x[0], x[1] + math.nan],
    ],
)
def test_nan_and_other_shapes_differ_without_bound(change):
    network = programs.ExportedNetwork(Small().eval(), "labels")
    images = noise(1, 3, 8, 8)
    assert programs.compare(network, network, images).relative < 1e-6
    assert programs.compare(lambda x: change([y.float() for y in network(x)]), network, images).relative == math.inf


@pytest.mark.parametrize(("multiple", "sizes"), [(1, range(1, 70)), (16, range(16, 200, 16))])
def test_plain_same_padding_is_timms(multiple, sizes):
    timms = programs.timm_padding.get_same_padding
    cases = [(x, k, s, d) for x in sizes for k in (1, 2, 3, 5, 7) for s in (1, 2, 4) for d in (1, 2)]
    expected = [timms(*case) for case in cases]
    with programs._plain_same_padding(multiple):
        assert [programs.timm_padding.get_same_padding(*case) for case in cases] == expected
    assert programs.timm_padding.get_same_padding is timms


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels_file(trained, tmp_path_factory):
    """deeplabv3plus with a pointwise head, as ONNX that gives labels."""
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    out = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.main(["--checkpoint", str(trained), "--out", str(out), "--outputs", "labels"])
    return out


def test_the_snippet_of_the_docs_writes_the_mask_of_predict(labels_file, trained, root, tmp_path):
    """With onnxruntime alone: this package is not to be found."""
    (snippet,) = [text for text in SNIPPETS if "onnxruntime" in text]
    source = root / "images" / "val" / "2.png"
    for name, data in (("photo.png", source.read_bytes()), ("model.onnx", labels_file.read_bytes())):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "u2pl_fast.py").write_text("raise ImportError")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(f"{name} " in done.stdout for name in NAMES)
    run_predict(trained, tmp_path / "out", source, only=("mask",))
    mask, expected = (np.array(Image.open(tmp_path / name)) for name in ("mask.png", "out/2_mask.png"))
    assert mask.shape == expected.shape and (mask == expected).mean() > 0.999


def test_an_onnx_file_describes_itself(labels_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(labels_file))
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == NAMES and json.loads(about["pad_multiple"]) == 16
    assert json.loads(about["pad_color"]) == [124, 116, 104] and json.loads(about["align_corners"]) is False
    assert json.loads(about["config"])["arch"] == "deeplabv3plus" and about["network"] == "teacher"
    (images,) = session.get_inputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", 3, "height", "width"]
    assert [output.name for output in session.get_outputs()] == ["labels", "confidence"]


def test_a_pt2_file_of_another_architecture_and_head_by_way_of_its_weights(root, tmp_path, capsys):
    settings = {"arch": "fpn", "recipe": "paper", "align_corners": True, "auxiliary": True}
    path = make_checkpoint(tmp_path / "a.pt", root, **settings)
    assert run(ExportConfig(checkpoint=path, out=tmp_path / "a.safetensors", network="student")) is None
    out = tmp_path / "model.pt2"
    export.main(["--checkpoint", str(tmp_path / "a.safetensors"), "--out", str(out), "--size", "40", "60"])
    printed = capsys.readouterr().out
    assert "takes: any batch, 64×64 only" in printed and "largest difference" in printed
    (snippet,) = [text for text in SNIPPETS if "torch.export.load" in text]
    values = {}
    exec(snippet.replace('"model.pt2"', repr(str(out))), values)
    about = json.loads(capsys.readouterr().out)
    assert about["network"] == "student" and json.loads(about["align_corners"]) is True
    images = noise(3, 3, 64, 64)
    model, _, _ = load_model(path, network="student")
    assert torch.allclose(values["network"](images)[0], model(images).logits, atol=1e-4)


def test_supervised_networks_without_a_teacher(root, tmp_path):
    path = make_checkpoint(tmp_path / "a.pt", root, method="supervised", teacher=False)
    written = run(ExportConfig(checkpoint=path, out=tmp_path / "a.pt2"))
    assert written.axes == (0, 2, 3) and written.multiple == 16 and written.difference.relative < 1e-5
    assert export._takes(written) == "any batch, any height and width, multiples of 16"


def test_refusals_name_the_flag(trained, tmp_path, monkeypatch):
    cases = [
        (["--out", "m.onnx", "--format", "torch-export"], "out: a torch-export file's name ends in .pt2"),
        (["--out", "m"], "out: expected a name that ends in"),
        (["--out", "m.safetensors", "--outputs", "labels"], "outputs, size: a .safetensors file holds only weights"),
        (["--out", "m.safetensors", "--size", "8", "8"], "outputs, size: a .safetensors file holds only weights"),
        (["--out", "m.pt2", "--tolerance", "0"], "tolerance: expected a positive number"),
        (["--out", "m.pt2", "--size", "0", "8"], "size: expected a height and width of at least 1"),
        (["--out", "nowhere/m.pt2"], "no folder nowhere"),
    ]
    monkeypatch.chdir(tmp_path)
    for arguments, message in cases:
        assert message in failure(export, ["--checkpoint", trained, *arguments]), message
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_named(trained, tmp_path, monkeypatch):
    find = programs.importlib.util.find_spec
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda name: None if "onnxr" in name else find(name))
    message = failure(export, ["--checkpoint", trained, "--out", tmp_path / "m.onnx"])
    assert "onnxruntime" in message and "pip install onnx onnxruntime onnxscript" in message
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_evaluate_does_not_read_what_runs_by_itself(suffix, tmp_path):
    (tmp_path / f"m{suffix}").write_bytes(b"")
    assert "runs without this package; pass the checkpoint" in failure(
        evaluate, ["--checkpoint", tmp_path / f"m{suffix}"]
    )
