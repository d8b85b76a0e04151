"""Each setting's bound, fallback and flags are at its field, and everything else reads them there."""

import dataclasses

import pytest
import torch

from u2pl_fast.config import (
    BOUNDS,
    CRITERION,
    DATA_SETTINGS,
    FALLBACKS,
    FREE_ON_RESUME,
    TrainConfig,
    resolve,
    resolve_for_data,
    training_steps,
)
from u2pl_fast.data import ViewOptions
from u2pl_fast.doctor.settings import DoctorConfig, doctor_command, settings_of
from u2pl_fast.utils.fields import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE


def test_what_the_fields_say():
    assert set(DATA_SETTINGS) == {
        *("dataset", "data_root", "labeled_fraction", "num_labeled", "labeled_list", "unlabeled_list", "label_map"),
        *("low_rank", "seed", "in_channels", "value_range"),
    }
    assert FREE_ON_RESUME == {
        *("out", "resume", "stop_after", "workers", "threads", "cache", "save_every", "log_every", "eval_every"),
        *("data_root", "device", "encoder_weights", "init_from", "teacher_from", "max_skipped", "checkpoint_encoder"),
    }
    assert all(getattr(TrainConfig(), name) is None for name in FALLBACKS)


OUTSIDE = {SHARE: (-0.01, 1.01), POSITIVE: (0, -1), AT_LEAST_1: (0, -1), NOT_NEGATIVE: (-1,)}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_out_of_bounds_is_refused_by_name(name):
    for number in OUTSIDE[BOUNDS[name]]:
        with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {number}"):
            resolve(TrainConfig(**{name: number}))


def test_the_criterion_s_defaults_are_those_of_a_training():
    config = resolve(TrainConfig(dataset="folder", encoder_weights="none"))
    own = {f.name for f in dataclasses.fields(config)} & set(CRITERION) - {"ohem", "bank_dtype", "bank_capacity"}
    assert len(own) >= 20
    assert {name: getattr(config, name) for name in own} == {name: CRITERION[name] for name in own}
    assert config.alpha == CRITERION["alpha_0"] and config.bank_capacity == (str(CRITERION["bank_capacity"]),)
    assert getattr(torch, config.bank_dtype) == CRITERION["bank_dtype"]


def test_the_views_of_a_training():
    config = resolve(TrainConfig(dataset="folder", encoder_weights="none", crop_size=(8, 9)))
    assert config.loader_options(4).views == ViewOptions((8, 9), 4)


def test_what_depends_on_the_size_of_the_data_set():
    config = TrainConfig(epochs=2.5)
    assert training_steps(config, 10) == 25 and training_steps(TrainConfig(steps=7), 10) == 7
    assert training_steps(TrainConfig(epochs=0.001), 10) == 1
    resolved = resolve_for_data(config, 10)
    assert (resolved.sup_only_epochs, resolved.eval_every, resolved.steps) == (0.0, 5, None)
    assert resolve_for_data(TrainConfig(steps=40), 10).sup_only_epochs == 1.0
    given = TrainConfig(steps=3, sup_only_epochs=0.5, eval_every=2)
    assert resolve_for_data(given, 10) == given and resolve_for_data(TrainConfig(steps=3), 10).eval_every == 1
    assert config.eval_every is None


def test_the_doctor_has_the_settings_of_the_data():
    names = [field.name for field in dataclasses.fields(DoctorConfig)]
    assert names == [*DATA_SETTINGS, "config", "max_files", "json"]
    settings = settings_of(DoctorConfig(dataset="folder", label_map=("0:0", "255:1"), seed=3))
    assert (settings.dataset, settings.label_map, settings.seed) == ("folder", ("0:0", "255:1"), 3)
    command = doctor_command(settings)
    assert command == "u2pl doctor --dataset folder --label-map 0:0 255:1 --seed 3"
