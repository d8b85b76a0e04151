"""The DPT decoder on vision transformers."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models.networks import images, network, one_step
from u2pl_fast.config import TrainConfig
from u2pl_fast.saving import checkpoint
from u2pl_fast.train import run


@pytest.mark.parametrize("projection", ["pointwise", "conv"])
@pytest.mark.parametrize(
    ("encoder", "patch", "grid"),
    [
        ("vit_tiny_patch16_224", 16, (5, 7)),
        ("vit_tiny_patch16_224", 16, (4, 6)),
        ("eva02_tiny_patch14_224", 14, (5, 4)),
    ],
)
def test_dpt_on_vision_transformers_of_any_patch_and_odd_grids(encoder, patch, grid, projection, narrow_dpt):
    net = network("dpt", encoder, projection=projection, representation_dim=6, projection_width=8)
    height, width = grid[0] * patch, grid[1] * patch
    output = one_step(net, height, width)
    assert net.pad_multiple == patch
    assert output.logits.shape[-2:] == (8 * grid[0], 8 * grid[1])
    assert output.features.shape[-2:] == (-(-height // 4), -(-width // 4))
    assert net(images(height=2 * patch, width=3 * patch)).logits.shape[-2:] == (16, 24)  # another size at any time
    with pytest.raises(ValueError, match=f"multiples of {patch}"):
        net(images(height=height + 1, width=width))


@pytest.mark.parametrize("recipe", ["lean", "paper"])
@pytest.mark.slow
def test_dpt_trains_and_goes_on_where_it_was(tmp_path, narrow_dpt, recipe):
    """Crops of a size that 14 does not divide are filled up, teacher and bank included."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 1)):
        for kind in ("images", "labels"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for index in range(count):
            pixels, label = rng.integers(0, 256, (40, 56, 3)), rng.integers(0, 3, (40, 56))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "data/images" / split / f"{index}.png")
            Image.fromarray(label.astype(np.uint8)).save(tmp_path / "data/labels" / split / f"{index}.png")

    def train(name: str, **options) -> dict:
        config = TrainConfig(
            out=tmp_path / name, dataset="folder", data_root=tmp_path / "data", encoder_weights="none",
            bank_capacity=64, arch="dpt", encoder="eva02_tiny_patch14_224", recipe=recipe,
            crop_size=(40, 56),
            batch_size=2, num_labeled=2, steps=2, sup_only_epochs=0, representation_dim=6, projection_width=8,
            eval_every=2, save_every=1, log_every=1, workers=0, threads=1, device="cpu", **options,
        )  # fmt: skip
        run(config)
        return checkpoint.load(config.out / "last.pt")

    whole = train("whole")
    train("parts", stop_after=1)
    parts = train("parts", resume=True)
    assert whole["step"] == parts["step"] == 2 and int(whole["skipped"]) == 0
    for network_name in ("student", "teacher"):
        assert all(torch.equal(whole[network_name][key], value) for key, value in parts[network_name].items())
    assert (tmp_path / "whole" / "best.pt").exists()


def test_dpt_keeps_left_and_right_where_they_are(narrow_dpt):
    """With weights that treat both sides alike, the mirrored grid gives the mirrored map."""
    net = network("dpt", "vit_tiny_patch16_224").eval()
    stages = net.encoder(torch.rand(1, 3, 80, 112))
    for stage in stages[0]:
        stage.copy_((stage + stage.flip(-1)) / 2)
    for module in net.decoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
    decoded = net.decoder(stages)
    torch.testing.assert_close(decoded, decoded.flip(-1), rtol=1e-3, atol=1e-4)


def test_dpt_has_no_output_stride():
    with pytest.raises(ValueError, match="output_stride: .*remove output_stride"):
        network("dpt", "vit_tiny_patch16_224", output_stride=8)
