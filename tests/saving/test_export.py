"""A network taken out of its training says the same."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.runs import run as train
from tests.training.runs import tiny
from u2pl_fast.export import ExportConfig, main, run
from u2pl_fast.inference import load_model
from u2pl_fast.saving import checkpoint, weights_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train(tiny(out, steps=4, channels_last=True))
    return out / "last.pt"


@pytest.mark.parametrize("network", ["auto", "student"])
def test_predicts_as_before(trained, tmp_path, network):
    out = tmp_path / "model.safetensors"
    run(ExportConfig(checkpoint=trained, out=out, network=network))
    before, config, _ = load_model(trained, network=network)
    after, same_config, state = load_model(out)
    assert same_config == config and state["network"] == ("teacher" if network == "auto" else network)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(before(image).logits, after(image).logits)
    assert load_file(out).keys() == before.state_dict().keys()
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_refusals_name_the_file(trained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="out: expected a name that ends in .safetensors, .onnx, .pt2"):
        main(["--checkpoint", str(trained), "--out", str(tmp_path / "model.pt")])
    with pytest.raises(ValueError, match="cannot write .*nowhere"):
        run(ExportConfig(checkpoint=trained, out=tmp_path / "nowhere" / "m.safetensors"))
    state = checkpoint.load(trained) | {"teacher": None}
    checkpoint.save(tmp_path / "no-teacher.pt", state)
    with pytest.raises(ValueError, match="no-teacher.pt holds no teacher"):
        run(ExportConfig(checkpoint=tmp_path / "no-teacher.pt", out=tmp_path / "m.safetensors"))
    with pytest.raises(checkpoint.CheckpointError, match="no file"):
        load_model(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(checkpoint.CheckpointError, match="not a readable"):
        load_model(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="foreign.safetensors holds weights, but was not"):
        load_model(tmp_path / "foreign.safetensors")


def test_the_student_of_a_teachers_file_is_not_there(trained, tmp_path):
    run(ExportConfig(checkpoint=trained, out=tmp_path / "m.safetensors"))
    assert weights_file.load_network(tmp_path / "m.safetensors")["network"] == "teacher"
    with pytest.raises(checkpoint.CheckpointError, match="holds no student"):
        load_model(tmp_path / "m.safetensors", network="student")
