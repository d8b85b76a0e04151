"""Networks: grids, heads, encoder weights, and messages for what cannot work."""

import pytest
import torch
from safetensors.torch import save_file

from u2pl_fast.models import SegmentationNetwork
from u2pl_fast.outputs import represent
from u2pl_fast.reference import gather_pixels

SMALL = "mobilenetv3_small_050"


def network(arch: str = "deeplabv3plus", encoder: str = SMALL, **options) -> SegmentationNetwork:
    torch.manual_seed(0)
    return SegmentationNetwork(arch, encoder, 5, **options)


def images(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("arch", ["deeplabv3plus", "unet", "fpn", "segformer"])
def test_logits_stay_on_the_decoder_grid_and_features_at_stride_4_or_coarser(arch):
    output = network(arch, projection="pointwise")(images(), representations=True)
    height, width = output.logits.shape[-2:]
    assert (height, width) == ((64, 96) if arch == "unet" else (16, 24))
    assert output.features.shape[-2:] == (16, 24)


def test_output_stride_changes_the_encoder():
    assert network(encoder="resnet10t", output_stride=8).pad_multiple == 8


def test_uint8_and_float_images_agree_and_are_normalised():
    net = network().eval()
    torch.testing.assert_close(net(images()).logits, net(images().float()).logits)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1).expand(1, 3, 64, 96)
    seen = []
    net.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(mean)
    assert seen[0].abs().max() < 1e-5


@pytest.mark.parametrize("channels_last", [False, True])
def test_pointwise_head_at_drawn_pixels_equals_dense_then_drawn(channels_last):
    net = network(projection="pointwise", representation_dim=12, projection_width=20).double()
    x = images().double()
    if channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    index = torch.tensor([[0, 5, 5, 700], [383, 384, 767, 1]])

    def evaluate(sampled: bool):
        net.zero_grad()
        output = net.eval()(x, representations=True)
        if sampled:
            rows = net.projection(gather_pixels(output.features, index).flatten(0, 1)).unflatten(0, index.shape)
        else:
            dense = net.projection(output.features.permute(0, 2, 3, 1).flatten(0, 2))
            rows = dense[index]
        (rows**3).sum().backward()
        return rows.detach(), {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    (rows, gradients), (dense_rows, dense_gradients) = evaluate(True), evaluate(False)
    torch.testing.assert_close(rows, dense_rows, rtol=1e-10, atol=1e-12)
    assert gradients.keys() == dense_gradients.keys() and any(n.startswith("encoder") for n in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, dense_gradients[name], rtol=1e-8, atol=1e-9, msg=name)


def test_represent_is_dense_without_gradient_for_both_heads():
    for projection, shape in (("pointwise", (768, 12)), ("conv", (2, 12, 16, 24))):
        output = network(projection=projection, representation_dim=12)(images(), representations=True)
        dense = represent(output, chunk=100)
        assert dense.shape == shape and not dense.requires_grad


def test_auxiliary_classifier_speaks_in_training_alone():
    net = network(auxiliary=True)
    assert net(images()).aux_logits.shape[:2] == (2, 5)
    assert net.eval()(images()).aux_logits is None


def test_encoder_weights_from_a_file(tmp_path):
    torch.manual_seed(5)
    donor = network().encoder.model.state_dict()
    donor = {name: torch.randn_like(t) if t.is_floating_point() else t.clone() for name, t in donor.items()}
    file = tmp_path / "weights.safetensors"
    save_file(donor | {"classifier.weight": torch.zeros(3, 3)}, file)
    loaded = network(encoder_weights=file).encoder.model.state_dict()
    assert all(torch.equal(loaded[name], donor[name]) for name in donor)

    save_file({name: donor[name] for name in list(donor)[1:]}, file)
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit"):
        network(encoder_weights=file)
    file.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="not a readable"):
        network(encoder_weights=file)
    with pytest.raises(ValueError, match="no file"):
        network(encoder_weights=tmp_path / "absent.safetensors")


def test_download_failure_names_the_alternatives(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("u2pl_fast.models.smp.create_model", no_network)
    with pytest.raises(ValueError, match="'none' to start from scratch"):
        network(encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "nonsense"}, "arch"),
        ({"encoder": "nonsense"}, "encoder: timm has no model"),
        ({"projection": "nonsense"}, "projection"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_images_of_the_wrong_size_are_refused_with_the_right_one():
    with pytest.raises(ValueError, match="pad to 64×112"):
        network()(images(width=100))
