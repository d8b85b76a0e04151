"""Use the fused loss in Hugging Face transformers. ``apply()`` turns it on, ``undo()`` turns it off.

    from u2pl_fast.compat import transformers as fused_loss

    fused_loss.apply()
    model = SegformerForSemanticSegmentation.from_pretrained(...)  # the training code is unchanged

The supported models upsample their logits to the size of the labels and compute the cross-entropy with
``config.semantic_loss_ignore_index``; BEiT, Data2Vec and DPT add the loss of an auxiliary head. ``apply`` wraps the
``forward`` of a class: it calls the model without labels, so that the model computes no loss, and adds the
``upsampled_cross_entropy`` of the logits to the output. Nothing else in the model changes.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from .. import ops

VERSIONS = ("5.23",)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class _Source:
    """Name the auxiliary head of a class, and the attribute with its loss function, which a user may replace.

    None: the class has no such head, or computes the loss inside ``forward``.
    """

    auxiliary_head: str | None = None
    loss: str | None = None


# Taken from the source code of each version in VERSIONS. UperNet is not supported: its output has upsampled logits.
_MODELS = {
    "BeitForSemanticSegmentation": _Source("auxiliary_head", "loss_function"),
    "DPTForSemanticSegmentation": _Source("auxiliary_head"),
    "Data2VecVisionForSemanticSegmentation": _Source("auxiliary_head", "compute_loss"),
    "MobileNetV2ForSemanticSegmentation": _Source(),
    "MobileViTForSemanticSegmentation": _Source(),
    "MobileViTV2ForSemanticSegmentation": _Source(),
    "Sapiens2ForSemanticSegmentation": _Source(loss="loss_function"),
    "SegformerForSemanticSegmentation": _Source(),
    "Tipsv2DptForSemanticSegmentation": _Source(loss="loss_function"),
}

_applied: dict[type, tuple[Callable, Callable]] = {}  # class → (original forward, fused forward)


def apply(*models: type) -> tuple[str, ...]:
    """Use the fused loss in ``models``, or in all supported model classes. Calling it twice has no further effect.

    Loss and gradients are equal up to rounding. Differences:

    - The loss of a batch without labeled pixels is 0 with zero gradient; in transformers it is NaN.
    - Labels can have any integer dtype, and the loss of a half-precision model is float32.
    - DPT without an auxiliary head returns its main loss; in transformers it raises an error.
    - The loss can be differentiated once.

    The model's own loss still runs for one class (SegFormer's binary loss), for labels that are not integers of shape
    (B, H, W), and for a ``loss_function`` or ``compute_loss`` that was replaced.

    Call it before ``Accelerator.prepare``, ``dispatch_model`` and ``torch.compile``, which keep the ``forward`` that
    they find. ``torch.compile`` breaks the graph of a model with an auxiliary head, whose output comes from a hook.

    Args:
        models: classes of transformers; none for all. A subclass that inherits ``forward`` from one of them uses the
            fused loss too.

    Returns:
        The names of the classes that now use the fused loss.

    Raises:
        ImportError: transformers is not installed.
        RuntimeError: this version of transformers is not supported. Nothing is changed.
        ValueError: a class is not supported. Nothing is changed.

    Source: ``modeling_*.py`` of transformers 5.23.
    """
    library = _library()
    known = {getattr(library, name): source for name, source in _MODELS.items()}
    for model in models:
        if model not in known:
            name = getattr(model, "__qualname__", repr(model))
            raise ValueError(f"models: {name} is not supported; choose from {', '.join(_MODELS)} of transformers")
    chosen = models or tuple(known)
    for model in chosen:
        if model not in _applied:
            original = model.__dict__["forward"]
            fused = _with_fused_loss(original, known[model], getattr(model, known[model].loss or "forward"))
            _applied[model] = original, fused
            model.forward = fused
    return tuple(model.__name__ for model in chosen)


def undo() -> None:
    """Restore the original ``forward`` of every class that ``apply`` changed.

    Raises:
        RuntimeError: a ``forward`` was replaced after ``apply``. Undo that first. All other classes are restored.
    """
    replaced = []
    for model, (original, fused) in list(_applied.items()):
        if model.__dict__.get("forward") is fused:
            model.forward = original
            del _applied[model]
        else:
            replaced.append(model.__name__)
    if replaced:
        names = ", ".join(replaced)
        raise RuntimeError(f"forward of {names} was replaced after apply(); undo that, then call undo() again")


def _library() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("u2pl_fast.compat.transformers needs transformers: pip install transformers") from error
    if ".".join(transformers.__version__.split(".")[:2]) not in VERSIONS:
        raise RuntimeError(
            f"u2pl_fast.compat.transformers does not support transformers {transformers.__version__}, only "
            f"{', '.join(VERSIONS)}: nothing was changed. Install transformers=={VERSIONS[-1]}.*, or call the model "
            "without labels and then u2pl_fast.ops.upsampled_cross_entropy(output.logits, labels)"
        )
    return transformers


def _with_fused_loss(original: Callable, source: _Source, own_loss: object) -> Callable:
    """Return a ``forward`` that computes the fused loss if it applies and calls ``original`` otherwise."""
    place = list(inspect.signature(original).parameters).index("labels") - 1  # without self

    @functools.wraps(original)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        labels = args[place] if len(args) > place else kwargs.get("labels")
        if not _is_label_map(labels) or self.config.num_labels < 2 or not _makes_loss_itself(self, source, own_loss):
            return original(self, *args, **kwargs)
        if len(args) > place:
            args = (*args[:place], None, *args[place + 1 :])
        else:
            kwargs["labels"] = None
        head = getattr(self, source.auxiliary_head) if source.auxiliary_head else None
        with _outputs_of(head) as auxiliary:
            output = original(self, *args, **kwargs)
        logits = output[0] if isinstance(output, tuple) else output.logits
        loss = _cross_entropy(logits, labels, self.config)
        for each in auxiliary:
            loss = loss + self.config.auxiliary_loss_weight * _cross_entropy(each, labels, self.config)
        if isinstance(output, tuple):
            return loss, *output
        return type(output)(loss=loss, **output)  # a new output, so that the loss is its first key

    return forward


def _is_label_map(labels: object) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 3 and labels.dtype in INTEGERS


def _makes_loss_itself(model: nn.Module, source: _Source, own_loss: object) -> bool:
    """Return whether ``model`` uses the loss function of its class, not one that a user set."""
    if source.loss is None:
        return True
    if source.loss == "loss_function":
        from transformers.loss.loss_utils import ForSemanticSegmentationLoss

        return model.loss_function is ForSemanticSegmentationLoss
    return getattr(getattr(model, source.loss), "__func__", None) is own_loss


@contextmanager
def _outputs_of(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """Yield a list that collects the outputs of ``head`` inside the context."""
    outputs: list[Tensor] = []
    if head is None:
        yield outputs
        return

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        if module is head:  # replicas of nn.DataParallel share their hooks
            outputs.append(output)

    handle = head.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _cross_entropy(logits: Tensor, labels: Tensor, config: object) -> Tensor:
    ignore_index = config.semantic_loss_ignore_index
    if 0 <= ignore_index < logits.shape[1]:  # torch can ignore a class, the op cannot
        labels, ignore_index = torch.where(labels == ignore_index, -1, labels.long()), -1
    return ops.upsampled_cross_entropy(logits, labels, ignore_index=ignore_index)
