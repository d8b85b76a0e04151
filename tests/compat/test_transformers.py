"""Test that compat.transformers gives the loss and gradients of transformers for every supported model."""

import inspect

import pytest
import torch
from torch import Tensor, nn

hf = pytest.importorskip("transformers")

from u2pl_fast.compat import transformers as compat  # noqa: E402
from u2pl_fast.ops import upsampled_cross_entropy as op  # noqa: E402

CLASSES, SIZE = 5, 64
VIT = {"image_size": SIZE, "patch_size": 16, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
FEATURES = {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}
UPER = {"pool_scales": [1, 2], "auxiliary_channels": 8}
ASPP = {"image_size": SIZE, "aspp_out_channels": 16, "atrous_rates": [1, 2, 3]}
STAGES = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
NECK = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8}
MODELS = {
    "Segformer": lambda: hf.SegformerConfig(**STAGES, decoder_hidden_size=16, drop_path_rate=0.5),
    "MobileViT": lambda: hf.MobileViTConfig(
        **ASPP, hidden_sizes=[16, 16, 24], neck_hidden_sizes=[8, 8, 16, 16, 16, 16, 24], num_attention_heads=2
    ),
    "MobileViTV2": lambda: hf.MobileViTV2Config(**ASPP, width_multiplier=0.25, n_attn_blocks=[1, 1, 1]),
    "MobileNetV2": lambda: hf.MobileNetV2Config(image_size=SIZE, depth_multiplier=0.25),
    "Beit": lambda: hf.BeitConfig(**VIT, **FEATURES, **UPER),
    "Data2VecVision": lambda: hf.Data2VecVisionConfig(**VIT, **FEATURES, **UPER),
    "DPT": lambda: hf.DPTConfig(**VIT, **NECK, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3]),
    "Sapiens2": lambda: hf.Sapiens2Config(
        **VIT,
        num_hidden_layers=2,
        num_key_value_attention_heads=2,
        head_config={"upsample_out_channels": [8], "conv_out_channels": [8]},
    ),
    "Tipsv2Dpt": lambda: hf.Tipsv2DptConfig(
        **NECK, backbone_config=hf.Tipsv2VisionConfig(**VIT, **FEATURES, reshape_hidden_states=False)
    ),
}


@pytest.fixture(autouse=True)
def undo_after_each_test():
    yield
    compat.undo()


def class_of(name: str) -> type:
    return getattr(hf, f"{name}ForSemanticSegmentation")


def build(name: str, base: type | None = None, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    config = MODELS[name]()
    config.num_labels = CLASSES
    for key, value in settings.items():
        setattr(config, key, value)
    model = (base or class_of(name))(config)
    with torch.no_grad():  # so that logits differ between classes, also in the auxiliary head
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def batch(ignore: int = 255) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (2, 50, 70), generator=generator)
    labels[:, :9] = ignore
    return {"pixel_values": torch.rand(2, 3, SIZE, SIZE, generator=generator), "labels": labels}


def loss_of(output: object) -> Tensor:
    return output[0] if isinstance(output, tuple) else output.loss


def run(model: nn.Module, *args: object, **kwargs: object) -> tuple[object, list[Tensor]]:
    torch.manual_seed(2)  # dropout
    model.zero_grad()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    output = model(*args, **kwargs)
    loss_of(output).backward()
    with torch.no_grad():  # undo the update of batch norm
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return output, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_same(before: tuple[object, list[Tensor]], after: tuple[object, list[Tensor]]) -> None:
    torch.testing.assert_close(loss_of(before[0]), loss_of(after[0]), rtol=1e-5, atol=1e-6)
    assert len(before[1]) == len(after[1]) > 5
    norm = torch.stack([grad.norm() for grad in before[1]]).norm()
    for a, b in zip(before[1], after[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(norm))


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Record the shapes of each call of the fused loss, so that a test can check that it ran."""
    calls: list[tuple] = []

    def counted(logits: Tensor, labels: Tensor, **kwargs: object) -> Tensor:
        calls.append((tuple(logits.shape), tuple(labels.shape)))
        return op(logits, labels, **kwargs)

    monkeypatch.setattr(compat.ops, "upsampled_cross_entropy", counted)
    return calls


def test_every_supported_model_is_tested():
    assert sorted(compat._MODELS) == sorted(f"{name}ForSemanticSegmentation" for name in MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradients_and_outputs_equal_transformers(name: str, fused_calls: list[tuple]):
    model, inputs = build(name), batch()
    heads = 2 if getattr(model, "auxiliary_head", None) is not None else 1
    forms = (
        ((), inputs | {"return_dict": True}),
        ((), inputs | {"return_dict": False}),
        ((), inputs | {"output_hidden_states": True}),
    )
    for training in (True, False):
        model.train(training)
        for args, kwargs in forms:
            before = run(model, *args, **kwargs)
            assert not fused_calls
            compat.apply()
            after = run(model, *args, **kwargs)
            assert len(fused_calls) == heads
            fused_calls.clear()
            compat.undo()
            assert type(before[0]) is type(after[0])
            assert_same(before, after)
            if isinstance(before[0], tuple):
                assert len(before[0]) == len(after[0])
                torch.testing.assert_close(before[0][1], after[0][1])
            else:
                assert list(before[0]) == list(after[0]) and list(after[0])[0] == "loss"
                torch.testing.assert_close(before[0].logits, after[0].logits)


@pytest.mark.parametrize("name", MODELS)
def test_positional_labels_and_missing_labels(name: str, fused_calls: list[tuple]):
    model, inputs = build(name).eval(), batch()
    place = list(inspect.signature(type(model).forward).parameters).index("labels") - 1
    args = (inputs["pixel_values"], *[None] * (place - 1), inputs["labels"])
    before, without = run(model, *args), model(inputs["pixel_values"])
    compat.apply()
    assert_same(before, run(model, *args))
    assert fused_calls
    after = model(inputs["pixel_values"])
    assert list(after) == list(without) and after.loss is None
    torch.testing.assert_close(after.logits, without.logits)


def test_auxiliary_weight_and_ignore_index_come_from_the_configuration():
    for settings in ({"auxiliary_loss_weight": 2.5}, {"semantic_loss_ignore_index": -100}):
        model = build("DPT", **settings).eval()
        inputs = batch(model.config.semantic_loss_ignore_index)
        before = run(model, **inputs)
        compat.apply()
        assert_same(before, run(model, **inputs))
        compat.undo()


def test_ignore_index_can_be_a_class():
    model, inputs = build("Segformer", semantic_loss_ignore_index=0).eval(), batch(0)
    before = run(model, **inputs)
    compat.apply()
    assert_same(before, run(model, **inputs))
    assert_same(before, run(model, inputs["pixel_values"], inputs["labels"].to(torch.uint8)))


def test_integer_label_dtypes_and_a_batch_without_labels():
    model, inputs = build("Segformer").eval(), batch()
    before = run(model, **inputs)
    compat.apply()
    assert_same(before, run(model, inputs["pixel_values"], inputs["labels"].to(torch.int32)))
    nothing, grads = run(model, inputs["pixel_values"], torch.full((2, 9, 9), 255))
    assert loss_of(nothing).item() == 0 and all(float(grad.abs().max()) == 0 for grad in grads)


def test_dpt_without_auxiliary_head():
    model, inputs = build("DPT", use_auxiliary_head=False).eval(), batch()
    compat.apply()
    output = model(**inputs)
    torch.testing.assert_close(output.loss, op(output.logits, inputs["labels"]))


def test_unsupported_losses_are_not_replaced(fused_calls: list[tuple]):
    inputs = batch()
    one = build("Segformer", num_labels=1).eval()  # binary
    own = build("Beit").eval()
    own.loss_function = lambda logits, labels, **_: logits.sum() * 0 + 7
    replaced = build("Data2VecVision").eval()
    replaced.compute_loss = lambda logits, auxiliary_logits, labels: logits.sum() * 0 + 8
    soft = batch()["labels"][:, None].expand(-1, CLASSES, -1, -1).float().softmax(1)
    model = build("Segformer", semantic_loss_ignore_index=-100).eval()
    cases = ((one, inputs), (own, inputs), (replaced, inputs), (model, inputs | {"labels": soft}))
    before = [run(model, **kwargs) for model, kwargs in cases]
    compat.apply()
    for expected, (model, kwargs) in zip(before, cases, strict=True):
        assert_same(expected, run(model, **kwargs))
    assert not fused_calls
    assert loss_of(before[1][0]).item() == 7 and loss_of(before[2][0]).item() == 8
    with pytest.raises(ValueError, match="greater than one"):
        build("MobileViT", num_labels=1)(**inputs)


def test_subclasses_use_the_forward_they_inherit(fused_calls: list[tuple]):
    class Inherits(hf.SegformerForSemanticSegmentation):
        pass

    class OwnForward(hf.SegformerForSemanticSegmentation):
        def forward(self, pixel_values: Tensor, labels: Tensor) -> object:
            output = super().forward(pixel_values, labels=labels)
            output.loss = 3 * output.loss
            return output

    class OwnLoss(hf.Data2VecVisionForSemanticSegmentation):
        def compute_loss(self, logits: Tensor, auxiliary_logits: Tensor, labels: Tensor) -> Tensor:
            return 0.5 * super().compute_loss(logits, auxiliary_logits, labels)

    for base, name, calls in ((Inherits, "Segformer", 1), (OwnForward, "Segformer", 1), (OwnLoss, "Data2VecVision", 0)):
        model = build(name, base).eval()
        before = run(model, **batch())
        compat.apply()
        assert_same(before, run(model, **batch()))
        assert len(fused_calls) == calls
        fused_calls.clear()
        compat.undo()


def test_undo_restores_the_original_functions_after_repeated_apply():
    originals = {name: class_of(name).__dict__["forward"] for name in MODELS}
    signatures = {name: inspect.signature(forward) for name, forward in originals.items()}
    assert compat.apply(hf.BeitForSemanticSegmentation) == ("BeitForSemanticSegmentation",)
    assert class_of("DPT").__dict__["forward"] is originals["DPT"]
    assert len(compat.apply()) == len(compat.apply()) == len(MODELS)
    for name in MODELS:
        fused = class_of(name).__dict__["forward"]
        assert fused is not originals[name] and fused.__wrapped__ is originals[name]
        assert inspect.signature(fused) == signatures[name]  # Trainer reads the argument names
    compat.undo()
    compat.undo()
    assert all(class_of(name).__dict__["forward"] is originals[name] for name in MODELS)
    assert all(not head._forward_hooks for head in [build("DPT").auxiliary_head])


def test_undo_keeps_a_forward_replaced_after_apply():
    cls = class_of("Segformer")
    original = cls.forward
    compat.apply(cls)
    fused = cls.forward
    cls.forward = other = lambda self, *args, **kwargs: fused(self, *args, **kwargs)
    with pytest.raises(RuntimeError, match="SegformerForSemanticSegmentation was replaced after apply"):
        compat.undo()
    assert cls.forward is other
    cls.forward = fused
    compat.undo()
    assert cls.forward is original


@pytest.mark.parametrize("version", ["5.22.3", "5.230.0", "6.0.0", "4.57.1"])
def test_unsupported_version_raises_and_changes_nothing(version: str, monkeypatch: pytest.MonkeyPatch):
    original = class_of("Segformer").forward
    monkeypatch.setattr("transformers.__version__", version)
    with pytest.raises(RuntimeError, match=f"does not support transformers {version}.*nothing was changed"):
        compat.apply()
    assert class_of("Segformer").forward is original


def test_unsupported_class_raises_and_changes_nothing():
    original = class_of("Segformer").forward
    for other in (hf.UperNetForSemanticSegmentation, hf.SegformerForImageClassification, "segformer"):
        with pytest.raises(ValueError, match="is not supported; choose from .*SegformerForSemanticSegmentation"):
            compat.apply(class_of("Segformer"), other)
    assert class_of("Segformer").forward is original


def test_hook_is_removed_when_the_model_raises():
    model = build("DPT").eval()
    compat.apply()
    with pytest.raises(ValueError, match="target: .*77"):
        model(batch()["pixel_values"], labels=torch.full((2, 8, 8), 77))
    with pytest.raises(Exception):  # noqa: B017  (the type depends on the model)
        model(batch()["pixel_values"][:, :1], labels=batch()["labels"])
    assert not model.auxiliary_head._forward_hooks
