"""``python -m u2pl_fast.train``: supervised, mean-teacher and U²PL training in one loop.

A step takes as many labelled as unlabelled images. The teacher looks at the weak views, its maps are mixed along with
the strong views, the student sees labelled and mixed images in one forward pass, and the criterion gives the losses.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import tyro
import yaml
from torch import Tensor, nn

from . import checkpoint, data, mixing, ops
from .config import TrainConfig, resolve
from .criterion import Losses, PseudoLabels, U2PLCriterion
from .distributed import Group, all_true, broadcast_buffers, rank, session, world_size
from .inference import evaluate_model
from .models import build_model
from .optim import BufferGuard, build_optimizer, gated_step, gradient_norm, set_learning_rate
from .outputs import SegmentationOutput
from .randomness import generator, stream
from .reference import partition, sample_to_grid
from .runlog import RunLog
from .teacher import EMATeacher

Autocast = Callable[[], torch.autocast]


class StudentLoss(nn.Module):
    """The student's forward and the whole loss in one forward, so that data-parallel wrapping sees every parameter."""

    def __init__(self, student: nn.Module, criterion: U2PLCriterion, autocast: Autocast) -> None:
        super().__init__()
        self.student = student
        self._autocast = autocast
        self._criterion = [criterion]  # hidden from nn.Module: each process keeps a bank of its own

    def forward(self, images: Tensor, labels: Tensor, pseudo: PseudoLabels | None, teacher, **options) -> Losses:
        with self._autocast():
            output = self.student(images, representations=teacher is not None)
        if output.project is not None:
            output = output._replace(project=self._autocast()(output.project))
        losses = self._criterion[0](output, labels, pseudo, teacher, **options)
        if teacher is None and self.student.projection is not None:
            idle = sum(p.sum() for p in self.student.projection.parameters())
            losses.total = losses.total + 0 * idle
        return losses


class Trainer:
    """Everything that a run holds; ``fit`` is the loop."""

    def __init__(self, config: TrainConfig, device: torch.device, group: Group) -> None:
        self.config, self.device, self.group = config, device, group
        self.rank, self.world = rank(group), world_size(group)
        self.amp_dtype = getattr(torch, config.amp_dtype) if config.amp else None
        self.semi = config.method != "supervised"

        self.split = data.training_data(config)
        self.val = data.build_dataset(config.dataset, config.data_root, "val", classes_from=self.split.dataset)
        dataset = self.split.dataset
        self.num_classes, self.ignore_index = dataset.num_classes, self.split.ignore_index
        self.steps_per_epoch = self.split.steps_per_epoch(config.batch_size * self.world)
        self.steps = config.steps or max(1, round(config.epochs * self.steps_per_epoch))
        self.epochs = self.steps / self.steps_per_epoch
        if config.sup_only_epochs is None:
            config.sup_only_epochs = 0.0 if self.epochs < 4 else 1.0
        self.teacher_start = round(config.sup_only_epochs * self.steps_per_epoch)
        _check_batch(config)

        torch.manual_seed(stream(config.seed, "weights"))
        self.student = build_model(config, self.num_classes).to(device)
        if config.channels_last:
            self.student = self.student.to(memory_format=torch.channels_last)
        if self.world > 1 and device.type == "cuda" and config.sync_batchnorm:
            self.student = nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
        if config.init_from is not None:
            self._init_from(config.init_from)
        self.teacher = EMATeacher(self.student, config.ema_momentum) if self.semi else None
        self.criterion = build_criterion(config, self.num_classes, self.ignore_index, group).to(device)
        self.optimizer = build_optimizer(self.student, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype == torch.float16)

        self.step = 0
        self.best_miou = -1.0
        self.scores: dict = {}
        self.seconds = 0.0
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self.stop_requested = False

    # --- The loop -----------------------------------------------------------------------------------------------------

    def fit(self, log: RunLog) -> None:
        """Train from ``self.step`` to the end, or to where the run is told to stop."""
        config = self.config
        loss_module: nn.Module = StudentLoss(self.student, self.criterion, self._autocast)
        if self.group is not None:
            loss_module = nn.parallel.DistributedDataParallel(loss_module, broadcast_buffers=False)
        parameters = list(self.student.parameters())
        buffers = BufferGuard(self.student)
        stop = self.steps if config.stop_after is None else min(self.steps, config.stop_after)
        batches = data.train_loader(
            self.split, config, self.rank, self.world, self.step, stop, self.student.pad_multiple
        )
        self.student.train()
        window_ok = torch.ones((), dtype=torch.bool, device=self.device)
        waited = 0.0
        started = waiting_since = time.perf_counter()

        for batch in batches:
            waited += time.perf_counter() - waiting_since
            step, batch = self.step, self._to_device(batch)
            torch.manual_seed(stream(config.seed, "forward", step, self.rank))
            lr_factor = set_learning_rate(self.optimizer, step, self.steps, config.poly_power)
            first_of_window = step % config.accumulate == 0
            last_of_window = (step + 1) % config.accumulate == 0 or step + 1 == self.steps
            if first_of_window:
                buffers.save()
                window_ok.fill_(True)
            if self.teacher is not None and step == self.teacher_start:
                self.teacher.restart(self.student)

            images, pseudo, teacher, draws = batch["images"], None, None, None
            if self.teacher is not None and step >= self.teacher_start:
                strong, pseudo, teacher = self._teach(batch, step)
                images = torch.cat((images, strong))
                if self.criterion.bank is None:
                    teacher = None
                draws = generator(config.seed, "draws", step, self.rank, device=self.device)
            if config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)

            with nullcontext() if last_of_window or self.group is None else loss_module.no_sync():
                losses = loss_module(
                    images,
                    batch["labels"],
                    pseudo,
                    teacher,
                    epoch=step // self.steps_per_epoch,
                    epochs=self.epochs,
                    generator=draws,
                )
                self.scaler.scale(losses.total / config.accumulate).backward()
            window_ok &= losses.finite
            if last_of_window:
                self._update(parameters, buffers, window_ok)

            self.step = step + 1
            stopping = self._agree_to_stop()
            at_end = self.step == stop or stopping
            if self.step % config.log_every == 0 or at_end:
                self.seconds += time.perf_counter() - started
                self._log(log, losses, lr_factor, waited)
                started, waited = time.perf_counter(), 0.0
                self._check_skipped()
            if self.step % config.eval_every == 0 or self.step == self.steps:
                self.seconds += time.perf_counter() - started
                self._evaluate(log)
                self._pictures(log, batch, images, pseudo, losses)
                started = time.perf_counter()
            if self.step % config.save_every == 0 or at_end:
                self.save(config.out / "last.pt")
                log.restart_clock(self.step)
            if stopping:
                break
            waiting_since = time.perf_counter()

    def _teach(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, PseudoLabels, SegmentationOutput]:
        """The teacher's pass over weak views, then one mask that moves images, maps and outputs together."""
        config, weak = self.config, batch["weak"]
        num_labeled = batch["images"].shape[0]
        with_labeled = self.criterion.needs_labeled_teacher
        inputs = torch.cat((batch["images"], weak)) if with_labeled else weak
        if config.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        represent = self.criterion.bank is not None and config.key_encoder == "teacher"
        with torch.no_grad(), self._autocast():
            output = self.teacher.module(inputs, representations=represent)
        if output.project is not None:
            output = output._replace(project=self._autocast()(output.project))
        unlabeled = output.logits[num_labeled:] if with_labeled else output.logits
        pseudo = self.criterion.pseudo_labels(unlabeled, batch["valid"])
        strong = batch["strong"]
        if config.mix == "none":
            return strong, pseudo, output

        first = int(batch["unlabeled_index"][0])
        mask = mixing.region_masks(
            config.mix,
            pseudo.label,
            seed=config.seed,
            step=step,
            first_index=first,
            mix_prob=config.mix_prob,
            num_classes=self.num_classes,
        )
        if config.mix == "cutout":
            return strong, pseudo._replace(valid=pseudo.valid & ~mask), output
        partner = mixing.partner_index(first, len(weak), device=mask.device)
        pseudo = PseudoLabels(*(mixing.mix(x, partner, mask) for x in pseudo))

        def mix_on_grid(x: Tensor) -> Tensor:
            grid_mask = sample_to_grid(mask, x.shape[-2:], align_corners=config.align_corners)
            if not with_labeled:
                return mixing.mix(x, partner, grid_mask)
            return torch.cat((x[:num_labeled], mixing.mix(x[num_labeled:], partner, grid_mask)))

        features = None if output.features is None else mix_on_grid(output.features)
        output = output._replace(logits=mix_on_grid(output.logits), features=features)
        return mixing.mix(strong, partner, mask), pseudo, output

    def _update(self, parameters: list[nn.Parameter], buffers: BufferGuard, ok: Tensor) -> None:
        """Optimiser and teacher move where all is finite, and nothing does where it isn't."""
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(parameters)
        ok = all_true(ok & norm.isfinite(), self.group)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        gated_step(self.optimizer, ok)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        buffers.restore_unless(ok)
        broadcast_buffers(self.student, self.group)
        if self.teacher is not None and self.step >= self.teacher_start:
            self.teacher.update(self.student, gate=ok)
        self.skipped += ~ok
        self.skipped_in_a_row = torch.where(ok, 0, self.skipped_in_a_row + 1)

    @property
    def _teacher_began(self) -> bool:
        """Whether the teacher follows the student yet; before that it is an untrained copy."""
        return self.teacher is not None and self.step > self.teacher_start

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None)

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        on_host = ("labeled_index", "unlabeled_index")
        return {k: v if k in on_host else v.to(self.device, non_blocking=True) for k, v in batch.items()}

    # --- Telling ------------------------------------------------------------------------------------------------------

    def _log(self, log: RunLog, losses: Losses, lr_factor: float, waited: float) -> None:
        ops.check_label_errors(self.device)
        values = {
            "loss": losses.total.item(),
            "supervised": losses.supervised.item(),
            "unsupervised": losses.unsupervised.item(),
            "contrastive": losses.contrastive.item(),
            "lr": self.config.lr * lr_factor,
            "epoch": self.step / self.steps_per_epoch,
            "skipped": self.skipped.item(),
            "loader_wait_seconds": waited,
        }
        values |= {name: value.tolist() for name, value in losses.statistics.items()}
        per_step = self.config.batch_size * (2 if self.semi else 1) * self.world
        log.record(self.step, values, images_per_step=per_step)

    def _check_skipped(self) -> None:
        if self.skipped_in_a_row.item() > self.config.max_skipped:
            raise FloatingPointError(
                f"{self.skipped_in_a_row.item()} updates in a row had a loss or gradient that is not finite; "
                "the last good state is in last.pt. Lower --lr, set --clip-norm 1, or use --amp-dtype bfloat16"
            )

    def _evaluate(self, log: RunLog) -> None:
        networks = {"student": self.student}
        if self._teacher_began:
            networks["teacher"] = self.teacher.module
        results = {}
        for name, network in networks.items():
            results[name] = evaluate_model(
                network,
                data.evaluation_samples(self.val, self.config.resize, self.rank, self.world),
                num_classes=self.num_classes,
                ignore_index=self.ignore_index,
                device=self.device,
                protocol=self.config.eval_protocol,
                window=self.config.crop_size,
                amp_dtype=self.amp_dtype,
                channels_last=self.config.channels_last,
                group=self.group,
            )
        network = list(results)[-1]
        self.scores = {"miou": results[network]["miou"], "iou_per_class": results[network]["iou_per_class"]}
        self.scores["network"] = network
        each = {f"miou_{name}": result["miou"] for name, result in results.items()}
        log.evaluated(self.step, each | {"iou_per_class": self.scores["iou_per_class"]})
        if self.scores["miou"] > self.best_miou:
            self.best_miou = self.scores["miou"]
            self.save(self.config.out / "best.pt")

    def _pictures(self, log: RunLog, batch: dict, images: Tensor, pseudo: PseudoLabels | None, losses: Losses) -> None:
        maps = {"labeled/image": batch["images"], "labeled/label": batch["labels"]}
        if pseudo is not None:
            maps |= {
                "unlabeled/mixed": images[len(batch["images"]) :],
                "unlabeled/pseudo_label": pseudo.label,
                "unlabeled/entropy": pseudo.entropy,
                "unlabeled/reliable": partition(pseudo.entropy, pseudo.valid, losses.statistics["gamma"])[0],
            }
        log.pictures(self.step, maps, self.num_classes)

    def _agree_to_stop(self) -> bool:
        """Whether any process was asked to stop; processes ask each other only where they log."""
        if self.group is None:
            return self.stop_requested
        if self.step % self.config.log_every:
            return False
        return not bool(all_true(torch.tensor(not self.stop_requested, device=self.device), self.group))

    # --- State --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that a resumed run needs; the step number is the whole random state and the loader's position."""
        teacher = None if self.teacher is None else self.teacher.state_dict()
        return {
            "config": self.config.to_dict(),
            "num_classes": self.num_classes,
            "class_names": list(self.split.dataset.class_names),
            "network": "teacher" if self._teacher_began else "student",
            "student": self.student.state_dict(),
            "teacher": None if teacher is None else teacher["module"],
            "teacher_updates": 0 if teacher is None else teacher["updates"],
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bank": None if self.criterion.bank is None else self.criterion.bank.state_dict(),
            "best_miou": self.best_miou,
            "scores": self.scores,
            "seconds": self.seconds,
            "skipped": int(self.skipped),
            "skipped_in_a_row": int(self.skipped_in_a_row),
            "world_size": self.world,
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; with a bank per process, each further process writes its ring beside it first."""
        bank = self.criterion.bank
        own_ring = self.world > 1 and bank is not None and bank.scope == "local"
        if own_ring and self.rank:
            checkpoint.save(self._ring_path(path, self.step), {"step": self.step, "bank": bank.state_dict()})
        if self.group is not None:
            dist.barrier(group=self.group)
        if self.rank == 0:
            checkpoint.save(path, self.state_dict())
            for old in path.parent.glob(f"{path.stem}.ring*.pt"):
                if not old.name.endswith(f".step{self.step}.pt"):
                    old.unlink(missing_ok=True)

    def _ring_path(self, path: Path, step: int) -> Path:
        return path.with_name(f"{path.stem}.ring{self.rank}.step{step}.pt")

    def load(self, path: Path) -> None:
        """Take up the run that ``path`` holds, exactly where it was."""
        state = checkpoint.load(path)
        checkpoint.check_layout(state, path)
        checkpoint.check_match(state, self.student, num_classes=self.num_classes, source=path)
        _check_same_run(state, self.config, self.world, path)
        self.student.load_state_dict(state["student"])
        if self.teacher is not None:
            self.teacher.load_state_dict({"module": state["teacher"], "updates": state["teacher_updates"]})
        bank = self.criterion.bank
        if bank is not None:
            ring = state["bank"]
            if self.rank and bank.scope == "local":
                ring = checkpoint.load(self._ring_path(path, state["step"]))["bank"]
            bank.load_state_dict(ring)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.best_miou, self.scores = state["step"], state["best_miou"], state["scores"]
        self.seconds = state["seconds"]
        self.skipped.fill_(state["skipped"])
        self.skipped_in_a_row.fill_(state["skipped_in_a_row"])

    def _init_from(self, path: Path) -> None:
        """Start from the evaluated network of another run; heads of another shape keep their fresh weights."""
        state = checkpoint.load(path)
        checkpoint.check_layout(state, path)
        weights = state[state["network"]] or state["student"]
        own = self.student.state_dict()
        fitting = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
        if not any(name.startswith("encoder.") for name in fitting):
            raise ValueError(f"init_from: {path} holds no encoder that fits {self.config.arch}/{self.config.encoder}")
        self.student.load_state_dict(fitting, strict=False)

    def metrics(self) -> dict:
        return {
            "miou": self.scores.get("miou"),
            "last_miou": self.scores.get("miou"),
            "best_miou": self.best_miou if self.best_miou >= 0 else None,
            "iou_per_class": self.scores.get("iou_per_class"),
            "network": self.scores.get("network"),
            "world_size": self.world,
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "skipped": int(self.skipped),
        }


def build_criterion(config: TrainConfig, num_classes: int, ignore_index: int, group: Group = None) -> U2PLCriterion:
    """The criterion of a resolved config; without a bank unless the method is u2pl."""
    capacities = [config.bank_capacity] * num_classes
    if config.background_class is not None:
        if not 0 <= config.background_class < num_classes:
            raise ValueError(f"background_class: expected 0..{num_classes - 1}, got {config.background_class}")
        capacities[config.background_class] = config.background_capacity
    return U2PLCriterion(
        num_classes,
        config.representation_dim if config.method == "u2pl" else None,
        ignore_index=ignore_index,
        alpha_0=config.alpha_0,
        unsupervised_weight=config.unsupervised_weight,
        unsupervised_weight_cap=config.unsupervised_weight_cap,
        contrastive_weight=config.contrastive_weight,
        positive_threshold=config.positive_threshold,
        low_rank=config.low_rank,
        high_rank=config.high_rank,
        num_anchors=config.num_anchors,
        num_negatives=config.num_negatives,
        negatives=config.negatives,
        temperature=config.temperature,
        key_encoder=config.key_encoder,
        labeled_probs=config.labeled_probs,
        bank_capacity=capacities,
        max_keys_per_step=config.max_keys_per_step,
        bank_dtype=getattr(torch, config.bank_dtype),
        bank_scope=config.bank_scope,
        class_weight=_class_weights(config.class_weights, num_classes),
        label_smoothing=config.label_smoothing,
        ohem=(config.ohem_threshold, config.ohem_min_kept) if config.ohem else None,
        align_corners=config.align_corners,
        group=group,
    )


def _class_weights(path: Path | None, num_classes: int) -> Tensor | None:
    if path is None:
        return None
    try:
        weights = torch.tensor([float(line) for line in path.read_text().split()])
    except (OSError, ValueError) as error:
        raise ValueError(f"class_weights: cannot read {path}: {error}") from error
    if len(weights) != num_classes or not (weights >= 0).all() or not weights.isfinite().all():
        raise ValueError(f"class_weights: {path} must hold {num_classes} finite numbers ≥ 0, one a class")
    return weights


def _check_batch(config: TrainConfig) -> None:
    """A decoder that pools the whole image to one pixel has nothing to normalise over in a batch of one."""
    images = config.batch_size
    if images == 1 and config.arch in ("deeplabv3", "deeplabv3plus", "pspnet", "pan"):
        raise ValueError(
            f"batch_size: {config.arch} pools each image to one pixel and batch norm needs two of them; "
            "use --batch-size 2 or more"
        )


# Settings that may differ between a run and its continuation without changing what is computed.
FREE_ON_RESUME = {
    "out", "resume", "stop_after", "workers", "threads", "cache", "save_every", "log_every", "eval_every",
    "data_root", "device", "encoder_weights", "init_from", "max_skipped",
}  # fmt: skip


def _check_same_run(state: dict, config: TrainConfig, world: int, path: Path) -> None:
    saved, now = state["config"], config.to_dict()
    changed = sorted(name for name in now if name not in FREE_ON_RESUME and saved.get(name) != now[name])
    if changed:
        listed = ", ".join(f"{name} was {saved.get(name)}, now {now[name]}" for name in changed)
        raise ValueError(f"resume: {path} belongs to a run with other settings ({listed}); use them, or another --out")
    if state["world_size"] != world:
        raise ValueError(
            f"resume: {path} was written by {state['world_size']} processes, now there are {world}; "
            "use as many, or start a new run with --init-from"
        )


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the step end and saves; a second one interrupts at once."""

    def request(number: int, _) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    numbers = (signal.SIGINT, signal.SIGTERM)
    try:
        before = {number: signal.signal(number, request) for number in numbers}
    except ValueError:  # not in the main thread: whoever runs us there handles signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(config: TrainConfig) -> dict:
    """Train as ``config`` says. Returns what ``metrics.json`` holds.

    Raises:
        ValueError: a setting, file or folder cannot be used; the message names it.
        FloatingPointError: too many steps in a row were not finite.
    """
    config = resolve(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with session(config.device) as (device, group):
        try:
            config.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"out: cannot create {config.out}: {error.strerror}") from error
        last = config.out / "last.pt"
        if last.exists() and not config.resume:
            raise ValueError(f"out: {config.out} already holds a run; go on with --resume, or choose another --out")
        trainer = Trainer(config, device, group)
        if config.eval_every is None:
            config.eval_every = max(1, trainer.steps // 5)
        if config.resume and last.exists():
            trainer.load(last)
        log = RunLog(config.out, trainer.step, trainer.steps, active=trainer.rank == 0)
        if trainer.rank == 0:
            (config.out / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
        _introduce(log, trainer)
        try:
            with _stopping_on_signals(trainer):
                trainer.fit(log)
        finally:
            log.close()
        metrics = trainer.metrics()
        if trainer.rank == 0:
            (config.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
        if trainer.step < trainer.steps:
            log.say(
                f"stopped and saved at step {trainer.step} of {trainer.steps}; go on with the same command and --resume"
            )
        return metrics


def _introduce(log: RunLog, trainer: Trainer) -> None:
    """What is about to be trained, before the first step."""
    config, bank = trainer.config, trainer.criterion.bank
    method = f"u2pl ({config.recipe})" if config.method == "u2pl" else config.method
    log.say(f"{method} on {config.dataset}: {trainer.split.describe()}")

    millions = sum(p.numel() for p in trainer.student.parameters()) / 1e6
    network = [f"{config.arch}/{config.encoder}", f"{trainer.num_classes} classes", f"{millions:.1f} M parameters"]
    network += [str(trainer.device)] + [config.amp_dtype] * config.amp + ["channels_last"] * config.channels_last
    log.say(", ".join(network))

    batch = config.batch_size * trainer.world
    log.say(f"{trainer.steps} steps = {trainer.epochs:.1f} epochs of {trainer.steps_per_epoch}")
    if trainer.semi:
        log.say(f"global batch {batch} labelled + {batch} unlabelled; teacher from step {trainer.teacher_start}")
    else:
        log.say(f"global batch {batch} labelled")
    if bank is not None:
        log.say(f"memory bank: {bank.extra_repr()}")
    if trainer.world > 1 and trainer.device.type == "cpu":
        log.say("batch norm statistics are each process's own: synchronised batch norm needs GPUs")
    if trainer.step:
        log.say(f"resumed at step {trainer.step}")


def main(arguments: list[str] | None = None) -> None:
    """Parse flags over an optional YAML file, train, and turn bad input into one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = parse(arguments)
        metrics = run(config)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    if int(os.environ.get("RANK", 0)) == 0 and metrics["miou"] is not None:
        print(f"mIoU {metrics['miou']:.4f} ({metrics['network']}, best {metrics['best_miou']:.4f}), "
              f"{metrics['seconds']:.0f} s, in {config.out}")  # fmt: skip


def parse(arguments: list[str]) -> TrainConfig:
    """``--config FILE.yaml`` gives the defaults, the other flags override them."""
    arguments = list(arguments)
    default = TrainConfig()
    for position, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            inline = "=" in argument
            if not inline and position + 1 == len(arguments):
                raise ValueError("config: --config needs a file")
            path = argument.split("=", 1)[1] if inline else arguments[position + 1]
            del arguments[position : position + (1 if inline else 2)]
            default = TrainConfig.from_yaml(Path(path))
            break
    return tyro.cli(TrainConfig, args=arguments, default=default, prog="python -m u2pl_fast.train", description=__doc__)


if __name__ == "__main__":
    main()
