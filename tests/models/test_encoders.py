"""Encoders: weights from files, freezing, recomputed activations, dropped channels."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.models.networks import SMALL, images, network, one_step


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


def test_other_shapes_are_still_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    donor = network(in_channels=5).encoder.model.state_dict()
    save_file(donor, file)
    with pytest.raises(ValueError, match="0 tensors missing, 1 of another shape, first conv_stem.weight"):
        network(in_channels=4, encoder_weights=file)


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
        with pytest.raises(ValueError, match="freeze_stages: this encoder has 5 stages, got"):
            network(freeze_stages=stages)


def test_stages_of_encoders_with_patches_of_any_size_can_be_frozen(narrow_dpt):
    net = network("dpt", "vit_small_patch14_dinov2", freeze_stages=1)
    frozen = [p.requires_grad for p in net.encoder.parameters()]
    assert any(frozen) and not all(frozen)


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
    with pytest.raises(ValueError, match="checkpoint_encoder: mit_b0 does not support recomputed activations"):
        network("segformer", "mit_b0", checkpoint_encoder=True)


@pytest.mark.parametrize(("arch", "encoder"), [("fpn", SMALL), ("dpt", "vit_tiny_patch16_224")])
def test_perturbed_images_alone_lose_channels(arch, encoder, narrow_dpt):
    net = network(arch, encoder, feature_dropout=0.5).eval()
    batch = images(4, 64, 64)
    plain, perturbed = net(batch).logits, net(batch, perturbed=1).logits
    torch.testing.assert_close(plain[:3], perturbed[:3])
    assert (plain[3] - perturbed[3]).abs().max() > 0.01 * plain[3].std()
