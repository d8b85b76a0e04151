"""Architectures by name: what each one gives, and messages for what cannot work."""

import pytest
import torch

from tests.models.networks import SMALL, images, network, one_step
from u2pl_fast.models import ARCHITECTURES, check_batch

# Of logits and features. `dpt`, on encoders of another kind, is in test_dpt.py.
STRIDES = {
    "unet": (1, 4), "unetplusplus": (1, 4), "manet": (1, 4), "linknet": (1, 4), "fpn": (4, 4), "pspnet": (8, 8),
    "deeplabv3": (8, 8), "deeplabv3plus": (4, 4), "pan": (4, 4), "upernet": (4, 4), "segformer": (4, 4),
}  # fmt: skip


@pytest.mark.parametrize("projection", ["pointwise", "conv"])
@pytest.mark.parametrize("arch", [name for name in ARCHITECTURES if name != "dpt"])
def test_every_architecture_trains_a_step_with_both_heads(arch, projection):
    stride, feature_stride = STRIDES[arch]
    output = one_step(network(arch, projection=projection, representation_dim=6, projection_width=8), 128, 160)
    assert output.logits.shape[-2:] == (128 // stride, 160 // stride)
    assert output.features.shape[-2:] == (128 // feature_stride, 160 // feature_stride)


@pytest.mark.parametrize(("arch", "encoder"), [("segformer", "mit_b0"), ("upernet", "convnext_atto")])
def test_encoders_of_both_libraries(arch, encoder):
    one_step(network(arch, encoder, projection="pointwise"))
    assert network(arch, encoder, in_channels=5, encoder_weights=None).encoder.out_channels[0] == 5


@pytest.mark.parametrize("arch", [name for name, known in ARCHITECTURES.items() if known.width_options])
def test_decoder_width_is_that_of_the_features(arch):
    net = network(arch, encoder="resnet10t", decoder_width=64)
    assert net.classifier.in_channels == 64
    assert sum(p.numel() for p in net.decoder.parameters()) != sum(
        p.numel() for p in network(arch, encoder="resnet10t").decoder.parameters()
    )


def test_a_decoder_without_one_width_is_refused():
    with pytest.raises(ValueError, match="decoder_width: unet has several widths; use it with deeplabv3, "):
        network("unet", decoder_width=64)
    with pytest.raises(ValueError, match="decoder_width: expected a positive number of channels, got 0"):
        network(decoder_width=0)


def test_architectures_are_named_in_any_case():
    names = {"DeepLabV3Plus": {"decoder_width": 64}, "PSPNet": {}}  # PSPNet freezes what its decoder does not read
    for name, options in names.items():
        own, lower = (network(arch, encoder="resnet10t", **options) for arch in (name, name.lower()))
        shapes = [[(n, p.shape, p.requires_grad) for n, p in net.named_parameters()] for net in (own, lower)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("encoder", [SMALL, "mit_b0"])
def test_fusing_before_the_upsampling_changes_nothing(encoder):
    net = network("segformer", encoder, projection="pointwise").eval()  # no dropout
    ours = net(images(), representations=True)
    ours.logits.square().mean().backward()
    gradients = [p.grad for p in net.decoder.parameters()]
    net.zero_grad()
    net.decoder.__class__ = type(net.decoder).__base__
    theirs = net(images(), representations=True)
    theirs.logits.square().mean().backward()
    torch.testing.assert_close(ours.features, theirs.features)
    torch.testing.assert_close(gradients, [p.grad for p in net.decoder.parameters()])


def test_swin_takes_any_size():
    net = network("upernet", "swin_tiny_patch4_window7_224").eval()
    assert net(images(height=32, width=96)).logits.shape[-2:] == (8, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "nonsense"}, "arch"),
        ({"encoder": "nonsense"}, "encoder: 'nonsense' is neither a model of timm"),
        ({"projection": "nonsense"}, "projection"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        ("dpt", "resnet10t", "cannot build dpt on resnet10t.*vit_"),
        ("dpt", "mit_b0", "cannot build dpt on mit_b0.*not a timm model"),
        ("dpt", "swin_tiny_patch4_window7_224", r"features have strides \[4, 8, 16, 32\].*upernet"),
        ("fpn", "vit_tiny_patch16_224", "use --arch dpt for plain vision transformers"),
        ("linknet", "mit_b0", "arch: cannot build linknet on mit_b0"),
        ("deeplabv3plus", "pvt_v2_b0", "does not support dilation.*segformer"),
    ],
)
def test_what_does_not_fit_together_names_what_does(arch, encoder, message):
    with pytest.raises(ValueError, match=message):
        network(arch, encoder)


def test_download_failure_names_the_alternatives(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("u2pl_fast.models.architectures.smp.create_model", no_network)
    with pytest.raises(ValueError, match="'none' to train from scratch"):
        network(encoder_weights="imagenet")


POOLING = [name for name, known in ARCHITECTURES.items() if known.pools_to_one_pixel]


@pytest.mark.parametrize("arch", POOLING)
def test_a_batch_of_one_is_refused_where_each_image_is_pooled_to_one_pixel(arch):
    with pytest.raises(ValueError, match=f"batch_size: {arch} pools each image to one pixel.*--batch-size 2"):
        check_batch(arch, 1)
    check_batch(arch, 2)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # what PyTorch would say
        network(arch)(images(1, 128, 128))


@pytest.mark.parametrize("arch", [name for name in STRIDES if name not in POOLING])
def test_others_take_a_batch_of_one(arch):
    check_batch(arch, 1)
    network(arch)(images(1, 128, 128))
