"""Test L_c as a CUDA graph: capture does not change the bank, and a replay equals a normal step."""

import pytest
import torch

from tests.method.cases import batch, criterion, losses
from u2pl_fast.utils.randomness import generator


@pytest.fixture
def stand_in(monkeypatch):
    """Replace ``torch.cuda.make_graphed_callables`` on the CPU; return the inputs of every replay.

    Like the original, it runs the module three times before the capture, replays from one set of tensors into another,
    and returns these without a copy: the next replay overwrites results and gradients.
    """
    replays = []

    def make_graphed_callables(module, samples):
        forward = module.forward
        surface = (*samples, *module.parameters())
        wanted = [x for x in surface if x.requires_grad]

        def run():
            with torch.enable_grad():
                outputs = forward(*samples)
            return outputs, [x for x in outputs if x.requires_grad]

        for _ in range(3):
            _, ends = run()
            torch.autograd.grad(ends, wanted, [torch.empty_like(x) for x in ends])
        outputs, ends = run()
        results = [x.detach().clone() for x in outputs]
        end_gradients = [torch.empty_like(x) for x in ends]
        gradients = [torch.zeros_like(x) for x in torch.autograd.grad(ends, wanted, end_gradients)]

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *inputs):
                replays.append(inputs[: len(samples)])
                with torch.no_grad():
                    for sample, value in zip(samples, inputs, strict=False):
                        sample.copy_(value)
                outputs, ctx.ends = run()
                for result, value in zip(results, outputs, strict=True):
                    result.copy_(value.detach())
                return tuple(result.detach() for result in results)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, *received):
                received = [g for g, output in zip(received, outputs, strict=True) if output.requires_grad]
                for kept, value in zip(end_gradients, received, strict=True):
                    kept.copy_(value)
                for kept, value in zip(gradients, torch.autograd.grad(ctx.ends, wanted, end_gradients), strict=True):
                    kept.copy_(value)
                given = iter(gradients)
                return tuple(next(given).detach() if x.requires_grad else None for x in surface)

        module.forward = lambda *inputs: Graphed.apply(*inputs, *module.parameters())
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return replays


def steps(crit, device="cpu", count=3, accumulate=1):
    """Return losses, gradients of features and head, and the bank, after each of some steps."""
    seen = []
    head, teacher_head = (batch(seed)[0].project.to(device) for seed in (0, 1))
    crit = crit.to(device)
    for step in range(count):
        student, labels, pseudo, teacher = batch(step)
        features = student.features.detach().to(device).requires_grad_()
        student = student._replace(logits=student.logits.to(device), features=features, project=head)
        if step == 0 and crit._graph is not None:
            crit.capture_contrastive(head)
        if step % accumulate == 0:
            head.zero_grad()
        parts = (
            student,
            labels.to(device),
            type(pseudo)(*(x.to(device) for x in pseudo)),
            teacher._replace(logits=teacher.logits.to(device), project=teacher_head),
        )
        got = losses(crit, parts, generator=generator(step, "d", device=device))
        got.total.backward()
        seen += [got.total.detach(), got.contrastive, *got.statistics.values()]
        seen += [x.clone() for x in (features.grad, head.weight.grad, crit.bank.bank)]
        with torch.no_grad():
            teacher_head.weight.lerp_(head.weight, 0.5)  # in place like the EMA: a replay must use the new values
    return seen


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("negatives", ["per_anchor", "shared", "full"])
def test_capturing_changes_nothing(stand_in, negatives, accumulate):
    plain, captured = (criterion(negatives=negatives, key_encoder="teacher-head") for _ in range(2))
    captured.capture_contrastive(None)
    got, want = (steps(crit, accumulate=accumulate) for crit in (captured, plain))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len(stand_in) == 3


@pytest.mark.parametrize(("key_encoder", "copies"), [("teacher-head", 1), ("student", 1), ("teacher", 2)])
def test_features_that_are_also_the_keys_enter_the_graph_once(stand_in, key_encoder, copies):
    crit = criterion(key_encoder=key_encoder)
    student, labels, pseudo, teacher = batch()
    labeled = batch(1)[3].logits
    teacher = teacher._replace(
        logits=torch.cat((labeled, teacher.logits)), features=student.features.detach().clone(), project=student.project
    )
    crit.capture_contrastive(student.project)
    losses(crit, (student, labels, pseudo, teacher))
    (inputs,) = stand_in
    assert sum(x.shape == student.features.shape for x in inputs) == copies


@pytest.mark.gpu
@pytest.mark.parametrize(("negatives", "accumulate"), [("per_anchor", 1), ("full", 1), ("per_anchor", 3)])
def test_cuda_graph_replays_steps(negatives, accumulate):
    plain, captured = (criterion(negatives=negatives, key_encoder="teacher-head") for _ in range(2))
    captured.capture_contrastive(None)
    got, want = (steps(crit, "cuda", accumulate=accumulate) for crit in (captured, plain))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_several_processes_raise():
    crit = criterion()
    crit.group = object()
    with pytest.raises(ValueError, match="group"):
        crit.capture_contrastive(None)
