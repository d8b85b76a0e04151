"""L_c as a CUDA graph: the capture must not move the bank, and a replay must be a step like any other."""

import pytest
import torch
from test_criterion import batch, criterion, losses

from u2pl_fast.randomness import generator


@pytest.fixture
def stand_in(monkeypatch):
    """Does with a function what capturing does before it records: three runs on the samples, with gradients."""
    captures = []

    def make_graphed_callables(module, samples):
        wanted = [x for x in (*samples, *module.parameters()) if x.requires_grad]
        for _ in range(3):
            outputs = module(*samples)
            torch.autograd.grad(outputs[0], wanted, allow_unused=True)
        captures.append(module)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return captures


def steps(crit, device="cpu", count=3):
    """Losses, gradients of features and head, and the bank, after each of some steps."""
    seen = []
    head, teacher_head = (batch(seed)[0].project.to(device) for seed in (0, 1))
    crit = crit.to(device)
    for step in range(count):
        student, labels, pseudo, teacher = batch(step)
        features = student.features.detach().to(device).requires_grad_()
        student = student._replace(logits=student.logits.to(device), features=features, project=head)
        if step == 0 and crit._captured is not None:
            crit.capture_contrastive(head)
        head.zero_grad()
        parts = (
            student,
            labels.to(device),
            type(pseudo)(*(x.to(device) for x in pseudo)),
            teacher._replace(logits=teacher.logits.to(device), project=teacher_head),
        )
        got = losses(crit, parts, generator=generator(step, "d", device=device))
        got.total.backward()
        seen += [got.total.detach().clone(), features.grad, head.weight.grad.clone(), crit.bank.bank.clone()]
        seen += [x.clone() for x in got.statistics.values()]
        with torch.no_grad():
            teacher_head.weight.lerp_(head.weight, 0.5)  # as the EMA does, in place: a replay must see it
    return seen


@pytest.mark.parametrize("negatives", ["per_anchor", "shared", "full"])
def test_capturing_changes_nothing(stand_in, negatives):
    plain, captured = (criterion(negatives=negatives, key_encoder="teacher-head") for _ in range(2))
    captured.capture_contrastive(None)
    for got, want in zip(steps(captured), steps(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert len(stand_in) == 1 and any(True for _ in stand_in[0].parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("negatives", ["per_anchor", "full"])
def test_cuda_graph_replays_steps(negatives):
    plain, captured = (criterion(negatives=negatives, key_encoder="teacher-head") for _ in range(2))
    captured.capture_contrastive(None)
    for got, want in zip(steps(captured, "cuda"), steps(plain, "cuda"), strict=True):
        torch.testing.assert_close(got, want)


def test_several_processes_are_refused():
    crit = criterion()
    crit.group = object()
    with pytest.raises(ValueError, match="group"):
        crit.capture_contrastive(None)
