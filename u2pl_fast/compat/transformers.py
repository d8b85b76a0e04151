"""The fused loss inside Hugging Face transformers: ``apply()`` before the model is built, ``undo()`` takes it back.

    from u2pl_fast.compat import transformers as fused_loss

    fused_loss.apply()
    model = SegformerForSemanticSegmentation.from_pretrained(...)  # and the training code as it was

The models here upsample their logits to the labels' size and take the cross-entropy with their configuration's
``semantic_loss_ignore_index``; BEiT, Data2Vec and DPT add that of an auxiliary head. ``apply`` wraps the class's
``forward``: the model runs without labels, so it makes no loss, and ``upsampled_cross_entropy`` of its logits is put in
the loss's place. Nothing else of the model is touched.
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
    """Where a class makes its loss: in ``forward`` itself, or in an attribute that a user may have replaced."""

    auxiliary_head: str | None = None
    loss: str | None = None


# Read in the source of each version in VERSIONS. UperNet is not among them: it upsamples its logits for the output.
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

_applied: dict[type, tuple[Callable, Callable]] = {}  # class → (its own forward, the one in its place)


def apply(*models: type) -> tuple[str, ...]:
    """Use the fused loss in ``models``, or in every model class that is known; a second call changes nothing.

    Same loss and gradients up to rounding. What differs:

    - a batch without a labeled pixel has loss 0 with a gradient of 0, where torch gives NaN;
    - labels may have any integer dtype, and the loss is float32 where the model runs in half precision;
    - DPT without an auxiliary head has its main loss, where transformers fails for want of the other;
    - the loss can be differentiated once.

    The model's own loss still runs where it is another: one class (SegFormer's binary loss), labels that are no
    integer (B, H, W), a ``loss_function`` or ``compute_loss`` that somebody replaced.

    Call it before anything captures ``forward``: ``Accelerator.prepare``, ``dispatch_model``, ``torch.compile``. The
    compiler breaks the graph where a model has an auxiliary head, whose output is caught by a hook.

    Args:
        models: classes of transformers, or none for all. A subclass follows the class it inherits ``forward`` from.

    Returns:
        The names of the classes that now use it.

    Raises:
        ImportError: transformers is not installed.
        RuntimeError: a version that this module does not know; nothing is changed.
        ValueError: a class that it does not know; nothing is changed.

    Source: ``modeling_*.py`` of transformers 5.23.
    """
    library = _library()
    known = {getattr(library, name): source for name, source in _MODELS.items()}
    for model in models:
        if model not in known:
            name = getattr(model, "__qualname__", repr(model))
            raise ValueError(f"models: {name} is not known; choose among the transformers classes {', '.join(_MODELS)}")
    chosen = models or tuple(known)
    for model in chosen:
        if model not in _applied:
            original = model.__dict__["forward"]
            fused = _with_fused_loss(original, known[model], getattr(model, known[model].loss or "forward"))
            _applied[model] = original, fused
            model.forward = fused
    return tuple(model.__name__ for model in chosen)


def undo() -> None:
    """Give every class its own ``forward`` back; does nothing where ``apply`` was not called.

    Raises:
        RuntimeError: something else has replaced a ``forward`` since; undo that first. The others are given back.
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
        raise RuntimeError(f"forward of {names} was replaced after apply(); undo that, then call this again")


def _library() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("u2pl_fast.compat.transformers needs transformers: pip install transformers") from error
    if ".".join(transformers.__version__.split(".")[:2]) not in VERSIONS:
        raise RuntimeError(
            f"transformers {transformers.__version__} is not known to u2pl_fast.compat.transformers, which was read "
            f"against {', '.join(VERSIONS)}: nothing was changed. Install transformers=={VERSIONS[-1]}.*, or call "
            "u2pl_fast.ops.upsampled_cross_entropy(output.logits, labels) in place of passing labels"
        )
    return transformers


def _with_fused_loss(original: Callable, source: _Source, own_loss: object) -> Callable:
    """``forward`` that makes the loss itself where it knows how, and leaves the call as it is elsewhere."""
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
        return type(output)(loss=loss, **output)  # made anew: the loss comes first, and setting None adds no key

    return forward


def _is_label_map(labels: object) -> bool:
    return isinstance(labels, Tensor) and labels.dim() == 3 and labels.dtype in INTEGERS


def _makes_loss_itself(model: nn.Module, source: _Source, own_loss: object) -> bool:
    """Whether nobody has put a loss of their own where the class looks for it."""
    if source.loss is None:
        return True
    if source.loss == "loss_function":
        from transformers.loss.loss_utils import ForSemanticSegmentationLoss

        return model.loss_function is ForSemanticSegmentationLoss
    return getattr(getattr(model, source.loss), "__func__", None) is own_loss


@contextmanager
def _outputs_of(head: nn.Module | None) -> Iterator[list[Tensor]]:
    """What ``head`` returns meanwhile, in a list."""
    outputs: list[Tensor] = []
    if head is None:
        yield outputs
        return

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        if module is head:  # replicas of nn.DataParallel share one table of hooks
            outputs.append(output)

    handle = head.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _cross_entropy(logits: Tensor, labels: Tensor, config: object) -> Tensor:
    ignore_index = config.semantic_loss_ignore_index
    if 0 <= ignore_index < logits.shape[1]:  # torch lets a class be the one that is ignored, the op does not
        labels, ignore_index = torch.where(labels == ignore_index, -1, labels.long()), -1
    return ops.upsampled_cross_entropy(logits, labels, ignore_index=ignore_index)
