"""Networks: grids, heads, encoder weights, and messages for what cannot work."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.data.image_format import normalisation, pretrained_normalisation
from u2pl_fast.models import DECODER_WIDTHS, SegmentationNetwork, dpt
from u2pl_fast.outputs import SegmentationOutput, represent
from u2pl_fast.reference import gather_pixels
from u2pl_fast.saving import checkpoint
from u2pl_fast.train import run
from u2pl_fast.training import learner

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


@pytest.mark.parametrize("arch", list(DECODER_WIDTHS))
def test_decoder_width_is_that_of_the_features(arch):
    net = network(arch, encoder="resnet10t", decoder_width=64)
    assert net.classifier.in_channels == 64
    assert sum(p.numel() for p in net.decoder.parameters()) != sum(
        p.numel() for p in network(arch, encoder="resnet10t").decoder.parameters()
    )


def test_architectures_are_named_in_any_case():
    names = {"DeepLabV3Plus": {"decoder_width": 64}, "PSPNet": {}}  # PSPNet freezes what its decoder does not read
    for name, options in names.items():
        own, lower = (network(arch, encoder="resnet10t", **options) for arch in (name, name.lower()))
        shapes = [[(n, p.shape, p.requires_grad) for n, p in net.named_parameters()] for net in (own, lower)]
        assert shapes[0] == shapes[1]


def test_a_decoder_without_one_width_is_refused():
    with pytest.raises(ValueError, match="decoder_width: unet has no single width; deeplabv3, .* have"):
        network("unet", decoder_width=64)
    with pytest.raises(ValueError, match="decoder_width: expected a positive number of channels, got 0"):
        network(decoder_width=0)


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

    monkeypatch.setattr("u2pl_fast.models.network.smp.create_model", no_network)
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


# --- Channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("arch", "encoder", "stem"),
    [("fpn", SMALL, "conv_stem.weight"), ("fpn", "convnext_atto", "stem.0.weight")],
    ids=["as named", "renamed for its features"],
)
def test_a_file_of_rgb_weights_fits_any_number_of_channels_as_timm_adapts_it(tmp_path, channels, arch, encoder, stem):
    torch.manual_seed(3)
    file = tmp_path / "weights.safetensors"
    whole = timm.create_model(encoder)
    save_file(whole.state_dict(), file)
    # timm's own way: it loads the file into a model of so many channels.
    theirs = timm.create_model(encoder, in_chans=channels, pretrained=True, pretrained_cfg_overlay={"file": str(file)})
    expected = theirs.state_dict()[stem]
    net = network(arch, encoder, encoder_weights=file, in_channels=channels)
    loaded = net.encoder.model.state_dict()
    assert torch.equal(loaded.get(stem, loaded.get(stem.replace("stem.0", "stem_0"))), expected)


def test_the_normalisation_of_pretrained_weights_is_known():
    half = (0.5, 0.5, 0.5)
    assert pretrained_normalisation("tu-vit_tiny_patch16_224") == (half, half)
    assert pretrained_normalisation("resnet101.tv_in1k") == normalisation(3)
    assert pretrained_normalisation("mit_b0") is None


def test_images_are_normalised_as_the_encoder_s_weights_expect():
    def chosen(**options):
        return resolve(TrainConfig(dataset="folder", **options)).normalisation

    half = (0.5, 0.5, 0.5)
    assert chosen() == chosen(encoder_weights="file.safetensors") == (half, half)  # tf_efficientnet_lite0
    assert chosen(in_channels=2) == (half[:2], half[:2])
    assert chosen(image_mean=(0.1, 0.2, 0.3)) == ((0.1, 0.2, 0.3), half)
    for options in ({"encoder_weights": "none"}, {"encoder": "resnet18"}, {"encoder": "mit_b0"}):
        assert chosen(**options) == normalisation(3)


def test_other_shapes_are_still_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    donor = network(in_channels=5).encoder.model.state_dict()
    save_file(donor, file)
    with pytest.raises(ValueError, match="0 tensors missing, 1 of another shape, first conv_stem.weight"):
        network(in_channels=4, encoder_weights=file)


# --- Architectures and encoders ---------------------------------------------------------------------------------------


def one_step(net: SegmentationNetwork, height: int = 64, width: int = 96) -> SegmentationOutput:
    """A forward and backward pass that reads everything; each parameter that wants a gradient must get one."""
    output = net(images(height=height, width=width), representations=True)
    total = output.logits.square().mean() + represented(output).square().mean()
    total.backward()
    missing = [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing, missing
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    return output


def represented(output: SegmentationOutput) -> torch.Tensor:
    if output.project is None:
        return output.features
    return output.project(output.features.permute(0, 2, 3, 1).flatten(0, 2))


@pytest.mark.parametrize("projection", ["pointwise", "conv"])
@pytest.mark.parametrize(
    ("arch", "stride", "feature_stride"),
    [
        ("unet", 1, 4), ("unetplusplus", 1, 4), ("manet", 1, 4), ("linknet", 1, 4), ("fpn", 4, 4), ("pspnet", 8, 8),
        ("deeplabv3", 8, 8), ("deeplabv3plus", 4, 4), ("pan", 4, 4), ("upernet", 4, 4), ("segformer", 4, 4),
    ],
)  # fmt: skip
def test_every_architecture_trains_a_step_with_both_heads(arch, stride, feature_stride, projection):
    output = one_step(network(arch, projection=projection, representation_dim=6, projection_width=8), 128, 160)
    assert output.logits.shape[-2:] == (128 // stride, 160 // stride)
    assert output.features.shape[-2:] == (128 // feature_stride, 160 // feature_stride)


@pytest.mark.parametrize(("arch", "encoder"), [("segformer", "mit_b0"), ("upernet", "convnext_atto")])
def test_encoders_of_both_libraries(arch, encoder):
    one_step(network(arch, encoder, projection="pointwise"))
    assert network(arch, encoder, in_channels=5, encoder_weights=None).encoder.out_channels[0] == 5


@pytest.fixture
def narrow_dpt(monkeypatch):
    """The same decoder with a few per cent of its weights."""
    monkeypatch.setattr(dpt, "WIDTH", 16)
    monkeypatch.setattr(dpt, "REASSEMBLED", (16, 24, 32, 32))


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
            bank_capacity=64, background_capacity=64, arch="dpt", encoder="eva02_tiny_patch14_224", recipe=recipe,
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


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        ("dpt", "resnet10t", "dpt can't be built on resnet10t.*vit_"),
        ("dpt", "mit_b0", "dpt can't be built on mit_b0.*none of timm's"),
        ("dpt", "swin_tiny_patch4_window7_224", r"features have strides \[4, 8, 16, 32\].*upernet"),
        ("fpn", "vit_tiny_patch16_224", "plain vision transformers are for --arch dpt"),
        ("linknet", "mit_b0", "arch: linknet can't be built on mit_b0"),
        ("deeplabv3plus", "pvt_v2_b0", "can't be dilated.*segformer"),
    ],
)
def test_what_does_not_fit_together_names_what_does(arch, encoder, message):
    with pytest.raises(ValueError, match=message):
        network(arch, encoder)


def test_dpt_has_no_output_stride():
    with pytest.raises(ValueError, match="output_stride: a vision transformer has one grid"):
        network("dpt", "vit_tiny_patch16_224", output_stride=8)


def test_swin_takes_any_size():
    net = network("upernet", "swin_tiny_patch4_window7_224").eval()
    assert net(images(height=32, width=96)).logits.shape[-2:] == (8, 24)


def test_checkpointing_the_encoder_changes_no_gradient(narrow_dpt):
    def gradients(*names, **options):
        net = network(*names, projection="pointwise", **options)
        torch.manual_seed(7)
        one_step(net, 64, 64)
        return [p.grad for p in net.parameters()], net

    for names, options in (
        (("dpt", "vit_tiny_patch16_224"), {}),
        (("fpn", "mobilenetv3_small_050"), {"freeze_batchnorm": True}),
    ):
        plain, once = gradients(*names, **options)
        again, net = gradients(*names, checkpoint_encoder=True, **options)
        assert net.encoder.model.grad_checkpointing
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(once.buffers(), net.buffers(), strict=True))
    with pytest.raises(ValueError, match="checkpoint_encoder: mobilenetv3_small_050 has batch norm.*freeze_batchnorm"):
        network(checkpoint_encoder=True)
    with pytest.raises(ValueError, match="checkpoint_encoder: mit_b0 can't"):
        network("segformer", "mit_b0", checkpoint_encoder=True)


def test_frozen_batch_norm_keeps_its_statistics_and_learns_its_scales():
    def moved(net) -> dict[str, list[str]]:
        before = {name: x.clone() for name, x in net.named_buffers()}
        one_step(net, 64, 64)
        changed = [name for name, x in net.named_buffers() if not torch.equal(x, before[name])]
        return {part: [n for n in changed if n.startswith(part)] for part in ("encoder", "decoder", "projection")}

    net = network(projection="conv", freeze_batchnorm=True)
    frozen, free = moved(net), moved(network(projection="conv"))
    assert not frozen["encoder"] and free["encoder"]
    assert frozen["decoder"] == free["decoder"] != [] and frozen["projection"] == free["projection"] != []
    scales = [m.weight for m in net.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert scales and all(scale.grad.any() for scale in scales)
    with pytest.raises(ValueError, match="freeze_batchnorm: convnext_atto has no batch norm"):
        network("upernet", "convnext_atto", freeze_batchnorm=True)


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


def test_frozen_stages_keep_weights_and_statistics_and_the_rest_learns():
    net = network(projection="pointwise", freeze_stages=2)
    before = {name: x.clone() for name, x in net.encoder.state_dict().items()}
    one_step(net, 64, 64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.step()
    changed = {name for name, x in net.encoder.state_dict().items() if not torch.equal(x, before[name])}
    stages = net.encoder(torch.rand(1, 3, 64, 64))
    frozen = {name for name, p in net.encoder.named_parameters() if not p.requires_grad}
    for depth, stage in enumerate(stages[1:], 1):  # the first map is the image itself
        assert stage.requires_grad == (depth > 2)
    assert frozen and not frozen & changed
    assert changed >= {name for name, p in net.encoder.named_parameters() if p.requires_grad and p.grad.any()}
    norms = [m for m in net.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.training for m in norms if not m.weight.requires_grad} == {False}
    assert {m.training for m in norms if m.weight.requires_grad} == {True}
    for stages in (-1, 6):
        with pytest.raises(ValueError, match="freeze_stages: expected 0 to 5, the stages of this encoder"):
            network(freeze_stages=stages)


def test_stages_of_encoders_with_patches_of_any_size_can_be_frozen(narrow_dpt):
    net = network("dpt", "vit_small_patch14_dinov2", freeze_stages=1)
    frozen = [p.requires_grad for p in net.encoder.parameters()]
    assert any(frozen) and not all(frozen)


@pytest.mark.parametrize(("arch", "encoder"), [("fpn", SMALL), ("dpt", "vit_tiny_patch16_224")])
def test_perturbed_images_alone_lose_channels(arch, encoder, narrow_dpt):
    net = network(arch, encoder, feature_dropout=0.5).eval()
    batch = images(4, 64, 64)
    plain, perturbed = net(batch).logits, net(batch, perturbed=1).logits
    torch.testing.assert_close(plain[:3], perturbed[:3])
    assert (plain[3] - perturbed[3]).abs().max() > 0.01 * plain[3].std()


def test_synchronised_batch_norm_keeps_the_activations_joined_to_it():
    net = network().eval()
    before = net(images()).logits
    converted = learner.convert_sync_batchnorm(net)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.encoder.modules())
    torch.testing.assert_close(converted(images()).logits, before)


def test_synchronised_batch_norm_stays_frozen():
    net = learner.convert_sync_batchnorm(network(freeze_batchnorm=True)).train()
    norms = {
        part: [m.training for m in getattr(net, part).modules() if isinstance(m, torch.nn.SyncBatchNorm)]
        for part in ("encoder", "decoder")
    }
    assert norms["encoder"] and not any(norms["encoder"]) and norms["decoder"] and all(norms["decoder"])
