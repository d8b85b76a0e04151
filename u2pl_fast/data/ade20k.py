"""`ade20k`: the 150 classes of the scene parsing challenge, ADEChallengeData2016."""

from collections.abc import Sequence
from pathlib import Path

from .base import DataError
from .folder import FolderDataset
from .masks import LabelMap, MaskValues
from .pair_dataset import find_root

# The first name of each class in objectInfo150.txt.
ADE20K_CLASSES = tuple(
    name.strip()
    for name in """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
    seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
    pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
    light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
    pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
    food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
    sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
    glass, clock, flag
    """.split(",")
)
NAMES_FILE = "objectInfo150.txt"
SPLIT_FOLDERS = {"train": "training", "val": "validation"}
SHIFTED = (
    "; masks that hold 0 .. 149, and 255 for ignore, are shifted by one: use the original annotations, or "
    "--label-map 0-149:0-149 255:ignore"
)


class Ade20kDataset(FolderDataset):
    """One split: `images/training/*.jpg` with `annotations/training/*.png`, and `validation` for "val".

    Mask value 0 is ignored, 1 .. 150 are classes 0 .. 149. Class names come from `objectInfo150.txt` in the data root
    if it exists. The data root is ADEChallengeData2016 or the folder that holds it.
    """

    layout = "images/<training|validation>/ and annotations/<training|validation>/"
    masks_name = "annotations"

    def __init__(
        self,
        root: Path | str,
        split: str,
        *,
        class_names: Sequence[str] | None = None,
        label_map: LabelMap | None = None,
    ) -> None:
        folder = find_root(root, ("ADEChallengeData2016",), "images", self.layout)
        own = read_object_info(folder / NAMES_FILE)
        super().__init__(folder, split, class_names=class_names, own_classes=own, label_map=label_map)
        self._bases += (Path(root),)
        if label_map is None:
            count = self.num_classes
            targets: dict[int, int | None] = {0: None} | {index + 1: index for index in range(count)}
            self._values = MaskValues(
                targets, count, accepted=f"0 for ignore, or 1 .. {count} for the classes", fix=SHIFTED
            )

    @staticmethod
    def folder_of(split: str) -> str:
        return SPLIT_FOLDERS.get(split, split)


def read_object_info(file: Path) -> tuple[str, ...]:
    """Return the first name of each class in objectInfo150.txt, or the built-in names if there is no such file."""
    if not file.is_file():
        return ADE20K_CLASSES
    try:
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        names = {int(row[0]): row[-1].partition(",")[0].strip() for row in rows if row[0].strip().isdigit()}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a readable table in UTF-8 ({error})") from error
    if list(names) != list(range(1, len(ADE20K_CLASSES) + 1)) or not all(names.values()):
        raise DataError(
            f"{file}: expected {len(ADE20K_CLASSES)} rows of tab-separated columns, the first of them 1 .. "
            f"{len(ADE20K_CLASSES)} and the last the names; restore the original file, or delete it"
        )
    return tuple(names.values())
