"""Images that are decoded once: the same numbers as when each reader decoded them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.data import load_batches, scan_folder
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.evaluate import (
    artifact_logits,
    logits_of_pixels,
    reference_logits,
    reference_module,
    sample_images,
)
from tinyvit_edge.pixels import prepare_pixels
from tinyvit_edge.preprocessing import Preprocessing, preset


@pytest.fixture(scope="module")
def dataset(digits_images):
    """35 photos: two whole batches and a part of one."""
    return scan_folder(digits_images / "heldout").subset(35)


@pytest.fixture(scope="module")
def pixels(dataset, digits, tmp_path_factory):
    """The same, decoded."""
    path = tmp_path_factory.mktemp("pixels") / "pixels.npy"
    return prepare_pixels(dataset, digits.preprocessing, path)


def test_tensors_are_those_of_the_photos(dataset, pixels, digits):
    """Oracle: `load_batches`, which decodes each photo; every bit."""
    expected = [images for images, _ in load_batches(dataset, digits.preprocessing, 16)]
    found = list(pixels.batches(16))
    assert [len(batch) for batch in found] == [16, 16, 3]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(expected))
    rows = np.array([i * 35 // 8 for i in range(8)])
    expected_rows = sample_images(dataset, digits.preprocessing, 8)
    np.testing.assert_array_equal(pixels.pick(rows), expected_rows)


def test_the_contract_is_followed(tmp_path):
    """Oracle: `load_batches` on wide and tall photos, both modes of resizing."""
    rng = np.random.default_rng(0)
    for number, size in enumerate([(40, 70), (70, 40), (64, 64)]):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{number}.png")
    photos = scan_folder(tmp_path)
    for contract in (preset("microsoft", 48), Preprocessing(size=32, mode="squash")):
        found = prepare_pixels(photos, contract, tmp_path / f".{contract.mode}.npy")
        ((expected, _),) = load_batches(photos, contract, 3)
        np.testing.assert_array_equal(found.tensors(0, 3), expected)


def test_logits_are_the_same_to_the_bit(deployed, dataset, pixels, digits):
    """Oracle: the reference and an artifact on photos that each decodes for itself."""
    module = reference_module(digits.model)
    np.testing.assert_array_equal(
        logits_of_pixels(module, pixels), reference_logits(module, dataset, digits.preprocessing)
    )
    bundle = read_bundle(deployed.out / "onnx-w8a8")
    counted: list[int] = []
    run = (bundle.target, bundle.artifact, dataset, bundle.preprocessing)
    np.testing.assert_array_equal(
        artifact_logits(*run, pixels=pixels, progress=counted.append), artifact_logits(*run)
    )
    assert counted == [16, 16, 3]


def test_bad_photos_and_bad_places_are_named(dataset, digits, tmp_path):
    """Oracle: the name of the file, and of the folder."""
    photo = tmp_path / "photos" / "bad.png"
    photo.parent.mkdir()
    photo.write_bytes(b"not a photo")
    with pytest.raises(DataError, match=r"bad\.png"):
        prepare_pixels(scan_folder(photo.parent), digits.preprocessing, tmp_path / "pixels.npy")
    with pytest.raises(InputError, match="absent: no place for the resized photos"):
        prepare_pixels(dataset, digits.preprocessing, tmp_path / "absent" / "pixels.npy")
