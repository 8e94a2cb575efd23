"""Scanning folders, matching class folders to labels, subsets, batches, fingerprints, ImageNet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyvit_edge.data import ImageDataset, at_a_time, fingerprint, load_batches, scan_folder
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.imagenet import (
    imagenet_labels,
    imagenet_wnids,
    synonyms_of_wnid,
)
from tinyvit_edge.preprocessing import Preprocessing, decode, preprocess

IMAGENETTE = {  # WordNet id -> (class of ImageNet-1k, label)
    "n01440764": (0, "tench"),
    "n02102040": (217, "English springer"),
    "n02979186": (482, "cassette player"),
    "n03000684": (491, "chain saw"),
    "n03028079": (497, "church"),
    "n03394916": (566, "French horn"),
    "n03417042": (569, "garbage truck"),
    "n03425413": (571, "gas pump"),
    "n03445777": (574, "golf ball"),
    "n03888257": (701, "parachute"),
}


def save(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 7), (value % 256, 2, 3)).save(path)


def folder_of(root: Path, *names: str, images: int = 1) -> Path:
    for name in names:
        for number in range(images):
            save(root / name / f"{number:03}.png", number)
    return root


def classes(dataset: ImageDataset) -> dict[str, int | None]:
    return {sample.path.parent.name: sample.label for sample in dataset.samples}


def test_imagenet_list() -> None:
    """Oracle: ten published rows, and that class order is the order of the WordNet ids."""
    wnids, labels = imagenet_wnids(), imagenet_labels()
    assert len(set(wnids)) == len(labels) == 1000
    assert list(wnids) == sorted(wnids)
    for wnid, (index, label) in IMAGENETTE.items():
        assert (wnids[index], labels[index], synonyms_of_wnid(wnid)[0]) == (wnid, label, label)
    assert (labels[-1], synonyms_of_wnid("n01440764")) == (
        "toilet tissue",
        ("tench", "Tinca tinca"),
    )
    with pytest.raises(DataError, match="n00000000"):
        synonyms_of_wnid("n00000000")


def test_flat_folder_is_sorted_and_unlabelled(tmp_path: Path) -> None:
    """Oracle: names in code point order; hidden files and litter are not in it."""
    for name in ("b.png", "a.PNG", "c.jpeg", ".hidden.png"):
        save(tmp_path / name)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(b"litter")
    (tmp_path / ".cache").mkdir()
    dataset = scan_folder(tmp_path, ["cat", "dog"])
    assert [sample.path.name for sample in dataset.samples] == ["a.PNG", "b.png", "c.jpeg"]
    assert {sample.label for sample in dataset.samples} == {None}
    assert (dataset.labelled, len(dataset)) == (False, 3)


def test_image_folder_without_labels_is_unlabelled(tmp_path: Path) -> None:
    """Oracle: folder names alone say nothing about a model's classes."""
    dataset = scan_folder(folder_of(tmp_path, "zebra", "ant"))
    assert classes(dataset) == {"ant": None, "zebra": None}
    assert not dataset.labelled


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("tench", 2), ("TENCH", 2), ("Tinca tinca", 2), ("tench, Tinca tinca", 2), ("golf_ball", 0)],
)
def test_label_names_and_synonyms(tmp_path: Path, folder: str, expected: int) -> None:
    """Oracle: rule 1, by hand."""
    labels = ["golf ball", "church", "tench, Tinca tinca"]
    dataset = scan_folder(folder_of(tmp_path, folder, "Church"), labels)
    assert classes(dataset) == {folder: expected, "Church": 1}
    assert dataset.labelled


def test_case_tells_a_dog_from_a_garment(tmp_path: Path) -> None:
    """Oracle: ImageNet's classes 264 (Cardigan) and 474 (cardigan)."""
    full_names = [", ".join(synonyms_of_wnid(wnid)) for wnid in imagenet_wnids()]
    for labels in (imagenet_labels(), full_names):
        for folder, expected in (("Cardigan", 264), ("cardigan", 474)):
            root = tmp_path / str(expected)  # apart, for file systems that ignore case
            assert classes(scan_folder(folder_of(root, folder), labels)) == {folder: expected}


@pytest.mark.parametrize("style", ["first names", "all names", "placeholders", "ids"])
def test_wordnet_ids_in_a_model_of_1000_classes(tmp_path: Path, style: str) -> None:
    """Oracle: every id's place in the list, however the model spells its labels."""
    labels = {
        "first names": list(imagenet_labels()),
        "all names": [", ".join(synonyms_of_wnid(wnid)) for wnid in imagenet_wnids()],
        "placeholders": [f"LABEL_{i}" for i in range(1000)],
        "ids": list(imagenet_wnids()),
    }[style]
    wanted = {wnid: index for wnid, (index, _) in IMAGENETTE.items()}
    # The labels that occur twice must not be mixed up either.
    wanted |= {imagenet_wnids()[i]: i for i in (134, 517, 638, 639)}
    assert classes(scan_folder(folder_of(tmp_path, *wanted), labels)) == wanted


def test_wordnet_ids_follow_the_names_of_other_models(tmp_path: Path) -> None:
    """Oracle: a ten-class model in reverse order, and 1000 classes in reverse order."""
    ten = [label for _, label in IMAGENETTE.values()][::-1]
    found = classes(scan_folder(folder_of(tmp_path, *IMAGENETTE), ten))
    assert found == {wnid: 9 - i for i, wnid in enumerate(IMAGENETTE)}
    found = classes(scan_folder(tmp_path, imagenet_labels()[::-1]))
    assert found == {wnid: 999 - index for wnid, (index, _) in IMAGENETTE.items()}


def test_placeholders_take_sorted_order(tmp_path: Path) -> None:
    """Oracle: rule 3, ImageFolder's convention, only with placeholders and equal counts."""
    folder_of(tmp_path, "10", "2", "b")
    assert classes(scan_folder(tmp_path, ["class 0", "class 1", "class 2"])) == {
        "10": 0,
        "2": 1,
        "b": 2,
    }
    for labels in (["LABEL_0", "LABEL_1"], ["cat", "dog", "bird"], ["class 0", "class 1", "dog"]):
        with pytest.raises(DataError, match=rf"3 class folders and a model of {len(labels)} clas"):
            scan_folder(tmp_path, labels)


def test_unmatched_and_ambiguous_folders_are_named(tmp_path: Path) -> None:
    """Oracle: the documented DataError with counts and one unmatched name."""
    folder_of(tmp_path, "tench", "unicorn")
    with pytest.raises(DataError, match=r"2 class folders .* 1000 classes, and 'unicorn'.*\(1 su"):
        scan_folder(tmp_path, imagenet_labels())
    with pytest.raises(DataError, match="'crane' fits no single label"):
        scan_folder(folder_of(tmp_path / "sub", "crane"), imagenet_labels())


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    """Oracle: the documented DataError for each; one line that names the path."""
    empty = tmp_path / "empty"
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    (tmp_path / "hollow" / "dog").mkdir()
    empty.mkdir()
    file = tmp_path / "file.png"
    save(file)
    text = tmp_path / "text"
    save(text / "a.png")
    (text / "notes.txt").write_text("hello")
    class_text = folder_of(tmp_path / "class_text", "cat")
    (class_text / "cat" / "notes.txt").write_text("hello")
    mixed = folder_of(tmp_path / "mixed", "cat")
    save(mixed / "stray.png")
    nested = folder_of(tmp_path / "nested", "train/cat")
    cases = {
        tmp_path / "absent": "absent: does not exist",
        file: "file.png: is a file",
        empty: "no image in it",
        tmp_path / "hollow": "no image in it",
        text: "notes.txt: not an image",
        class_text: "notes.txt: not an image",
        mixed: "stray.png: a file beside class folders",
        nested: "a folder inside a class folder",
    }
    for path, problem in cases.items():
        with pytest.raises(DataError, match=problem) as caught:
            scan_folder(path, ["cat", "dog"])
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


def test_folders_of_another_head_are_pointed_to_a_flat_folder(tmp_path: Path) -> None:
    """Oracle: a head with more classes than ImageNet-1k and placeholder labels has no names."""
    folder_of(tmp_path, "n01440764", "n02102040")
    with pytest.raises(DataError, match=r"or give a flat folder of photos \(no accuracy then\)"):
        scan_folder(tmp_path, [f"class {i}" for i in range(21841)])


def test_an_empty_class_folder_keeps_its_place(tmp_path: Path) -> None:
    """Oracle: by hand; leaving "b" out would give "c" the class of "b"."""
    folder_of(tmp_path, "a", "c")
    (tmp_path / "b").mkdir()
    dataset = scan_folder(tmp_path, ["class 0", "class 1", "class 2"])
    assert classes(dataset) == {"a": 0, "c": 2}


def test_subset_is_balanced_and_deterministic(tmp_path: Path) -> None:
    """Oracle: three classes of 20 give 4 of each in a subset of 12, the same ones every time."""
    dataset = scan_folder(folder_of(tmp_path, "a", "b", "c", images=20), ["a", "b", "c"])
    subset = dataset.subset(12)
    assert [sample.label for sample in subset.samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(subset.samples)) == 12
    assert scan_folder(tmp_path, ["a", "b", "c"]).subset(12) == subset
    assert dataset.subset(60) == dataset.subset(1000) == dataset
    with pytest.raises(InputError, match="subset of 0"):
        dataset.subset(0)


def test_batches(tmp_path: Path) -> None:
    """Oracle: `preprocess` of each file by itself, in the data set's order."""
    contract = Preprocessing(size=8)
    dataset = scan_folder(folder_of(tmp_path, "a", "b", images=3), ["b", "a"])
    batches = list(load_batches(dataset, contract, 4))
    assert [pixels.shape for pixels, _ in batches] == [(4, 3, 8, 8), (2, 3, 8, 8)]
    pixels = np.concatenate([pixels for pixels, _ in batches])
    expected = np.stack([preprocess(decode(s.path), contract) for s in dataset.samples])
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.dtype == np.float32
    assert len(np.unique(pixels[:, 0, 0, 0])) == 3  # the pictures differ, so order shows
    labels = [label for _, batch in load_batches(dataset, contract, 4) for label in batch]
    assert labels == [1, 1, 1, 0, 0, 0]

    unlabelled = next(load_batches(scan_folder(tmp_path), contract, 4))
    assert unlabelled[1] is None
    with pytest.raises(InputError, match="batch of 0"):
        next(load_batches(dataset, contract, 0))


def test_large_images_run_fewer_at_a_time() -> None:
    """Oracle: the areas, 512 to 224 pixels is 5.2, 384 is 2.9; a batch is never empty."""
    assert [at_a_time(side) for side in (32, 224, 384, 512, 2048)] == [16, 16, 5, 3, 1]
    assert [at_a_time(side, 4) for side in (224, 384, 512)] == [4, 1, 1]


def test_a_bad_image_among_good_ones_is_named(tmp_path: Path) -> None:
    """Oracle: the documented DataError, from decoding and from resizing."""
    save(tmp_path / "a.png")
    bad = tmp_path / "b.png"
    bad.write_text("text in disguise")
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        list(load_batches(scan_folder(tmp_path), Preprocessing(size=224), 2))
    Image.new("RGB", (1, 10_000)).save(bad)
    with pytest.raises(DataError, match=r"b\.png: an image of 1 x 10000"):
        list(load_batches(scan_folder(tmp_path), Preprocessing(size=224), 2))


def test_fingerprint(tmp_path: Path) -> None:
    """Oracle: hashlib by hand; any byte, name or move of an image changes it, the root does not."""
    one = folder_of(tmp_path / "one", "a", "b")
    two = folder_of(tmp_path / "two", "a", "b")
    digest = hashlib.sha256()
    for name in ("a/000.png", "b/000.png"):
        content = (one / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    original = fingerprint(scan_folder(one, ["a", "b"]))
    assert original == fingerprint(scan_folder(two)) == digest.hexdigest()

    seen = {original}
    save(two / "b" / "000.png", 1)
    seen.add(fingerprint(scan_folder(two)))
    (two / "b" / "000.png").rename(two / "b" / "001.png")
    seen.add(fingerprint(scan_folder(two)))
    (two / "b" / "001.png").rename(two / "a" / "001.png")
    seen.add(fingerprint(scan_folder(two)))
    assert len(seen) == 4

    dataset = scan_folder(two)
    (two / "a" / "001.png").unlink()
    with pytest.raises(DataError, match=r"001\.png: cannot be read"):
        fingerprint(dataset)
