"""The augmentation's operations: their bytes, and independent formulas of what they do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from augment_samples import CHANGED, digest, picture, plain
from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import POLICIES, draw, render

# first 16 digits of SHA-256, at level 0.9 and at level -0.9, as in test_augment.py
DIGESTS = {
    "autocontrast": ("4a5b9fda869b152b", "4a5b9fda869b152b"),
    "brightness": ("2bb47aaec8d2e724", "a5aff3a4a3538b06"),
    "contrast": ("5b92940823401092", "a9e4e59adc8da65b"),
    "equalize": ("72acdcc745de0be6", "72acdcc745de0be6"),
    "posterize": ("23a498f48d3f345f", "23a498f48d3f345f"),
    "rotate": ("f1f81d020a6e602d", "763ff603a253fcf6"),
    "saturation": ("af739214651fb946", "31ab549e2f233419"),
    "shear_x": ("34f929cdb1d3ac47", "0097852392f48ae6"),
    "shear_y": ("a1c9b28c4e321c15", "e7d7f5bacadbbf06"),
    "solarize": ("88842d4ae2839041", "88842d4ae2839041"),
    "translate_x": ("e7791ea3c0c188ee", "f85f875ca4c28fd8"),
    "translate_y": ("7afeba7eb6daae92", "c9909971fa5a6b3c"),
}


def operation_digest(name: str, level: float) -> str:
    image = picture()
    view = plain(image, operations=((name, level),))
    return digest(render(image, view, 32), render(image, view, 45))


@pytest.mark.parametrize("name", sorted(augment._OPERATIONS))
def test_operations_have_the_bytes_of_their_version(name: str) -> None:
    """Oracle: digests written down when augment.VERSION was 1."""
    digests = operation_digest(name, 0.9), operation_digest(name, -0.9)
    assert digests == DIGESTS[name], CHANGED


def test_the_set_of_operations_is_that_of_the_version() -> None:
    """Oracle: the names written down; one more would shift every draw."""
    assert sorted(augment._OPERATIONS) == sorted(DIGESTS), CHANGED


@pytest.mark.parametrize("level", [0.9, -0.9, 0.25])
@pytest.mark.parametrize("name", ["brightness", "posterize", "solarize", "contrast", "saturation"])
def test_colours_follow_their_formula(name: str, level: float) -> None:
    """Oracle: float64 on the values; 1 of 255 may be lost to rounding."""
    image = picture(40, 40)
    before = np.asarray(image).astype(np.float64)
    grey = np.asarray(image.convert("L")).astype(np.float64)[..., None]
    factor, bits = 1 + 0.9 * level, 8 - round(4 * abs(level))
    threshold = 256 - round(256 * abs(level) * 0.6)
    expected = {
        "brightness": before * factor,
        "contrast": int(grey.mean()) + factor * (before - int(grey.mean())),
        "saturation": grey + factor * (before - grey),
        "posterize": np.floor(before / 2 ** (8 - bits)) * 2 ** (8 - bits),
        "solarize": np.where(before < threshold, before, 255 - before),
    }[name].clip(0, 255)
    actual = render(image, plain(image, operations=((name, level),)), 40)
    assert np.abs(actual - expected).max() <= 1
    if abs(level) > 0.5:
        assert np.abs(actual - before).max() > 5


def _source(name: str, level: float) -> np.ndarray:
    """2 x 2: where an output pixel, seen from the centre, comes from."""
    angle = math.radians(30 * level)
    rotation = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    shear = 0.3 * level
    return np.array(
        {"rotate": rotation, "shear_x": [[1, shear], [0, 1]], "shear_y": [[1, 0], [shear, 1]]}[name]
    )


@pytest.mark.parametrize("level", [0.9, -0.9])
@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y"])
def test_rotation_and_shear_are_nearest_neighbours(name: str, level: float) -> None:
    """Oracle: float64 coordinates around the centre, filled outside; ties may go either way."""
    image, side = picture(41, 41), 41
    y, x = np.mgrid[0:side, 0:side] + 0.5 - side / 2
    sx, sy = np.tensordot(_source(name, level), np.stack((x, y)), 1) + side / 2
    inside = (sx >= 0) & (sx < side) & (sy >= 0) & (sy < side)
    column, row = (np.floor(s).clip(0, side - 1).astype(int) for s in (sx, sy))
    expected = np.where(inside[..., None], np.asarray(image)[row, column], augment._FILL)
    actual = render(image, plain(image, operations=((name, level),)), side)
    assert (actual == expected).all(2).mean() > 0.99
    assert 0.02 < (~inside).mean() < 0.4


@pytest.mark.parametrize("level", [0.9, -0.9])
@pytest.mark.parametrize("axis", [0, 1])
def test_translation_shifts_by_whole_pixels(axis: int, level: float) -> None:
    """Oracle: numpy's roll, and the fill where it wrapped around."""
    image, side = picture(50, 50), 50
    shift = -round(0.3 * level * side)
    expected = np.roll(np.asarray(image), shift, axis)
    wrapped = [slice(None), slice(None)]
    wrapped[axis] = slice(0, shift) if shift > 0 else slice(side + shift, side)
    expected[tuple(wrapped)] = augment._FILL
    name = ("translate_y", "translate_x")[axis]
    actual = render(image, plain(image, operations=((name, level),)), side)
    np.testing.assert_array_equal(actual, expected)


def test_every_operation_is_drawn_in_both_directions() -> None:
    """Oracle: the table of operations; levels of magnitude / 10."""
    drawn = {op for seed in range(500) for op in draw(POLICIES["light"], seed, 9, 9).operations}
    assert drawn == {(name, sign * 0.6) for name in augment._OPERATIONS for sign in (1, -1)}
    assert len(draw(POLICIES["distill"], 0, 9, 9).operations) == 2
