"""Measure the whole contrastive loss: threshold, masks, push, sampling, loss, and the gradient of the anchors."""

from collections.abc import Callable, Sequence

from torch import Tensor

from u2pl_fast import ops, reference

from .. import class_loop
from ..inputs import TEMPERATURE, UNRELIABLE_SHARE, Inputs, mask_settings, to_grid
from ..registry import BANKS, BOTH, Arguments, Implementation, Op, Outputs, drop_in
from . import ring_push

USES = ("masked_quantile", "contrast_masks", "thin_mask", "class_sum", "ring_push", "class_sample", "gather_pixels")
USES += ("info_nce",)


def shared(x: Inputs) -> Arguments:
    """Return what every implementation reads and none changes."""
    w = x.workload
    return {
        "logits": x.all_logits,
        "features": x.features,
        "labels": x.labels,
        "pseudo": x.statistics.label,
        "entropy": x.statistics.entropy,
        "valid": x.valid,
        "max_keys": x.max_keys if x.bank == "capped" else None,
        "thin_draw": x.thin_draw,
        "anchor_draw": x.anchor_draw,
        "negative_draw": x.negative_draw,
        "num_classes": w.num_classes,
        "grid": w.grid,
        "align_corners": w.align_corners,
        "settings": mask_settings(w),
    }


def arguments(x: Inputs) -> Arguments:
    bank, pushed = x.new_bank()
    return shared(x) | {"bank": bank, "offsets": x.offsets, "pushed": pushed}


class Rings:
    """Hold a bank of the workload, changed by the ops of ``api``; what comes before a push counts as sampling."""

    def __init__(self, api: object, a: Arguments, mark: Callable[[str], None]) -> None:
        self.api, self.max_keys, self.mark = api, a["max_keys"], mark
        self.bank, self.offsets, self.pushed = a["bank"], a["offsets"], a["pushed"]

    def push(self, features: Tensor, mask: Tensor, *, draw: Tensor, gate: Tensor | None) -> None:
        self.mark("sampling")
        keys = mask if self.max_keys is None else self.api.thin_mask(mask, self.max_keys, draw)
        self.api.ring_push(self.bank, self.offsets, self.pushed, features, keys, gate=gate)
        self.mark("push")


def forward(api: object, a: Arguments, mark: Callable[[str], None]) -> Outputs:
    """Return (loss, sampled anchors (C·M, D)).

    The gradient ends at the anchors: the function in place of a head makes them a new leaf.
    """
    anchors = []

    def project(rows: Tensor) -> Tensor:
        anchors.append(rows.detach().requires_grad_())
        mark("sampling")
        return anchors[0]

    gamma = api.masked_quantile(a["entropy"], a["valid"], 1 - UNRELIABLE_SHARE)
    reliable, unreliable = reference.partition(a["entropy"], a["valid"], gamma)
    maps = to_grid(a["labels"], a["pseudo"], reliable, unreliable, a["grid"], a["align_corners"])
    mark("threshold")
    masks = api.contrast_masks(a["logits"], *maps, **a["settings"])
    mark("masks")
    draws = ops.ContrastiveDraws(a["thin_draw"], a["anchor_draw"], a["negative_draw"])
    features = a["features"]
    loss, *_ = api.contrastive_loss_from_masks(
        masks, features, features, Rings(api, a, mark), draws, temperature=TEMPERATURE, project=project
    )
    return loss, *anchors


def collect(a: Arguments, outputs: Outputs, grads: Sequence[Tensor]) -> Outputs:
    return outputs[0], grads[0].unflatten(0, a["anchor_draw"].shape), a["bank"], a["pushed"]


def class_loop_arguments(x: Inputs) -> Arguments:
    bank, pushed = x.new_bank()
    queues = class_loop.queues(bank, x.workload.capacities, pushed)
    return shared(x) | {"queues": queues, "ring_slots": True, "to_features": False}


def _implementations() -> dict[str, Implementation]:
    drop_ins = drop_in("contrastive_loss", arguments, forward, leaf=lambda outputs: outputs[1:], uses=USES)
    each = {name: Implementation(i.arguments, i.forward, i.leaf, collect, i.missing) for name, i in drop_ins.items()}
    loop = Implementation(class_loop_arguments, class_loop.branch, lambda outputs: outputs[1:], class_loop.as_ring_bank)
    return {"eager": each["eager"], "class-loop": loop, "compile": each["compile"], "fused": each["fused"]}


OP = Op("contrastive_loss", _implementations(), passes=(BOTH,), banks=BANKS, counts=ring_push.counts)
