"""Batches are a function of (seed, step, rank, world): workers, restarts and caching change nothing."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from u2pl_fast.config import TrainConfig
from u2pl_fast.data import (
    DataError,
    FolderDataset,
    LabelChoice,
    Shapes,
    StepDataset,
    ViewOptions,
    evaluation_samples,
    split_dataset,
    train_loader,
)
from u2pl_fast.data import loader as loader_module

OPTIONS = ViewOptions((24, 40), multiple=16)


def small_split(number: int = 5, length: int = 12):
    return split_dataset(Shapes("train", size=(32, 48), length=length), LabelChoice(num_labeled=number))


def batches(split, start: int, stop: int, multiple: int = 1, **settings) -> list[dict]:
    """Return the batches of a training with these settings."""
    defaults = {"device": "cpu", "crop_size": (24, 40), "scale_range": (0.5, 2.0), "batch_size": 2, "workers": 0}
    options = TrainConfig(**(defaults | settings)).loader_options(multiple)
    return list(train_loader(split, options, 0, 1, start, stop))


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert first[name].dtype == second[name].dtype and torch.equal(first[name], second[name]), name


def test_a_batch_has_the_promised_fields():
    batch = StepDataset(small_split(), OPTIONS, seed=0, batch_size=3)[0]
    expected = {
        "images": ((3, 3, 32, 48), torch.uint8),
        "labels": ((3, 32, 48), torch.uint8),
        "labeled_index": ((3,), torch.int64),
        "weak": ((3, 3, 32, 48), torch.uint8),
        "strong": ((3, 3, 32, 48), torch.uint8),
        "valid": ((3, 32, 48), torch.bool),
        "unlabeled_index": ((3,), torch.int64),
        "window": ((3, 10), torch.int64),
    }
    assert {name: (tuple(x.shape), x.dtype) for name, x in batch.items()} == expected


def test_further_strong_views_leave_the_rest_as_it_was():
    one = StepDataset(small_split(), OPTIONS, seed=0, batch_size=2)[1]
    two = StepDataset(small_split(), OPTIONS, seed=0, batch_size=2, strong_views=2)[1]
    first, second = two.pop("strong").chunk(2)
    assert torch.equal(first, one.pop("strong")) and not torch.equal(first, second)
    assert_same(one, two)


def test_more_unlabeled_images_leave_the_labeled_ones_as_they_were():
    split = small_split()
    few = [StepDataset(split, OPTIONS, seed=0, batch_size=2)[step] for step in range(6)]
    many = StepDataset(split, OPTIONS, seed=0, batch_size=2, unlabeled_batch_size=6)
    ranks = [StepDataset(split, OPTIONS, seed=0, batch_size=1, unlabeled_batch_size=3, rank=r, world=2) for r in (0, 1)]
    for step in (0, 1):
        batch, shares = many[step], [dataset[step] for dataset in ranks]
        assert_same({name: torch.cat([share[name] for share in shares]) for name in batch}, batch)
        for name in ("images", "labels", "labeled_index"):
            assert torch.equal(batch[name], few[step][name])
        assert len(batch["strong"]) == len(batch["valid"]) == 6
        same = range(3 * step, 3 * step + 3)  # the same images in the same order, seen by other steps
        assert torch.equal(batch["window"][:, 0], torch.cat([few[s]["window"][:, 0] for s in same]))
        assert torch.equal(batch["unlabeled_index"], torch.cat([few[s]["unlabeled_index"] for s in same]))


def test_windows_name_the_image_and_lie_in_it():
    split = small_split()
    batch = StepDataset(split, OPTIONS, seed=0, batch_size=4)[2]
    for index, top, left, height, width, *_, flip, image_height, image_width in batch["window"].tolist():
        assert index in split.unlabeled and split.dataset.image(index).shape[:2] == (image_height, image_width)
        assert 0 <= top <= image_height - height and 0 <= left <= image_width - width and flip in (0, 1)


def test_supervised_batches_are_the_labeled_half():
    both = StepDataset(small_split(), OPTIONS, seed=0, batch_size=2)[4]
    alone = StepDataset(small_split(), OPTIONS, seed=0, batch_size=2, semi=False)[4]
    assert_same(alone, {name: both[name] for name in ("images", "labels", "labeled_index")})
    (batch,) = batches(small_split(), 4, 5, method="supervised")
    assert set(batch) == set(alone)


@pytest.mark.slow
def test_workers_restarts_and_caching_change_no_bit():
    split = small_split()
    expected = batches(split, 0, 8, 16, cache=False)
    assert len(expected) == 8
    with_workers = batches(split, 0, 8, 16, workers=2)
    restarted = batches(split, 3, 8, 16, workers=2)
    cached = StepDataset(split, OPTIONS, seed=0, batch_size=2, cache_bytes=10**8)
    backwards = [cached[step] for step in reversed(range(8))][::-1]  # the second time from the cache
    for step in range(8):
        assert_same(with_workers[step], expected[step])
        assert_same(backwards[step], expected[step])
        assert_same(cached[step], expected[step])
    for step in range(3, 8):
        assert_same(restarted[step - 3], expected[step])
    assert not torch.equal(expected[0]["images"], expected[1]["images"])


def test_the_number_of_threads_changes_no_bit():
    steps = StepDataset(small_split(), OPTIONS, seed=0, batch_size=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = [steps[step] for step in range(4)]
        torch.set_num_threads(2)
        for step in range(4):
            assert_same(steps[step], expected[step])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_one_global_batch(world):
    split = small_split()
    alone = StepDataset(split, OPTIONS, seed=1, batch_size=4)
    ranks = [StepDataset(split, OPTIONS, seed=1, batch_size=4 // world, rank=r, world=world) for r in range(world)]
    for step in (0, 3):
        shares = [dataset[step] for dataset in ranks]
        joined = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
        assert_same(joined, alone[step])
        assert joined["unlabeled_index"].tolist() == list(range(4 * step, 4 * step + 4))


def test_settings_reach_the_strong_view():
    off = {"jitter_prob": 0.0, "grayscale_prob": 0.0, "blur_prob": 0.0}

    def batch(**options):
        (found,) = batches(small_split(), 3, 4, **(off | options))
        return found

    assert torch.equal(batch()["strong"], batch()["weak"])
    for name in off:
        found = batch(**{name: 1.0})
        assert torch.equal(found["weak"], batch()["weak"]) and not torch.equal(found["strong"], found["weak"]), name


def test_every_pass_shows_each_image_once_in_another_order():
    """Colored by their index, images can be counted over three passes, which end in the middle of batches."""

    class Numbered(Shapes):
        def image(self, index):
            return np.full((8, 8, 3), index, np.uint8)

        def label(self, index):
            return np.full((8, 8), index % 6, np.uint8)

    split = split_dataset(Numbered("train", length=12), LabelChoice(num_labeled=5))
    plain = ViewOptions((8, 8), scale_range=(1, 1))
    steps = StepDataset(split, plain, seed=0, batch_size=3)
    batches = [steps[step] for step in range(10)]
    for field, indices in (("images", split.labeled), ("weak", split.unlabeled)):
        seen = torch.cat([batch[field][:, 0, 0, 0] for batch in batches]).tolist()
        n = len(indices)
        passes = [seen[k : k + n] for k in range(0, 30 - n, n)]
        assert len(passes) >= 3 and all(sorted(part) == list(indices) for part in passes)
        assert passes[0] != passes[1]
    for batch in batches:
        assert torch.equal(batch["labels"][:, 0, 0], batch["images"][:, 0, 0, 0] % 6)


def test_the_cache_is_bounded_and_not_written_to():
    split = small_split()
    image_bytes = 3 * 32 * 48
    steps = StepDataset(split, OPTIONS, seed=0, batch_size=4, cache_bytes=3 * image_bytes + 100)
    for step in range(6):
        steps[step]
    cache = steps._samples
    kept = [*cache._images.values(), *cache._labels.values()]
    assert kept and sum(x.nbytes for x in kept) <= 3 * image_bytes + 100
    for index, image in cache._images.items():
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), split.dataset.image(index))
    empty = StepDataset(split, OPTIONS, seed=0, batch_size=4)
    empty[0]
    assert not empty._samples._images and not empty._samples._labels


@pytest.mark.slow
def test_workers_use_one_thread_and_leave_the_global_generator_alone():
    class Threads(Shapes):
        def image(self, index):
            return np.full((8, 8, 3), torch.get_num_threads(), np.uint8)

    split = split_dataset(Threads("train", length=4), LabelChoice(num_labeled=2))
    before = torch.get_rng_state()
    (batch,) = batches(split, 0, 1, crop_size=(8, 8), scale_range=(1, 1), workers=1)
    assert (batch["weak"] == 1).all()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_a_file_that_breaks_during_training_is_one_short_message(tmp_path, workers):
    for kind, shape in (("images", (64, 64, 3)), ("labels", (64, 64))):
        (tmp_path / kind / "train").mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 2, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / kind / "train" / "a.png")
    split = split_dataset(FolderDataset(tmp_path, "train"))
    path = tmp_path / "images/train/a.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        batches(split, 0, 1, workers=workers, batch_size=1)
    assert str(caught.value).startswith(f"{path}: not a readable image") and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_loader_process_that_dies_is_one_short_message(monkeypatch):
    split = small_split()
    monkeypatch.setattr(type(split.dataset), "image", lambda self, index: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="workers: a loader process died.*fewer --workers") as caught:
        batches(split, 0, 1, workers=1)
    assert "\n" not in str(caught.value)


def test_no_steps_left_is_an_empty_loader():
    assert batches(small_split(), 7, 7) == []


def test_default_workers_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _: set(range(12)))
    assert loader_module._default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loader_module._default_workers() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert loader_module._default_workers() == 0


# --- Evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_shows_each_image_once_in_order_with_its_own_label():
    dataset = Shapes("val", size=(32, 48), length=21)
    samples = list(evaluation_samples(dataset, (16, 24)))
    assert [name for _, _, name in samples] == dataset.names
    for i in (0, 20):
        image, label, _ = samples[i]
        assert image.shape == (3, 16, 24) and image.dtype == torch.uint8
        np.testing.assert_array_equal(label.numpy(), dataset.label(i))
    image, _, _ = next(iter(evaluation_samples(dataset)))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), dataset.image(0))


def test_evaluation_shares_have_no_image_twice():
    dataset = Shapes("val", size=(32, 48), length=10)
    shares = [[name for _, _, name in evaluation_samples(dataset, None, rank, 4)] for rank in range(4)]
    assert [len(share) for share in shares] == [3, 3, 2, 2]
    assert sorted(sum(shares, [])) == dataset.names


def test_evaluation_errors_name_the_file(tmp_path):
    (tmp_path / "images/val").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/val/a.png")
    dataset = FolderDataset(tmp_path, "val", class_names=["a", "b"])
    with pytest.raises(DataError, match="labels/val/a.png"):
        list(evaluation_samples(dataset))
