"""Images, a checkpoint with random weights, and the commands called on them."""

import numpy as np
import pytest
import torch
from PIL import Image

from u2pl_fast import predict
from u2pl_fast.config import TrainConfig, resolve
from u2pl_fast.models import build_model
from u2pl_fast.saving import checkpoint

NAMES = ["sky", "road", "tree", "a rather long class name"]


def make_checkpoint(path, root, *, num_classes=4, class_names=NAMES, teacher=True, **settings):
    settings = {"dataset": "folder", "data_root": root, "crop_size": (48, 48), "encoder_weights": "none"} | settings
    config = resolve(TrainConfig(encoder="resnet10t", representation_dim=8, projection_width=8, **settings))
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model(config, num_classes)
        model.classifier.weight.data *= 20  # else every class is as likely as the next
        weights.append(model.state_dict())
    state = {
        "config": config.to_dict(),
        "num_classes": num_classes,
        "class_names": list(class_names),
        "network": "teacher" if teacher else "student",
        "student": weights[0],
        "teacher": weights[1] if teacher else None,
        "step": 3,
    }
    checkpoint.save(path, state)
    return path


def make_data(root):
    """Four validation images of two sizes, one ignored column each."""
    rng = np.random.default_rng(0)
    (root / "classes.txt").write_text("\n".join(NAMES))
    for kind in ("images", "labels"):
        (root / kind / "val").mkdir(parents=True)
    for index, (height, width) in enumerate([(50, 70), (50, 70), (33, 64), (50, 70)]):
        coarse = rng.integers(len(NAMES), size=(5, 7))
        label = coarse[np.arange(height)[:, None] * 5 // height, np.arange(width) * 7 // width].astype(np.uint8)
        label[:, 0] = 255
        image = (label[..., None] * 50 + rng.integers(0, 40, (height, width, 3))).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / "val" / f"{index}.png")
        Image.fromarray(label).save(root / "labels" / "val" / f"{index}.png")
    return root


def failure(command, arguments):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        command.main([str(argument) for argument in arguments])
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ") and "\n" not in message
    return message


def run_predict(trained, out, *images, **options):
    config = predict.PredictConfig(images=tuple(map(str, images)), checkpoint=trained, out=out, device="cpu", **options)
    return predict.run(config)
