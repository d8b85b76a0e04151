"""Measure the contrastive loss of sampled anchors against sampled negatives."""

from collections.abc import Callable

from u2pl_fast import reference

from ..inputs import TEMPERATURE, Inputs
from ..registry import BOTH, FORWARD, Arguments, Op, Outputs, drop_in
from . import ring_push


def arguments(x: Inputs) -> Arguments:
    bank, pushed = x.new_bank()
    label, w = x.masks.anchor_label, x.workload
    index = reference.class_sample(label, w.num_classes, x.anchor_draw)
    present = x.masks.anchors > 0
    fill = reference.ring_fill(x.offsets, pushed)
    return {
        "anchors": reference.gather_pixels(x.features, index).contiguous(),
        "weight": present / present.sum(),
        "positives": reference.class_sum(x.features, label, w.num_classes) / x.masks.anchors.clamp(min=1)[:, None],
        "bank": bank,
        "offsets": x.offsets,
        "pushed": pushed,
        "indices": x.negative_draw * fill[:, None, None] >> 32,
        "temperature": TEMPERATURE,
    }


def forward(api: object, args: Arguments, mark: Callable[[str], None]) -> Outputs:
    return (api.info_nce(**args),)


OP = Op(
    "info_nce",
    drop_in("info_nce", arguments, forward, leaf="anchors"),
    passes=(FORWARD, BOTH),
    layouts=("contiguous",),
    counts=ring_push.counts,
)
