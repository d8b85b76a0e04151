"""Networks: grids, heads, and normalization."""

import pytest
import torch

from tests.models.networks import images, network
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.data.image_format import normalization, pretrained_normalization
from u2pl_fast.outputs import represent
from u2pl_fast.reference import gather_pixels
from u2pl_fast.training import learner


@pytest.mark.parametrize("arch", ["deeplabv3plus", "unet", "fpn", "segformer"])
def test_logits_stay_on_the_decoder_grid_and_features_at_stride_4_or_coarser(arch):
    output = network(arch, projection="pointwise")(images(), representations=True)
    height, width = output.logits.shape[-2:]
    assert (height, width) == ((64, 96) if arch == "unet" else (16, 24))
    assert output.features.shape[-2:] == (16, 24)


def test_output_stride_changes_the_encoder():
    assert network(encoder="resnet10t", output_stride=8).pad_multiple == 8


def test_uint8_and_float_images_agree_and_are_normalized():
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


def test_images_of_the_wrong_size_are_refused_with_the_right_one():
    with pytest.raises(ValueError, match="pad to 64×112"):
        network()(images(width=100))


def test_the_normalization_of_pretrained_weights_is_known():
    half = (0.5, 0.5, 0.5)
    assert pretrained_normalization("tu-vit_tiny_patch16_224") == (half, half)
    assert pretrained_normalization("resnet101.tv_in1k") == normalization(3)
    assert pretrained_normalization("mit_b0") is None


def test_images_are_normalized_as_the_encoder_s_weights_expect():
    def chosen(**options):
        return resolve(TrainConfig(dataset="folder", **options)).normalization

    half = (0.5, 0.5, 0.5)
    assert chosen() == chosen(encoder_weights="file.safetensors") == (half, half)  # tf_efficientnet_lite0
    assert chosen(in_channels=2) == (half[:2], half[:2])
    assert chosen(image_mean=(0.1, 0.2, 0.3)) == ((0.1, 0.2, 0.3), half)
    for options in ({"encoder_weights": "none"}, {"encoder": "resnet18"}, {"encoder": "mit_b0"}):
        assert chosen(**options) == normalization(3)


def test_synchronized_batch_norm_keeps_the_activations_joined_to_it():
    net = network().eval()
    before = net(images()).logits
    converted = learner.convert_sync_batchnorm(net)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.encoder.modules())
    torch.testing.assert_close(converted(images()).logits, before)


def test_synchronized_batch_norm_stays_frozen():
    net = learner.convert_sync_batchnorm(network(freeze_batchnorm=True)).train()
    norms = {
        part: [m.training for m in getattr(net, part).modules() if isinstance(m, torch.nn.SyncBatchNorm)]
        for part in ("encoder", "decoder")
    }
    assert norms["encoder"] and not any(norms["encoder"]) and norms["decoder"] and all(norms["decoder"])
