"""Flags, help and names of settings."""

import dataclasses
import re

import pytest
import yaml

from u2pl_fast.config import TrainConfig, class_capacities, help_texts, resolve, upgraded
from u2pl_fast.config.capacity import capacity_entries
from u2pl_fast.doctor.settings import DoctorConfig
from u2pl_fast.evaluate import EvaluateConfig
from u2pl_fast.export import ExportConfig
from u2pl_fast.predict import PredictConfig
from u2pl_fast.report import ReportConfig
from u2pl_fast.train import parse
from u2pl_fast.utils.command_line import parse as parse_flags
from u2pl_fast.utils.fields import groups
from u2pl_fast.utils.renamed import RENAMED

CONFIGS = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "doctor": DoctorConfig,
}


def help_of(kind, command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        parse_flags(kind, ["--help"], command=command, description="")
    return capsys.readouterr().out


@pytest.mark.parametrize("command", CONFIGS)
def test_every_flag_has_help(command, capsys, monkeypatch):
    kind = CONFIGS[command]
    shown = help_of(kind, command, capsys, monkeypatch)
    texts = help_texts(kind)
    for field in dataclasses.fields(kind):
        text = texts.get(field.name) or field.metadata["help"]
        assert len(text) > 4, field.name
        assert re.search(rf"--{field.name.replace('_', '-')}\b", shown) or field.name in ("images", "run"), field.name
        assert re.sub(r"\W+", "", text) in re.sub(r"\W+", "", shown), field.name


def test_the_help_of_train_is_grouped(capsys, monkeypatch):
    shown = help_of(TrainConfig, "train", capsys, monkeypatch)
    titles = re.findall(r"^\W+ (\w+) options \W+$", shown, re.MULTILINE)
    assert titles == ["data", "network", "method", "bank", "optimization", "machine", "run", "expert"]
    fields = [field.name for _, group in groups(TrainConfig) for field in dataclasses.fields(group)]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(TrainConfig))


def test_the_help_of_a_flag_is_in_its_group(capsys, monkeypatch):
    shown = help_of(TrainConfig, "train", capsys, monkeypatch)
    bank = shown[shown.index(" bank options ") : shown.index(" optimization options ")]
    assert "--bank-capacity KEYS [CLASS:KEYS ...]" in bank and "--lr" not in bank


@pytest.mark.parametrize(
    ("flags", "amp"),
    [
        ([], "off"),
        (["--amp"], "bfloat16"),
        (["--amp", "--steps", "3"], "bfloat16"),
        (["--amp", "float16"], "float16"),
        (["--amp=float16"], "float16"),
        (["--amp", "off"], "off"),
    ],
)
def test_amp(flags, amp):
    assert parse(flags).amp == amp


def test_amp_before_an_image():
    flags = ["--checkpoint", "a.pt", "--out", "b", "--amp", "a.jpg", "b.jpg"]
    config = parse_flags(PredictConfig, flags, command="predict", description="")
    assert (config.amp, config.images) == ("bfloat16", ("a.jpg", "b.jpg"))


@pytest.mark.parametrize(
    ("written", "amp"), [("off", "off"), ("on", "bfloat16"), ("true", "bfloat16"), ("float16", "float16")]
)
def test_amp_in_yaml(written, amp):
    assert TrainConfig.from_dict(yaml.safe_load(f"amp: {written}")).amp == amp


def test_ohem():
    assert parse(["--ohem", "0.7", "1000"]).ohem == (0.7, 1000) and parse([]).ohem is None
    assert TrainConfig.from_dict({"ohem": [0.6, 50]}).ohem == (0.6, 50)
    with pytest.raises(ValueError, match="ohem now holds two numbers"):
        TrainConfig.from_dict({"ohem": True})


@pytest.mark.parametrize("name", RENAMED)
def test_earlier_names_are_refused_with_the_new_one(name):
    with pytest.raises(ValueError, match=re.escape(f"--{name.replace('_', '-')} has a new name; use {RENAMED[name]}")):
        parse([f"--{name.replace('_', '-')}", "1"])
    with pytest.raises(ValueError, match=re.escape(f"a.yaml: {name} has a new name; use {RENAMED[name]}")):
        TrainConfig.from_dict({name: 1}, "a.yaml")


def test_new_names_are_settings():
    known = {field.name for kind in CONFIGS.values() for field in dataclasses.fields(kind)}
    for now in RENAMED.values():
        assert {flag.replace("-", "_") for flag in re.findall(r"--([a-z][\w-]*)", now)} <= known


# --- bank capacity ----------------------------------------------------------------------------------------------------


def test_capacities():
    assert class_capacities(capacity_entries(30), 3) == [30, 30, 30]
    assert class_capacities(capacity_entries(["30", "0:50", "2:1"]), 3) == [50, 30, 1]
    assert parse(["--bank-capacity", "30", "0:50"]).bank_capacity == ("30", "0:50")
    assert TrainConfig.from_dict({"bank_capacity": 30}).bank_capacity == ("30",)
    assert TrainConfig.from_dict({"bank_capacity": [30, "0:50"]}).bank_capacity == ("30", "0:50")
    with pytest.raises(ValueError, match="bank_capacity: 3:5 names class 3; expected 0..2"):
        class_capacities(("1", "3:5"), 3)


@pytest.mark.parametrize(
    "given",
    [0, -1, "a", "0:5", "5 6", "5 1:0", "5 :3", "5 1:", "5 1:2:3", "", "5 1:2 1:3"],
    ids=lambda given: repr(given),
)
def test_capacities_of_another_form_are_refused(given):
    with pytest.raises(ValueError, match="bank_capacity: expected the keys of each class"):
        capacity_entries(given.split() if isinstance(given, str) else given)


def test_an_unquoted_exception_in_yaml_is_refused():
    with pytest.raises(ValueError, match="bank_capacity: expected a number, or a list of one and quoted exceptions"):
        TrainConfig.from_dict(yaml.safe_load("bank_capacity: [30000, 1:20]"))


# --- runs of earlier versions -----------------------------------------------------------------------------------------


def old(**changed):
    saved = resolve(TrainConfig(dataset="voc", encoder_weights="none")).to_dict()
    for name in ("protocol", "alpha", "amp", "ohem", "bank_capacity"):
        del saved[name]
    defaults = {
        "eval_protocol": "whole",
        "alpha_0": 0.2,
        "amp": False,
        "amp_dtype": "bfloat16",
        "ohem": False,
        "ohem_threshold": 0.7,
        "ohem_min_kept": 100_000,
        "bank_capacity": 30_000,
        "background_class": 0,
        "background_capacity": 50_000,
    }
    return saved | defaults | changed


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"eval_protocol": "slide", "alpha_0": 0.3}, {"protocol": "slide", "alpha": 0.3}),
        ({"amp": True, "amp_dtype": "float16"}, {"amp": "float16"}),
        ({"amp": False, "amp_dtype": "float16"}, {"amp": "off"}),
        ({"ohem": True, "ohem_min_kept": 500}, {"ohem": (0.7, 500)}),
        ({"background_class": None}, {"bank_capacity": ("30000",)}),
        ({"background_class": 2, "background_capacity": 7}, {"bank_capacity": ("30000", "2:7")}),
        ({"background_capacity": 30_000}, {"bank_capacity": ("30000",)}),
    ],
)
def test_settings_of_an_earlier_version_are_translated(changed, expected):
    now = resolve(TrainConfig(dataset="voc", encoder_weights="none"))
    assert TrainConfig.from_saved(old(**changed)) == dataclasses.replace(now, **expected)


def test_todays_settings_stay():
    saved = resolve(TrainConfig(ohem=(0.7, 5), amp="float16", bank_capacity=("3", "1:4"))).to_dict()
    assert upgraded(saved) == saved
