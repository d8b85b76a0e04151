"""Test that compat.u2pl takes the arguments of the public U²PL release and computes the method's losses."""

import copy
import io
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from u2pl_fast import ops, reference
from u2pl_fast.compat.u2pl import compute_contra_memobank_loss, compute_unsupervised_loss, dequeue_and_enqueue
from u2pl_fast.criterion import U2PLCriterion
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.outputs import SegmentationOutput

CLASSES, DIM, GRID, LABELED, UNLABELED = 7, 8, (9, 11), 2, 3
SIZE = tuple(4 * (n - 1) + 1 for n in GRID)
CFG = {
    "negative_high_entropy": True,
    "low_rank": 3,
    "high_rank": 20,
    "current_class_threshold": 0.3,
    "current_class_negative_threshold": 1,
    "unsupervised_entropy_ignore": 80,
    "low_entropy_threshold": 20,
    "num_negatives": 5,
    "num_queries": 6,
    "temperature": 0.5,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Lists(NamedTuple):
    """Hold a memory bank as the release's trainer builds it."""

    memobank: list
    queue_ptrlis: list
    queue_size: list


def lists(size: int = 40, first: int = 60, classes: int = CLASSES, dtype: torch.dtype = torch.float32) -> Lists:
    memobank, queue_ptrlis, queue_size = [], [], []
    for _ in range(classes):
        memobank.append([torch.zeros(0, DIM, dtype=dtype)])
        queue_size.append(size)
        queue_ptrlis.append(torch.zeros(1, dtype=torch.long))
    queue_size[0] = first
    return Lists(memobank, queue_ptrlis, queue_size)


class Step(NamedTuple):
    """Hold one batch at the resolution of the logits. Some unlabeled pixels are in neither mask."""

    rep: Tensor
    ids: Tensor
    prob: Tensor
    low: Tensor
    high: Tensor
    rep_teacher: Tensor


def step(seed: int = 0, classes: int = CLASSES, present: tuple[int, ...] = (1, 4, 6)) -> Step:
    g, images = seeded(seed), LABELED + UNLABELED
    prob = (3 * torch.randn(images, classes, *GRID, generator=g)).softmax(1)
    ids = torch.tensor(present)[torch.randint(0, len(present), (images, *GRID), generator=g)]
    ids[LABELED:] = prob[LABELED:].argmax(1)
    ids[0, :2] = 255
    ids[-1, :, :3] = 255  # removed by CutMix
    kept, entropy = ids != 255, torch.rand(images, *GRID, generator=g)
    low, high = kept & (entropy < 0.4), kept & (entropy > 0.6)
    low[:LABELED] = high[:LABELED] = kept[:LABELED]
    rep, rep_teacher = (torch.randn(images, DIM, *GRID, generator=g) for _ in range(2))
    return Step(rep.requires_grad_(), ids, prob, low[:, None].float(), high[:, None].float(), rep_teacher)


def one_hot(ids: Tensor, classes: int = CLASSES) -> Tensor:
    """Return one-hot maps (B, C, h, w), all 0 at ignored pixels."""
    return F.one_hot(torch.where(ids == 255, classes, ids.long()), classes + 1)[..., :classes].movedim(-1, 1)


def arguments(s: Step, bank: Lists | MemoryBank, hot: bool = True, cfg: dict | None = None) -> tuple:
    label = one_hot(s.ids) if hot else s.ids
    held = (bank, None, None) if isinstance(bank, MemoryBank) else bank
    return (
        *(s.rep, label[:LABELED], label[LABELED:], s.prob[:LABELED], s.prob[LABELED:], s.low, s.high, cfg or CFG),
        *(*held, s.rep_teacher),
    )


def expected(s: Step, bank: MemoryBank, seed: int, classes: int = CLASSES) -> ops.ContrastiveLoss:
    """Return the result of ``ops.contrastive_loss`` with the same random numbers."""
    draws = ops.contrastive_draws(classes, seeded(seed), num_anchors=6, num_negatives=5)
    masks = (m[:, 0] > 0 for m in (s.low, s.high))
    with ops.use_backend("reference"):
        return ops.contrastive_loss(
            s.prob.log(),
            s.ids,
            *masks,
            s.rep,
            s.rep_teacher,
            bank,
            draws,
            num_labeled=LABELED,
            low_rank=3,
            high_rank=20,
        )


def own_bank(held: Lists) -> MemoryBank:
    return MemoryBank(held.queue_size, DIM, max_keys_per_step=0)


@pytest.mark.parametrize("hot", [True, False], ids=["one-hot", "class-ids"])
@pytest.mark.parametrize("kind", ["lists", "MemoryBank"])
def test_contrastive_loss_equals_the_op_over_several_steps(hot: bool, kind: str):
    held = lists()
    bank, mine = own_bank(held), held if kind == "lists" else own_bank(held)
    for i in range(4):
        s = step(i, present=((1, 4, 6), (2,), (0, 3), (5, 6))[i])
        want = expected(s, bank, i)
        (want_grad,) = torch.autograd.grad(want.loss, s.rep)
        new_keys, loss = compute_contra_memobank_loss(*arguments(s, mine, hot), generator=seeded(i))
        loss.backward()
        assert want.loss > 0.5
        torch.testing.assert_close(loss, want.loss)
        torch.testing.assert_close(s.rep.grad, want_grad)
        assert [int(n) for n in new_keys] == want.negatives.tolist()
        if kind == "MemoryBank":
            torch.testing.assert_close(mine.bank, bank.bank)
            continue
        assert [int(pointer) for pointer in held.queue_ptrlis] == bank.pushed.tolist()
        for c, start in enumerate(bank.offsets[:-1].tolist()):
            assert len(held.memobank[c]) == 1 and type(new_keys[c]) is int
            torch.testing.assert_close(held.memobank[c][0], bank.bank[start : start + int(bank.fill[c])])
    assert (bank.pushed > torch.tensor(held.queue_size)).any()  # at least one ring wrapped around


def test_losses_equal_the_criterion():
    """Use the published setup: keys and probabilities of the teacher, no cap on keys, full-resolution maps."""
    g, images = seeded(3), LABELED + UNLABELED
    logits, teacher_logits = (3 * torch.randn(images, CLASSES, *GRID, generator=g) for _ in range(2))
    features = torch.randn(images, DIM, *GRID, generator=g, requires_grad=True)
    keys = torch.randn(images, DIM, *GRID, generator=g)
    labels = torch.randint(0, CLASSES, (LABELED, *SIZE), generator=g)
    labels[0, :9] = 255
    criterion = U2PLCriterion(
        *(CLASSES, DIM),
        **{"num_anchors": 6, "num_negatives": 5, "key_encoder": "teacher", "labeled_probs": "teacher"},
        **{"bank_capacity": lists().queue_size, "max_keys_per_step": 0, "align_corners": True},
    )
    valid = torch.ones(UNLABELED, *SIZE, dtype=torch.bool)
    pseudo = criterion.pseudo_labels(teacher_logits[LABELED:], valid)
    losses = criterion(
        SegmentationOutput(logits, features),
        labels,
        pseudo,
        SegmentationOutput(teacher_logits, keys),
        epoch=1,
        epochs=10,
        generator=seeded(5),
    )
    reliable, unreliable = reference.partition(pseudo.entropy, pseudo.valid, losses.statistics["gamma"])
    kept = labels != 255

    def small(x: Tensor) -> Tensor:
        return reference.sample_to_grid(x, GRID, align_corners=True)

    held = lists()
    new_keys, loss = compute_contra_memobank_loss(
        features,
        one_hot(small(labels)),
        small(pseudo.label),
        *teacher_logits.softmax(1).split((LABELED, UNLABELED)),
        *(torch.cat((small(kept), small(mask)))[:, None].float() for mask in (reliable, unreliable)),
        CFG,
        *held,
        keys,
        generator=seeded(5),
    )
    torch.testing.assert_close(loss.detach(), losses.contrastive)
    assert new_keys == losses.statistics["negatives"].tolist() and min(new_keys) > 0
    assert [len(queue[0]) for queue in held.memobank] == criterion.bank.fill.tolist()

    percent = 100 * (1 - reference.unreliable_share(0.2, 1, 10))
    unsupervised = compute_unsupervised_loss(logits[LABELED:], pseudo.label, percent, teacher_logits[LABELED:])
    torch.testing.assert_close(unsupervised, losses.unsupervised)


def oracle_unsupervised(predict: Tensor, target: Tensor, percent: float, pred_teacher: Tensor) -> Tensor:
    p = pred_teacher.double().softmax(1)
    entropy = -(p * p.log()).sum(1)
    valid = target != 255
    keep = valid & (entropy < float(np.percentile(entropy[valid].numpy(), percent)))
    loss = F.cross_entropy(predict.double(), target.long(), reduction="none", ignore_index=255)
    return loss[keep].mean() * valid.sum() / keep.sum()


@pytest.mark.parametrize("dtype", [torch.long, torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("percent", [0.5, 64.0, 80, 100])
def test_unsupervised_loss_and_gradient(dtype: torch.dtype, percent: float):
    g = seeded(1)
    predict = torch.randn(2, CLASSES, 13, 17, generator=g, requires_grad=True)
    teacher = 2 * torch.randn(2, CLASSES, 13, 17, generator=g)
    target = teacher.argmax(1).to(dtype)
    target[0, :4] = 255
    before = target.clone()
    want = oracle_unsupervised(predict, target, percent, teacher)
    (want_grad,) = torch.autograd.grad(want, predict)
    loss = compute_unsupervised_loss(predict, target, percent, teacher)
    loss.backward()
    torch.testing.assert_close(loss, want.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict.grad, want_grad, rtol=1e-3, atol=1e-6)
    assert torch.equal(target, before)


def test_low_resolution_logits():
    g = seeded(2)
    predict, teacher = (2 * torch.randn(2, CLASSES, *GRID, generator=g) for _ in range(2))
    full, full_teacher = (F.interpolate(x, SIZE, mode="bilinear", align_corners=True) for x in (predict, teacher))
    target = full_teacher.argmax(1)
    want = compute_unsupervised_loss(full, target, 80, full_teacher)
    torch.testing.assert_close(compute_unsupervised_loss(predict, target, 80, teacher), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compute_unsupervised_loss(full, target, 80, teacher), want, rtol=1e-4, atol=1e-5)


def test_no_reliable_pixel_gives_zero_loss():
    predict = torch.randn(1, CLASSES, 5, 5, requires_grad=True)
    teacher = torch.randn(1, CLASSES, 5, 5)
    for target, percent in ((torch.full((1, 5, 5), 255), 80), (teacher.argmax(1), 0)):
        predict.grad = None
        loss = compute_unsupervised_loss(predict, target, percent, teacher)
        loss.backward()
        assert loss.item() == 0 and predict.grad.abs().max() == 0


def test_only_ignored_pixels_give_zero_loss_and_an_empty_bank():
    s, held = step(), lists()
    s = s._replace(ids=torch.full_like(s.ids, 255), low=torch.zeros_like(s.low), high=torch.zeros_like(s.high))
    new_keys, loss = compute_contra_memobank_loss(*arguments(s, held))
    loss.backward()
    assert loss.item() == 0 and s.rep.grad.abs().max() == 0
    assert new_keys == [0] * CLASSES and all(len(queue[0]) == 0 for queue in held.memobank)


def test_default_generator_is_used_without_a_generator():
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        values.append(compute_contra_memobank_loss(*arguments(step(), lists()))[1].item())
    assert values[0] == values[1] != values[2]


def test_negative_threshold_below_one_drops_likely_negatives():
    s, held = step(), lists(size=1000)
    new_keys, _ = compute_contra_memobank_loss(
        *arguments(s, held, cfg=CFG | {"current_class_negative_threshold": 0.02})
    )
    masks = reference.contrast_masks(
        s.prob.log(),
        s.ids,
        *(m[:, 0] > 0 for m in (s.low, s.high)),
        **{"num_labeled": LABELED, "low_rank": 3, "high_rank": 20, "positive_threshold": 0.3},
    )
    pixels = reference.unpack_mask(masks.mask, CLASSES) & (s.prob.movedim(1, -1).flatten(0, 2) < 0.02)
    assert new_keys == pixels.sum(0).tolist() and sum(new_keys) < int(masks.keys.sum())
    for c, queue in enumerate(held.memobank):
        rows = reference.pixel_rows(s.rep_teacher)[pixels[:, c]]
        torch.testing.assert_close(queue[0], F.normalize(rows, dim=1))


def test_momentum_prototype():
    old = torch.randn(CLASSES, 6, 1, DIM).mean(1, keepdim=True).repeat(1, 6, 1, 1)
    old[4] = 0
    s = step(present=(1, 4))
    low = s.low.clone()
    low[LABELED:] = 0  # only classes 1 and 4 have anchors
    s = s._replace(low=low)
    keep = s.low[:, 0].bool() & (s.prob.gather(1, s.ids.clamp(max=CLASSES - 1)[:, None])[:, 0] > 0.3)
    for i_iter, momentum in ((0, 0.999), (1, 0.0), (4, 0.75), (5000, 0.999)):
        prototype, new_keys, loss = compute_contra_memobank_loss(
            *arguments(s, lists()), old, i_iter, generator=seeded(i_iter)
        )
        assert prototype.shape == old.shape and len(new_keys) == CLASSES and loss > 0.5
        centers = {c: reference.pixel_rows(s.rep_teacher)[(keep & (s.ids == c)).flatten()].mean(0) for c in (1, 4)}
        for c in range(CLASSES):
            want = old[c, 0, 0]
            if c in centers:
                want = centers[c] if c == 4 else momentum * old[c, 0, 0] + (1 - momentum) * centers[c]
            torch.testing.assert_close(prototype[c], want.expand(6, 1, -1))
    again, _, first = compute_contra_memobank_loss(*arguments(s, lists()), torch.zeros_like(old), generator=seeded(0))
    _, plain = compute_contra_memobank_loss(*arguments(s, lists()), generator=seeded(0))
    torch.testing.assert_close(first, plain)
    assert (again[[0, 2, 3, 5, 6]] == 0).all()


def test_queues_share_one_bank_and_survive_copying_and_saving():
    held = lists()
    compute_contra_memobank_loss(*arguments(step(0), held), generator=seeded(0))
    base = held.memobank[0][0]._base
    copied = copy.deepcopy(held)
    file = io.BytesIO()
    torch.save(held._asdict(), file)
    file.seek(0)
    loaded = Lists(**torch.load(file, weights_only=True))
    losses = [
        compute_contra_memobank_loss(*arguments(step(1), each), generator=seeded(1))[1].item()
        for each in (held, copied, loaded)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    assert all(queue[0]._base is base for queue in held.memobank), "the bank was copied"
    for a, b, c in zip(held.memobank, copied.memobank, loaded.memobank, strict=True):
        torch.testing.assert_close(a[0], b[0])
        torch.testing.assert_close(a[0], c[0])


def test_queues_filled_by_the_release_are_converted():
    """Use the release's format: unnormalized rows, oldest first; the pointer of a full queue is the capacity."""
    held, rows = lists(size=5), torch.randn(CLASSES, 8, DIM)
    for c in range(CLASSES):
        held.memobank[c][0], held.queue_ptrlis[c][0] = rows[c, :5] if c else rows[c, :3], 5 if c else 3
    s = step()
    few = s._replace(high=torch.zeros_like(s.high), ids=torch.full_like(s.ids, 255))  # no new keys
    compute_contra_memobank_loss(*arguments(few, held))
    for c in range(CLASSES):
        torch.testing.assert_close(held.memobank[c][0], F.normalize(rows[c, : 5 if c else 3], dim=1))
    assert dequeue_and_enqueue(rows[1, 5:7], held.memobank[1], held.queue_ptrlis[1], 5) == 2
    torch.testing.assert_close(held.memobank[1][0], F.normalize(rows[1, [5, 6, 2, 3, 4]], dim=1))


def test_shrinking_a_queue_keeps_the_newest_keys():
    rows, pointer = torch.randn(9, DIM), torch.tensor([9])
    queue = [rows]
    dequeue_and_enqueue(rows[:0], queue, pointer, 4)
    torch.testing.assert_close(queue[0], F.normalize(rows[5:], dim=1))


def test_labeled_pixels_outside_the_low_mask_are_ignored():
    s = step()
    low, ids = s.low.clone(), s.ids.clone()
    low[:LABELED, :, 4:6], ids[:LABELED, 4:6] = 0, 255
    masked, ignored = (
        compute_contra_memobank_loss(*arguments(each, lists()), generator=seeded())
        for each in (s._replace(low=low), s._replace(ids=ids))
    )
    assert masked[0] == ignored[0] and torch.equal(masked[1], ignored[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dequeue_and_enqueue_is_first_in_first_out(dtype: torch.dtype):
    queue, pointer, everything = [torch.zeros(0, 256, dtype=dtype)], torch.zeros(1, dtype=torch.long), []
    for n in (0, 3, 4, 9, 0, 1, 2):
        keys = torch.randn(n, DIM, requires_grad=True)
        assert dequeue_and_enqueue(keys, queue, pointer, 7) == n
        everything.extend(F.normalize(keys.detach(), dim=1).to(dtype))
        newest = everything[-7:]
        assert int(pointer) == len(everything) and len(queue[0]) == len(newest) and not queue[0].requires_grad
        if newest:
            order = torch.arange(len(everything) - len(newest), len(everything)) % 7
            torch.testing.assert_close(queue[0][order], torch.stack(newest))


def release_loop(hot: bool, anchor_ema: bool, steps: int = 3) -> tuple[list[float], Lists]:
    """Train as the release's loop does: upsample all logits, then sample masks and labels at their resolution."""
    torch.manual_seed(0)
    np.random.seed(0)
    net = nn.Conv2d(3, CLASSES + DIM, 5, stride=4, padding=2)
    net.weight.data[:CLASSES] *= 20  # so that probabilities exceed the threshold of anchors
    teacher = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    held, history = lists(), []
    prototype = torch.zeros(CLASSES, CFG["num_queries"], 1, DIM)
    image_l, image_u = torch.rand(2, 3, *SIZE), torch.rand(2, 3, *SIZE)
    label_l = (image_l.sum(1) * 2).long()
    label_l[:, :5] = 255

    def large(x: Tensor) -> Tensor:
        return F.interpolate(x, size=SIZE, mode="bilinear", align_corners=True)

    for epoch in range(steps):
        label_u_aug = large(teacher(image_u)[:, :CLASSES]).softmax(1).max(1)[1]
        label_u_aug[:, 10:15, 10:15] = 255  # removed by CutMix
        out = net(torch.cat((image_l, image_u)))
        pred_all, rep_all = out[:, :CLASSES], out[:, CLASSES:]
        sup_loss = F.cross_entropy(large(pred_all[:2]), label_l.clone(), ignore_index=255)
        with torch.no_grad():
            out_t = teacher(torch.cat((image_l, image_u)))
            pred_all_teacher, rep_all_teacher = out_t[:, :CLASSES], out_t[:, CLASSES:]
            prob_l_teacher, prob_u_teacher = pred_all_teacher.softmax(1)[:2], pred_all_teacher.softmax(1)[2:]
            pred_u_large_teacher = large(pred_all_teacher[2:])
        unsup_loss = compute_unsupervised_loss(
            large(pred_all[2:]), label_u_aug.clone(), 100 - 20 * (1 - epoch / steps), pred_u_large_teacher.detach()
        )
        alpha_t = CFG["low_entropy_threshold"] * (1 - epoch / steps)
        with torch.no_grad():
            prob = pred_u_large_teacher.softmax(1)
            entropy = -torch.sum(prob * torch.log(prob + 1e-10), dim=1)
            seen = label_u_aug != 255
            values = entropy[seen].numpy().flatten()
            low = entropy.le(np.percentile(values, alpha_t)).float() * seen.bool()
            high = entropy.ge(np.percentile(values, 100 - alpha_t)).float() * seen.bool()
            known = (label_l.unsqueeze(1) != 255).float()
            masks = [
                F.interpolate(torch.cat((known, mask.unsqueeze(1))), size=GRID, mode="nearest") for mask in (low, high)
            ]
            if hot:
                small = [
                    F.interpolate(one_hot(y).float(), size=GRID, mode="nearest").long() for y in (label_l, label_u_aug)
                ]
            else:
                small = [F.interpolate(y[:, None].float(), GRID)[:, 0].long() for y in (label_l, label_u_aug)]
        common = (rep_all, *small, prob_l_teacher.detach(), prob_u_teacher.detach(), *masks, CFG, *held)
        common = (*common, rep_all_teacher.detach())
        if anchor_ema:
            prototype, new_keys, contra_loss = compute_contra_memobank_loss(*common, prototype)
        else:
            new_keys, contra_loss = compute_contra_memobank_loss(*common)
        dist.all_reduce(contra_loss)
        contra_loss = contra_loss / dist.get_world_size() * 0.1
        loss = sup_loss + unsup_loss + contra_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), net.parameters(), strict=True):
                t.data = 0.9 * t.data + 0.1 * s.data
        assert net.weight.grad[CLASSES:].abs().max() > 0, "L_c has no gradient for the representations"
        assert len(new_keys) == CLASSES
        history += [sup_loss.item(), unsup_loss.item(), contra_loss.item()]
    return history, held


def test_loop_of_the_release_runs_unchanged(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for anchor_ema in (False, True):
            history, held = release_loop(True, anchor_ema)
            ids, _ = release_loop(False, anchor_ema)
            assert history == pytest.approx(ids) and np.isfinite(history).all() and min(history) > 0
            assert history[-3] < history[0]
            for queue, pointer, size in zip(*held, strict=True):
                assert len(queue[0]) == min(int(pointer), size)
            assert sum(int(pointer) for pointer in held.queue_ptrlis) > 0
    finally:
        dist.destroy_process_group()


def test_half_precision_representations():
    s, held = step(), lists()
    want = compute_contra_memobank_loss(*arguments(s, held), generator=seeded(0))[1]
    half = s._replace(rep=s.rep.detach().bfloat16().requires_grad_(), rep_teacher=s.rep_teacher.bfloat16())
    loss = compute_contra_memobank_loss(*arguments(half, lists(dtype=torch.bfloat16)), generator=seeded(0))[1]
    loss.backward()
    torch.testing.assert_close(loss, want, rtol=1e-2, atol=1e-2)
    assert half.rep.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cfg": {k: v for k, v in CFG.items() if k != "low_rank"}}, KeyError, "cfg: missing low_rank"),
        ({"cfg": CFG | {"low_rank": CLASSES}}, ValueError, r"cfg\['low_rank'\]: 7 with 7 classes"),
        ({"label_l": torch.zeros(2, 3, *GRID)}, ValueError, r"label_l: expected one-hot \(B, 7, h, w\)"),
        ({"label_l": torch.zeros(2, *GRID)}, TypeError, "label_l: expected class ids of an integer dtype"),
        ({"label_u": torch.zeros(1, *GRID, dtype=torch.long)}, ValueError, "label_l, label_u: expected"),
        ({"label_u": torch.full((3, *GRID), 99)}, ValueError, "99"),
        ({"low_mask": torch.ones(5, *GRID)}, ValueError, "low_mask: expected"),
        ({"rep_teacher": torch.ones(5, DIM + 1, *GRID)}, ValueError, "rep_teacher: expected"),
        ({"memobank": [[torch.ones(2, 3)]] * CLASSES}, ValueError, r"memobank\[0\]\[0\]: expected \(n, D\) with D = 8"),
        ({"queue_size": [5]}, ValueError, "expected one entry per class in each, got"),
        ({"queue_size": [0] * CLASSES}, ValueError, r"queue_size\[0\]: expected at least 1"),
        ({"memobank": MemoryBank([3] * 2, DIM)}, ValueError, "memobank: expected 7 classes"),
        ({"momentum_prototype": torch.zeros(3, 6, 1, DIM)}, ValueError, "momentum_prototype: expected"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_errors_name_the_argument_and_leave_the_bank_unchanged(change: dict, error: type, message: str):
    names = (
        *("rep", "label_l", "label_u", "prob_l", "prob_u", "low_mask", "high_mask", "cfg"),
        *("memobank", "queue_prtlis", "queue_size", "rep_teacher"),
    )
    held = lists()
    given = dict(zip(names, arguments(step(), held), strict=True)) | change
    with pytest.raises(error, match=message):
        compute_contra_memobank_loss(**given)
    assert all(len(queue[0]) == 0 for queue in held.memobank)


def test_errors_of_the_other_functions():
    x = torch.zeros(1, CLASSES, 4, 4)
    for arguments_, message in (
        ((x, torch.zeros(1, 4, 4), 101, x), "percent: "),
        ((x, torch.zeros(1, 1, 4, 4), 80, x), "target: "),
        ((x, torch.zeros(1, 4, 4).long(), 80, x[:, 1:]), "pred_teacher: "),
    ):
        with pytest.raises(ValueError, match=message):
            compute_unsupervised_loss(*arguments_)
    with pytest.raises(ValueError, match="keys: expected"):
        dequeue_and_enqueue(torch.zeros(3), [torch.zeros(0, 3)], torch.zeros(1, dtype=torch.long), 5)
