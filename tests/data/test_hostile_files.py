"""Files as people have them: damaged, mislabeled, from other tools. Each is read right, or refused by name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from u2pl_fast.config import TrainConfig
from u2pl_fast.data import DataError, FolderDataset, LabelChoice, read_image, split_dataset
from u2pl_fast.data.base import Entry
from u2pl_fast.data.files import check_sizes, read_mask
from u2pl_fast.data.splits import read_list

SIZE = (6, 8)  # height, width
ORIENTATION = 0x0112
# What a viewer does to the stored pixels for each EXIF orientation.
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


def picture(seed: int = 0, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def ids(seed: int = 0, size=SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, size, dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def gray_png(path: Path, samples: np.ndarray, bits: int) -> Path:
    """A gray PNG with this many bits a sample, as other writers than PIL make them."""
    packed = np.unpackbits(samples[..., None], axis=-1)[..., -bits:].reshape(len(samples), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(packed, axis=1))
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, 0, 0, 0, 0)
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return path


@pytest.fixture
def root(tmp_path) -> Path:
    """Two labeled images of three classes and one that has no mask."""
    root = tmp_path / "data"
    for seed, name in enumerate("abc"):
        save(root / "images" / "train" / f"{name}.png", picture(seed))
        if name != "c":
            save(root / "labels" / "train" / f"{name}.png", ids(seed))
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    return root


# --- Damaged files ----------------------------------------------------------------------------------------------------


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    Image.fromarray(picture(size=(12, 16))).save(file, kind, **options)
    return file.getvalue()


SUFFIX = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "PPM": "ppm"}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
@pytest.mark.parametrize("kind", SUFFIX)
def test_damaged_images_are_read_or_refused_by_name(tmp_path_factory, kind, data) -> None:
    """Bytes overwritten, removed or cut off anywhere: an image, or a DataError, and nothing else."""
    content = bytearray(encoded(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["overwrite", "cut", "remove"])):
            case "overwrite":
                content[at] = data.draw(st.integers(0, 255))
            case "cut":
                del content[max(at, 1) :]
            case "remove":
                del content[at : at + data.draw(st.integers(1, 9))]
        content = content or bytearray(b"\0")
    path = tmp_path_factory.getbasetemp() / f"damaged.{SUFFIX[kind]}"
    path.write_bytes(content)
    for read in (read_image, read_mask, lambda path: check_sizes(path, None)):
        try:
            read(path)
        except DataError as error:
            assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<html>404</html>", bytes(1000)])
def test_what_is_no_image(tmp_path, content) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=f"^{path}: not a readable image"):
            read(path)


def test_a_folder_named_like_an_image(root) -> None:
    with pytest.raises(DataError, match="not a readable image"):
        read_image(root)


# --- What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_image_and_mask_turn_alike(tmp_path, orientation) -> None:
    """All eight orientations, of the image alone and of a mask that carries one too."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = picture(size=(16, 24))
    path = save(tmp_path / "a.png", stored, exif=exif)
    upright = UPRIGHT[orientation](stored)
    np.testing.assert_array_equal(read_image(path), upright)
    smooth = np.repeat(np.linspace(0, 255, 24).astype(np.uint8)[None], 16, 0)
    photo = save(tmp_path / "b.jpg", np.repeat(smooth[..., None], 3, 2), exif=exif, quality=95)
    assert np.abs(read_image(photo)[..., 0].astype(int) - UPRIGHT[orientation](smooth)).max() <= 6
    turned = save(tmp_path / "turned.png", ids(size=(16, 24)), exif=exif)
    np.testing.assert_array_equal(read_mask(turned), UPRIGHT[orientation](ids(size=(16, 24))))
    drawn_on_the_upright_image = save(tmp_path / "upright.png", ids(size=upright.shape[:2]))
    for mask in (turned, drawn_on_the_upright_image):
        check_sizes(path, mask)
        check_sizes(photo, mask)


def test_one_pixel(root) -> None:
    for kind, pixels in (("images", picture(size=(1, 1))), ("labels", np.full((1, 1), 2, np.uint8))):
        save(root / kind / "train" / "a.png", pixels)
    dataset = split_dataset(FolderDataset(root, "train")).dataset
    assert dataset.image(0).shape == (1, 1, 3) and dataset.label(0).tolist() == [[2]]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_photographs_that_are_not_rgb(tmp_path, mode) -> None:
    gray = np.full((*SIZE, 3), 90, np.uint8)
    image = read_image(save(tmp_path / "a.jpg", gray, mode, quality=95))
    assert image.shape == (*SIZE, 3) and np.abs(image.astype(int) - 90).max() <= 3


@pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
def test_other_color_spaces_are_converted_or_refused(tmp_path, mode) -> None:
    path = tmp_path / "a.tif"
    Image.frombytes(mode, SIZE[::-1], picture().tobytes()).save(path)
    try:
        assert read_image(path).shape == (*SIZE, 3)
    except DataError as error:
        assert str(error).startswith(f"{path}: ")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_masks_of_few_colors(tmp_path, bits) -> None:
    label = ids() % 2 if bits == 1 else ids()
    mask = Image.frombytes("P", SIZE[::-1], label.tobytes())
    mask.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    mask.save(tmp_path / "a.png", bits=bits, transparency=0)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), label)


def test_one_bit_masks_hold_two_classes(tmp_path) -> None:
    np.testing.assert_array_equal(read_mask(gray_png(tmp_path / "a.png", ids() % 2, 1)), ids() % 2)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "b.png", ids() % 2 == 1)), ids() % 2)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_below_8_bits_are_refused(tmp_path, bits) -> None:
    """Their samples are brightnesses: id 1 of a 4-bit mask is read as 17, and as 1 by the next program."""
    path = gray_png(tmp_path / "a.png", ids(), bits)
    with pytest.raises(DataError, match=f"^{path}: a gray mask with {bits} bits .*8"):
        read_mask(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_masks_with_lossy_compression_are_refused(tmp_path, name) -> None:
    """JPEG moves ids to their neighbors, most of them still classes."""
    path = save(tmp_path / name, ids(), format="JPEG")
    with pytest.raises(DataError, match=f"^{path}: a JPEG mask.*PNG"):
        read_mask(path)


@pytest.mark.parametrize("value", [3, 254, 256, 65534])
def test_16_bit_ids_out_of_range(root, value) -> None:
    label = ids().astype(np.uint16)
    label[2, 3] = value
    path = save(root / "labels/train/a.png", label)
    with pytest.raises(DataError, match=rf"^{path}: class id {value} \(row 2, column 3\)"):
        FolderDataset(root, "train").label(0)


# --- Text files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lists_from_other_editors(root, tmp_path, newline) -> None:
    """A byte order mark, other line ends, blank lines, spaces, and the same image twice."""
    file = tmp_path / "list.txt"
    lines = ["b", "", "  a  ", "   ", "# c", "images/train/a.png labels/train/a.png", "b", ""]
    file.write_bytes(b"\xef\xbb\xbf" + newline.join(lines).encode())
    assert read_list(file)[:2] == [Entry("b", None), Entry("a", None)]
    split = split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=file))
    assert (split.labeled, split.unlabeled) == ((0, 1), (2,))


def test_two_masks_for_one_image_are_refused(root, tmp_path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("images/train/a.png labels/train/a.png\nimages/train/a.png labels/train/b.png\n")
    with pytest.raises(DataError, match=f"^{file}: .*images/train/a.png.* two masks"):
        split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=file))


@pytest.mark.parametrize("content", [b"\xff\xfea\x00\n\x00", b"caf\xe9\n", b"a\x00b\n"])
def test_lists_that_are_no_text(root, tmp_path, content) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"^{file}: "):
        split_dataset(FolderDataset(root, "train"), LabelChoice(labeled_list=file))


@pytest.mark.parametrize("way", ["absolute", "relative"])
def test_a_list_may_name_files_outside_the_root(root, tmp_path, way) -> None:
    """As documented: a path is absolute or relative to the root. Only what the list names is read, and it is a file."""
    outside = save(tmp_path / "elsewhere" / "x.png", picture(9))
    name = str(outside) if way == "absolute" else os.path.relpath(outside, root)
    (tmp_path / "list.txt").write_text(f"{name}\n")
    split = split_dataset(FolderDataset(root, "train"), LabelChoice(unlabeled_list=tmp_path / "list.txt"))
    np.testing.assert_array_equal(split.dataset.image(split.unlabeled[-1]), picture(9))
    (tmp_path / "list.txt").write_text(f"{Path(name).parent}\n")
    with pytest.raises(DataError, match="neither an id of the split"):
        split_dataset(FolderDataset(root, "train"), LabelChoice(unlabeled_list=tmp_path / "list.txt"))


def test_class_names_from_other_editors(root) -> None:
    (root / "classes.txt").write_bytes(b"\xef\xbb\xbfsky\r\nroad \r\n\r\ncar\r\n")
    assert FolderDataset(root, "train").class_names == ["sky", "road", "car"]
    (root / "classes.txt").write_bytes(b"sky\ncaf\xe9\n")
    with pytest.raises(DataError, match="classes.txt: .*UTF-8"):
        FolderDataset(root, "train")


def test_a_link_to_a_folder_above_does_not_repeat_the_images(root) -> None:
    (root / "images/train/again").symlink_to(root / "images/train", target_is_directory=True)
    with pytest.raises(DataError, match="images/train/again: .*link"):
        FolderDataset(root, "train")


# --- Configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system", "!include"],
)
def test_yaml_runs_nothing(tmp_path, monkeypatch, tag) -> None:
    ran = []
    monkeypatch.setattr(os, "system", ran.append)
    file = tmp_path / "c.yaml"
    for content in (f"{tag} ['x']", f"lr: {tag} ['x']", f"- {tag} ['x']", f"{tag} x"):
        file.write_text(content)
        with pytest.raises(ValueError, match=f"^config: {file} is not valid YAML"):
            TrainConfig.from_yaml(file)
    assert not ran


@pytest.mark.parametrize(
    "content", [b"lr: \xff\xfe", b"\x00\x01", b"1: 2\nlr: 0.1", b"? [a]\n: 1", b"lr: [1, 2", b"a: &a *a"]
)
def test_yaml_that_is_no_configuration(tmp_path, content) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=str(file)):
        TrainConfig.from_yaml(file)


def test_yaml_from_other_editors(tmp_path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\xef\xbb\xbflr: 0.5\r\nout: \xc3\xa9t\xc3\xa9\r\n")
    config = TrainConfig.from_yaml(file)
    assert config.lr == 0.5 and config.out == Path("été")


def test_yaml_values_that_python_would_take(tmp_path) -> None:
    """YAML reads 1e-3 as text, it wants 1.0e-3; a fraction is a number to it."""
    file = tmp_path / "c.yaml"
    file.write_text("lr: 1e-3\nlabeled_fraction: 0.125\nprojection: conv\nsteps: null\nscale_range: [1, 2]\n")
    config = TrainConfig.from_yaml(file)
    assert (config.lr, config.labeled_fraction, config.projection, config.steps) == (1e-3, "0.125", "conv", None)
    assert config.scale_range == (1.0, 2.0)


@pytest.mark.parametrize(
    "line",
    [
        "lr: fast",
        "lr: true",
        "projection: fancy",
        "method: 3",
        "batch_size: '4'",
        "data_root: 7",
        "crop_size: 512",
        "ohem: 'no'",
    ],
)
def test_yaml_values_of_another_type(tmp_path, line) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(line)
    name = line.partition(":")[0]
    with pytest.raises(ValueError, match=f"^{file}: {name}"):
        TrainConfig.from_yaml(file)
