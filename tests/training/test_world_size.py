"""One, two and four processes on the same global batch: the same losses, gradients, rings and weights.

Each number of processes is started once; what its ranks computed is compared here, with one process where the method
says that nothing changes, and with loops over all ranks' tensors where each rank draws for itself.
"""

import importlib
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tests import oracle
from tests.training.runs import FORKED
from u2pl_fast import data, ops
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.criterion import U2PLCriterion
from u2pl_fast.memory_bank import MemoryBank
from u2pl_fast.outputs import SegmentationOutput
from u2pl_fast.training.learner import Learner
from u2pl_fast.utils.distributed import Group
from u2pl_fast.utils.randomness import generator

pytestmark = pytest.mark.slow

CLASSES, WIDTH, DIM, SIZE, GRID = 5, 6, 8, (24, 28), (6, 7)
IMAGES, STEPS, EPOCHS = 4, 3, 10  # labeled images of the global batch, and as many unlabeled ones
SAMPLES = {"num_anchors": 7, "num_negatives": 9}
RANKS = {"low_rank": 3, "high_rank": 5, "positive_threshold": 0.3}
CAPACITY, CAP = 14, 10  # rings go round within two steps; four processes do not share the cap evenly
WEIGHT = torch.tensor([1.0, 0.5, 2.0, 0.0, 1.5])
LIMIT = timedelta(seconds=60)  # a collective that not every rank issues fails then, instead of hanging

contrastive_module = importlib.import_module("u2pl_fast.ops.contrastive_loss")  # the package names its function alike


# --- The criterion: what every process computes -----------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """``paper``: dense head, the teacher's keys and probabilities; else as the recipe ``lean``."""

    paper: bool = False
    scope: str = "local"
    last_rank_lacks: tuple[str, ...] = ()


CASES = {
    "lean-local": Case(),
    "lean-gather": Case(scope="gather"),
    "paper-local": Case(paper=True),
    "paper-gather": Case(paper=True, scope="gather"),
    "no-label": Case(last_rank_lacks=("labels",)),
    "nothing-reliable": Case(last_rank_lacks=("reliable",)),
    "no-anchor-local": Case(last_rank_lacks=("labels", "confident")),
    "no-anchor-gather": Case(scope="gather", last_rank_lacks=("labels", "confident")),
    "nothing-local": Case(paper=True, last_rank_lacks=("labels", "valid")),
    "nothing-gather": Case(paper=True, scope="gather", last_rank_lacks=("labels", "valid")),
}
BROKEN = {  # the last rank's teacher gives NaN
    "not-finite-local": Case(last_rank_lacks=("finite",)),
    "not-finite-gather": Case(scope="gather", last_rank_lacks=("finite",)),
}
GATHERED = [name for name, case in CASES.items() if case.scope == "gather"]


def global_batch(case: Case, world: int, step: int) -> dict[str, Tensor]:
    """Tensors of all processes, labeled images first; the last of ``world`` shares lacks what the case says."""
    g = generator(0, "batch", step)
    inputs = torch.randn(2 * IMAGES, WIDTH, *GRID, generator=g)
    labels = torch.randint(0, CLASSES, (IMAGES, *SIZE), generator=g, dtype=torch.uint8)
    teacher = 2 * torch.randn(2 * IMAGES, CLASSES, *GRID, generator=g)
    keys = torch.randn(2 * IMAGES, DIM, *GRID, generator=g)
    valid = torch.ones(IMAGES, *SIZE, dtype=torch.bool)
    for i in range(IMAGES):  # no two ranks have equally many labeled or valid pixels
        labels[i, : 5 * i] = 255
        valid[i, :, SIZE[1] - 6 * i :] = False
    last = slice(IMAGES - IMAGES // world, IMAGES)
    if "labels" in case.last_rank_lacks:
        labels[last] = 255
    if "valid" in case.last_rank_lacks:
        valid[last] = False
    if "confident" in case.last_rank_lacks:  # no class above the anchors' threshold, but reliable pixels and keys
        teacher[IMAGES:][last] *= 0.02
        valid[last] = True
    if "reliable" in case.last_rank_lacks:  # the greatest entropy in more than alpha_0 of all pixels: that is gamma
        teacher[IMAGES:][last] = 0
        valid[last] = True
    if "finite" in case.last_rank_lacks:
        teacher[IMAGES:][last] = float("nan")
    return {"inputs": inputs, "labels": labels, "teacher": teacher, "keys": keys, "valid": valid}


def share(x: Tensor, rank: int, world: int) -> Tensor:
    """A rank's labeled images, then its unlabeled ones."""
    return torch.cat([half.chunk(world)[rank] for half in x.split(IMAGES)])


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A network without layers. L_s alone reaches ``labeled``, L_u ``unlabeled``, L_c ``trunk`` and ``head``."""
    shapes = {"labeled": (CLASSES, WIDTH), "unlabeled": (CLASSES, WIDTH), "trunk": (DIM, WIDTH), "head": (DIM, DIM)}
    g = generator(0, "parameters")
    return {name: torch.randn(shape, generator=g).to(dtype).requires_grad_() for name, shape in shapes.items()}


def student_output(weights: dict[str, Tensor], inputs: Tensor, paper: bool) -> SegmentationOutput:
    def conv(weight: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", weight, x)

    labeled, unlabeled = inputs.chunk(2)
    logits = torch.cat((conv(weights["labeled"], labeled), conv(weights["unlabeled"], unlabeled)))
    project = None if paper else lambda rows: rows @ weights["head"].T
    return SegmentationOutput(logits, conv(weights["trunk"], inputs), project)


def teacher_head(rows: Tensor) -> Tensor:
    return rows @ torch.randn(DIM, DIM, generator=generator(0, "teacher head")).to(rows.dtype).T


def criterion_steps(case: Case, split: int, rank: int = 0, world: int = 1, group: Group = None) -> list[dict]:
    """What one rank sees of a few steps; ``split`` is the number of shares of which the last one lacks something."""
    crit = U2PLCriterion(
        CLASSES,
        DIM,
        contrastive_weight=1.0,
        class_weight=WEIGHT,
        weigh_pseudo_labels=not case.paper,
        label_smoothing=0.1,
        key_encoder="teacher" if case.paper else "teacher-head",
        labeled_probs="teacher" if case.paper else "student",
        bank_capacity=CAPACITY,
        max_keys_per_step=CAP,
        bank_scope=case.scope,
        group=group,
        **SAMPLES,
        **RANKS,
    )
    weights, seen = parameters(), []
    for step in range(STEPS):
        batch = {name: share(x, rank, world) for name, x in global_batch(case, split, step).items()}
        output = SegmentationOutput(batch["teacher"], batch["keys"])
        unlabeled = batch["teacher"].chunk(2)[1]
        pseudo = crit.pseudo_labels(unlabeled, batch["valid"])
        with (
            mock.patch.object(contrastive_module, "info_nce", wraps=contrastive_module.info_nce) as info_nce,
            mock.patch.object(crit.bank, "push", wraps=crit.bank.push) as push,
        ):
            losses = crit(
                student_output(weights, batch["inputs"], case.paper),
                batch["labels"],
                pseudo,
                output if case.paper else SegmentationOutput(unlabeled, project=teacher_head),
                epoch=step,
                epochs=EPOCHS,
                generator=generator(0, "draws", step, rank),
            )
        gradients = torch.autograd.grad(losses.total, list(weights.values()), allow_unused=True, materialize_grads=True)
        for gradient in gradients:
            if group is not None:  # the average, as DistributedDataParallel takes it
                dist.all_reduce(gradient, group=group)
                gradient /= world
        seen.append(
            {
                "losses": torch.stack((losses.supervised, losses.unsupervised, losses.contrastive)),
                "finite": losses.finite,
                "statistics": losses.statistics,
                "reliable": (pseudo.valid & (pseudo.entropy < losses.statistics["gamma"])).sum(),
                "centers": F.normalize(info_nce.call_args.args[2], dim=1),
                "gradients": dict(zip(weights, gradients, strict=True)),
                "offered": (*push.call_args.args, push.call_args.kwargs["draw"]),
                "rings": {name: x.clone() for name, x in crit.bank.state_dict().items()},
            }
        )
    return seen


# --- Training: what every process computes ----------------------------------------------------------------------------

TRAIN_STEPS, GLOBAL_BATCH = 4, 8  # with two images a rank no pair that is mixed is torn apart
TRAININGS = {
    "supervised": {"method": "supervised", "auxiliary": True, "label_smoothing": 0.1},
    "mean-teacher": {"method": "mean-teacher", "clip_norm": 1.0},
    "mean-teacher-accumulate": {"method": "mean-teacher", "accumulate": 2, "mix": "classmix"},
    "mean-teacher-more-unlabeled": {"method": "mean-teacher", "unlabeled_batch_size": 2 * GLOBAL_BATCH},
}
ONE_PROGRAM = {
    "method": "u2pl",
    "bank_scope": "gather",
    "bank_capacity": 40,
    "max_keys_per_step": 30,
    "bank_dtype": "bfloat16",
}


def without_batch_statistics(student: nn.Module) -> None:
    """Group norm for batch norm and no dropout, so that no image's output depends on its batch or its rank.

    In float64: rounding then turns no pixel's pseudo-label over, and what is left of a difference is a mistake.
    """
    for module in list(student.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):  # timm's have the activation inside
                norm = nn.GroupNorm(1, child.num_features)
                setattr(module, name, nn.Sequential(norm, getattr(child, "act", nn.Identity())))
            elif isinstance(child, nn.Dropout | nn.Dropout2d):
                child.p = 0.0
    student.double()


def train(options: dict, rank: int = 0, world: int = 1, group: Group = None, init=None) -> dict[str, dict[str, Tensor]]:
    """The states before and after a few steps; SGD, since AdamW makes steps of rounding as long as any other."""
    config = resolve(
        TrainConfig(
            encoder="mobilenetv3_small_050",
            crop_size=(64, 64),
            scale_range=(0.5, 1.3),  # the smaller ones are padded
            num_labeled=20,
            batch_size=GLOBAL_BATCH // world,
            unlabeled_batch_size=options.get("unlabeled_batch_size", GLOBAL_BATCH) // world,
            optimizer="sgd",
            lr=0.05,
            steps=TRAIN_STEPS,
            workers=0,
            device="cpu",
            **{name: value for name, value in options.items() if name != "unlabeled_batch_size"},
        )
    )
    split = data.split_dataset(config.build_dataset("train"), config.label_choice)
    learner = Learner(
        config,
        split.dataset.num_classes,
        split.ignore_index,
        steps=TRAIN_STEPS,
        steps_per_epoch=2,
        teacher_start=1,
        device=torch.device("cpu"),
        group=group,
        init=init,
    )
    before = {name: x.clone() for name, x in learner.student.state_dict().items()}
    options = config.loader_options(learner.student.pad_multiple)
    for batch in data.train_loader(split, options, rank, world, 0, TRAIN_STEPS):
        learner.train_step(batch)
    assert learner.skipped == 0
    parts = {"before": before, "student": learner.student.state_dict()}
    if learner.teacher is not None:
        parts["teacher"] = learner.teacher.module.state_dict()
    if learner.criterion.bank is not None:
        parts["bank"] = learner.criterion.bank.state_dict()
    return parts


# --- Starting the processes -------------------------------------------------------------------------------------------


def _process(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=LIMIT)
    here = (rank, world, dist.group.WORLD)
    results = {name: criterion_steps(case, world, *here) for name, case in (CASES | BROKEN).items()}
    results |= {name: train(options, *here, init=without_batch_statistics) for name, options in TRAININGS.items()}
    results["one program"] = train(ONE_PROGRAM, *here)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=["2-processes", "4-processes"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The results of each rank."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    processes = [FORKED.Process(target=_process, args=(rank, world, folder)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not any(process.exitcode for process in processes)
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]


@cache
def alone(name: str, split: int) -> list[dict]:
    return criterion_steps(CASES[name], split)


@cache
def trained_alone(name: str) -> dict[str, dict[str, Tensor]]:
    return train(TRAININGS[name], init=without_batch_statistics)


# --- The criterion ----------------------------------------------------------------------------------------------------


def mean_over(ranks: list[dict], name: str, step: int) -> Tensor:
    return torch.stack([rank[name][step]["losses"] for rank in ranks]).mean(0)


@pytest.mark.parametrize("name", CASES)
def test_losses_thresholds_and_centers_are_those_of_one_process(ranks, name):
    for step, expected in enumerate(alone(name, len(ranks))):
        torch.testing.assert_close(mean_over(ranks, name, step)[:2], expected["losses"][:2], rtol=1e-5, atol=1e-6)
        for rank in ranks:
            got = rank[name][step]
            assert got["finite"]
            assert torch.equal(got["statistics"]["gamma"], expected["statistics"]["gamma"])
            for key in ("lambda_u", "reliable_share"):
                torch.testing.assert_close(got["statistics"][key], expected["statistics"][key])
            torch.testing.assert_close(got["centers"], expected["centers"], rtol=1e-5, atol=1e-6)
            for loss in ("labeled", "unlabeled"):
                assert expected["gradients"][loss].norm() > 0.1
                assert oracle.relative_error(got["gradients"][loss], expected["gradients"][loss]) < 1e-5


@cache
def contrastive_oracle(case: Case, world: int) -> list[tuple[float, dict[str, Tensor]]]:
    """(L_c, its gradients) of each step, from the tensors and draws of all ranks, pixel by pixel and key by key."""
    weights = parameters(torch.float64)
    if case.scope == "gather":
        rings, cap = [oracle.Rings([CAPACITY] * CLASSES)] * world, -(-CAP // world)
    else:
        rings, cap = [oracle.Rings([CAPACITY] * CLASSES) for _ in range(world)], CAP
    out = []
    for step in range(STEPS):
        batch = global_batch(case, world, step)
        label, _, entropy = oracle.pixel_stats(batch["teacher"][IMAGES:].numpy(), SIZE, False)
        valid = batch["valid"].numpy()
        gamma = oracle.masked_quantile(entropy, valid, 1 - oracle.unreliable_share(0.2, step, EPOCHS))
        maps = (label, *oracle.partition(entropy, valid, gamma))
        on_grid = [oracle.sample_to_grid(x, GRID, False) for x in (batch["labels"].numpy().astype(int), *maps)]

        anchors, draws, vectors, sums, counts = [], [], [], np.zeros((CLASSES, DIM)), np.zeros(CLASSES)
        for rank in range(world):
            mine = {k: share(x, rank, world) for k, x in batch.items()}
            student = student_output(weights, mine["inputs"].double(), case.paper)
            rows = student.features.permute(0, 2, 3, 1).flatten(0, 2)
            if case.paper:
                keys = oracle.pixel_vectors(mine["keys"].numpy())
            else:
                rows, keys = student.project(rows), teacher_head(rows.detach()).numpy()
            logits = mine["teacher"].double().numpy()
            if not case.paper:
                logits[: len(logits) // 2] = student.logits.detach().numpy()[: len(logits) // 2]
            y, pseudo, reliable, unreliable = (share(torch.from_numpy(x), rank, world).numpy() for x in on_grid)
            none = np.zeros(y.shape, dtype=bool)
            negatives, members = oracle.contrast_sets(
                logits,
                np.concatenate((y, pseudo)),
                np.concatenate((none, reliable)),
                np.concatenate((none, unreliable)),
                len(y),
                **RANKS,
            )
            draw = ops.contrastive_draws(CLASSES, generator(0, "draws", step, rank), **SAMPLES)
            kept = [oracle.thin(pixels, cap, int(d)) for pixels, d in zip(negatives, draw.thinning, strict=True)]
            rings[rank].push(np.stack(keys), kept)
            for c, pixels in enumerate(members):
                counts[c] += len(pixels)
                for pixel in pixels:
                    sums[c] += keys[pixel]
            anchors.append(members)
            draws.append(draw)
            vectors.append(rows)

        losses = []
        for rank in range(world):
            for c, pixels in enumerate(anchors[rank]):
                fill = rings[rank].fill(c)
                if not pixels or not fill:
                    continue
                positive = torch.from_numpy(oracle.normalize(sums[c] / counts[c]))
                each = []
                for of_anchor, of_keys in zip(draws[rank].anchors[c], draws[rank].negatives[c], strict=True):
                    anchor = F.normalize(vectors[rank][pixels[int(of_anchor) * len(pixels) >> 32]], dim=0)
                    stored = [torch.from_numpy(rings[rank].slots[c][int(d) * fill >> 32]) for d in of_keys]
                    scores = torch.stack((positive, *stored)) @ anchor / 0.5
                    each.append(-scores.log_softmax(0)[0])
                losses.append(torch.stack(each).mean())
        loss = torch.stack(losses).mean()
        chosen = [weights["trunk"], weights["head"]]
        gradients = torch.autograd.grad(loss, chosen, allow_unused=True, materialize_grads=True)
        out.append((loss.item(), dict(zip(("trunk", "head"), gradients, strict=True))))
    return out


@pytest.mark.parametrize("name", CASES)
def test_contrastive_loss_is_the_mean_over_ranks_and_classes(ranks, name):
    for step, (loss, gradients) in enumerate(contrastive_oracle(CASES[name], len(ranks))):
        assert mean_over(ranks, name, step)[2].item() == pytest.approx(loss, rel=1e-5)
        for rank in ranks:
            for weight, expected in gradients.items():
                assert (expected.norm() > 1e-3) == (weight == "trunk" or not CASES[name].paper)
                assert oracle.relative_error(rank[name][step]["gradients"][weight], expected) < 1e-4


@pytest.mark.parametrize(
    ("name", "anchors", "reliable", "negatives"),
    [
        ("lean-local", True, True, True),
        ("no-label", True, True, True),
        ("nothing-reliable", True, False, True),
        ("no-anchor-local", False, True, True),
        ("no-anchor-gather", False, True, True),
        ("nothing-local", False, False, False),
        ("nothing-gather", False, False, False),
    ],
)
def test_the_last_rank_lacks_what_its_name_says(ranks, name, anchors, reliable, negatives):
    for step in range(STEPS):
        *others, last = (rank[name][step] for rank in ranks)
        assert bool(last["statistics"]["anchors"].any()) == anchors
        assert bool(last["statistics"]["negatives"].any()) == negatives
        assert bool(last["reliable"]) == reliable
        assert all(other["statistics"]["anchors"].any() and other["reliable"] for other in others)
        if name == "nothing-local":
            assert not last["rings"]["pushed"].any() and last["losses"].eq(0).all()


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_finite_on_one_rank_shuts_the_gate_on_all(ranks, name):
    for step in range(STEPS):
        for rank in ranks:
            assert not rank[name][step]["finite"] and not rank[name][step]["rings"]["pushed"].any()


# --- The bank ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATHERED)
def test_gathered_rings_are_one_bank_pushed_in_rank_order(ranks, name):
    single = MemoryBank([CAPACITY] * CLASSES, DIM, max_keys_per_step=-(-CAP // len(ranks)))
    for step in range(STEPS):
        for rank in ranks:
            features, mask, draw = rank[name][step]["offered"]
            single.push(features, mask, draw=draw)
        assert single.pushed.max() > 0
        for rank in ranks:
            rings = rank[name][step]["rings"]
            assert torch.equal(rings["pushed"], single.pushed)
            assert torch.equal(rings["bank"], ranks[0][name][step]["rings"]["bank"])
            # Not to the bit: gathered keys are normalized where they come from, and again as they enter.
            torch.testing.assert_close(rings["bank"], single.bank, rtol=0, atol=2e-7)
    assert single.pushed.max() > CAPACITY  # went round


# --- Training ---------------------------------------------------------------------------------------------------------


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([x.flatten().double() for x in state.values() if x.is_floating_point()])


@pytest.mark.parametrize("name", TRAININGS)
def test_training_ends_at_the_same_weights(ranks, name):
    expected = trained_alone(name)
    for part in expected.keys() - {"before"}:
        moved = flat(expected[part]) - flat(expected["before"])
        for rank in ranks:
            assert all(torch.equal(x, ranks[0][name][part][key]) for key, x in rank[name][part].items())
            difference = flat(rank[name][part]) - flat(expected[part])
            assert difference.norm() < 1e-11 * moved.norm(), f"{part}: {difference.norm() / moved.norm():.1e}"


def test_ranks_hold_one_student_one_teacher_and_one_bank(ranks):
    """With batch norm, whose buffers differ between ranks until the first one's are sent round."""
    first = ranks[0]["one program"]
    assert first["bank"]["pushed"].any() and any("running_var" in name for name in first["teacher"])
    for rank in ranks[1:]:
        for part, state in rank["one program"].items():
            differing = [key for key, x in state.items() if not torch.equal(x, first[part][key])]
            assert not differing, f"{part}: {len(differing)} tensors differ, first {differing[0]}"
