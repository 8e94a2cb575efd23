"""Augmentation that can be replayed: the bytes of views, crops, erasing, mixing, policies."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from augment_samples import CHANGED, digest, picture, plain
from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import (
    POLICIES,
    Mix,
    Pixels,
    Policy,
    draw,
    draw_mix,
    mix,
    policy_for,
    render,
)
from tinyvit_edge.distill.draws import Draws
from tinyvit_edge.errors import InputError
from tinyvit_edge.preprocessing import Preprocessing, resize

# first 16 digits of SHA-256, by side; made on Linux x86-64 with Pillow 13.0.0 and numpy 2.4.6
POLICY_DIGESTS = {
    "crop": {32: "4bbf3058fb503638", 57: "d74d43045389e6e1"},
    "distill": {32: "cb99df110e06b292", 57: "9ccf7736cc52609d"},
    "light": {32: "8825399342b73dcb", 57: "64a2fa19e2f704b3"},
    "strong": {32: "37be453cdb8ddbb9", 57: "e9015d4845cb0708"},
}


def rendered(policy: Policy, seed: int, size: int) -> Pixels:
    """A view of `picture`, mixed with one of another picture where the policy mixes."""
    image, other = picture(), picture(50, 70, shift=90)
    pixels = render(image, draw(policy, seed, image.width, image.height), size)
    how = draw_mix(policy, seed, seed + 1)
    if how is None:
        return pixels
    partner = draw(policy, seed + 1, other.width, other.height)
    return mix(pixels, render(other, partner, size), how)


def policy_digest(name: str, size: int) -> str:
    return digest(*(rendered(POLICIES[name], seed, size) for seed in range(12)))


# --- the bytes --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 57])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_views_have_the_bytes_of_their_version(name: str, size: int) -> None:
    """Oracle: digests written down when augment.VERSION was 2."""
    assert augment.VERSION == 2, "write the new version's digests down"
    assert policy_digest(name, size) == POLICY_DIGESTS[name][size], CHANGED


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_seed_replays_and_another_does_not(name: str) -> None:
    """Oracle: the bytes of a first rendering; of thirty seeds all differ."""
    policy = POLICIES[name]
    views = [rendered(policy, seed, 24).tobytes() for seed in range(30)]
    assert [rendered(policy, seed, 24).tobytes() for seed in range(30)] == views
    assert len(set(views)) == len(views)


@pytest.mark.parametrize("shape", [(96, 64), (50, 70), (1, 1), (9, 200)])
def test_a_plain_view_is_the_squashed_image(shape: tuple[int, int]) -> None:
    """Oracle: the preprocessing contract's resize."""
    image = picture(*shape)
    expected = resize(image, Preprocessing(size=40, mode="squash"))
    np.testing.assert_array_equal(render(image, plain(image), 40), expected)


def test_another_size_shows_the_same_view() -> None:
    """Oracle: the large rendering, averaged over blocks of 4 x 4, on a smooth picture."""
    y, x = np.mgrid[0:64, 0:96]
    smooth = Image.fromarray(np.stack((x * 2, y * 3, x + y), 2).astype(np.uint8))
    policy = Policy(scale=(0.2, 0.5))
    for seed in range(10):
        view = draw(policy, seed, 96, 64)
        large = render(smooth, view, 96).reshape(24, 4, 24, 4, 3).mean((1, 3))
        assert np.abs(large - render(smooth, view, 24)).mean() < 1.5


def test_flip_mirrors() -> None:
    """Oracle: numpy's reversed columns; both are drawn, each half of the time."""
    image = picture()
    straight, flipped = (render(image, plain(image, flip=flip), 31) for flip in (False, True))
    np.testing.assert_array_equal(flipped, straight[:, ::-1])
    share = np.mean([draw(POLICIES["crop"], seed, 96, 64).flip for seed in range(1000)])
    assert share == pytest.approx(0.5, abs=0.06)


# --- crops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(320, 240), (97, 131), (64, 64)])
@pytest.mark.parametrize("name", ["distill", "light"])
def test_crops_have_the_area_and_aspect_of_the_policy(name: str, shape: tuple[int, int]) -> None:
    """Oracle: the policy's ranges, widened by the rounding of each side to whole pixels."""
    policy, (width, height) = POLICIES[name], shape
    areas = []
    for seed in range(300):
        left, top, right, bottom = draw(policy, seed, width, height).box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        areas.append(w * h / (width * height))
        assert (w + 0.5) * (h + 0.5) >= policy.scale[0] * width * height
        assert (w - 0.5) * (h - 0.5) <= policy.scale[1] * width * height
        assert (w + 0.5) / (h - 0.5) >= policy.ratio[0]
        assert (w - 0.5) / (h + 0.5) <= policy.ratio[1]
    assert min(areas) < policy.scale[0] + 0.05
    assert max(areas) > 0.9


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (3, 3), (1, 999), (999, 1), (5000, 7), (7, 5000), (40, 90)]
)
def test_crops_of_odd_shapes_lie_inside_and_can_be_rendered(shape: tuple[int, int]) -> None:
    """Oracle: the image's bounds, and the size that was asked for."""
    for seed in range(100):
        left, top, right, bottom = draw(POLICIES["distill"], seed, *shape).box
        assert 0 <= left < right <= shape[0]
        assert 0 <= top < bottom <= shape[1]
    image = picture(*shape)
    pixels = render(image, draw(POLICIES["distill"], 1, *shape), 32)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (32, 32, 3))


def test_where_no_crop_fits_it_is_the_largest_central_one() -> None:
    """Oracle: by hand; 8 % of a strip 100 times as long as high is never that low."""
    policy = POLICIES["distill"]
    for seed in range(20):
        assert draw(policy, seed, 3000, 30).box == (1480, 0, 1520, 30)  # 4 : 3
        assert draw(policy, seed, 30, 3000).box == (0, 1480, 30, 1520)  # 3 : 4


# --- erasing and mixing -----------------------------------------------------------------------


def test_erasing_replaces_a_rectangle_by_noise() -> None:
    """Oracle: the view without erasing, around; the bytes of the noise's own stream, within."""
    image, policy, size = picture(), Policy(erase=1.0), 60
    shares = []
    for seed in range(60):
        view = draw(policy, seed, 96, 64)
        assert view.erase is not None
        left, top, right, bottom = (round(edge * size) for edge in view.erase)
        assert 0 <= left <= right <= size
        assert 0 <= top <= bottom <= size
        expected = render(image, replace(view, erase=None), size)
        noise = Draws(seed, 1).noise(bottom - top, right - left, 3)
        expected[top:bottom, left:right] = noise
        np.testing.assert_array_equal(render(image, view, size), expected)
        shares.append((right - left) * (bottom - top) / size**2)
    assert 0.01 < min(shares) < 0.06
    assert 0.25 < max(shares) < 0.36
    erased = [draw(POLICIES["distill"], seed, 96, 64).erase is not None for seed in range(1000)]
    assert np.mean(erased) == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("keep", [128, 200, 255, 256])
def test_a_blend_is_rounded_integer_arithmetic(keep: int) -> None:
    """Oracle: the weighted mean in Python's integers, half up."""
    one, two = np.asarray(picture(16, 16)), np.asarray(picture(16, 16, shift=77))
    actual = mix(one, two, Mix(keep=keep, box=None))
    pairs = zip(one.ravel().tolist(), two.ravel().tolist(), strict=True)
    expected = [(a * keep + b * (256 - keep) + 128) // 256 for a, b in pairs]
    assert actual.dtype == np.uint8
    assert actual.ravel().tolist() == expected


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "strong"])
def test_mixing_keeps_the_larger_part_and_is_the_same_for_both(kind: str) -> None:
    """Oracle: the pair's other order; the pasted rectangle's area is what is not kept."""
    policy = POLICIES["strong"] if kind == "strong" else Policy(**{kind: 0.8})  # type: ignore[arg-type]
    black, white, cuts = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8), 0
    for seed in range(200):
        how = draw_mix(policy, seed, 1000 - seed)
        assert how is not None
        assert how == draw_mix(policy, 1000 - seed, seed)
        assert 128 <= how.keep <= 256
        mixed = mix(black, white, how)
        lost = 1 - how.keep / 256
        if how.box is None:
            assert mixed.mean() / 255 == pytest.approx(lost, abs=0.003)
            continue
        cuts += 1
        left, top, right, bottom = how.box
        assert (right - left) * (bottom - top) == pytest.approx(lost, abs=0.003)
        rows, columns = (np.flatnonzero(mixed[..., 0].any(axis)) for axis in (1, 0))
        assert mixed[..., 0].sum() == 255 * len(rows) * len(columns)  # one rectangle
        assert mixed.mean() / 255 == pytest.approx(lost, abs=0.025)
    assert not black.any()  # the input stays
    low, high = {"mixup": (0, 0), "cutmix": (200, 200), "strong": (70, 130)}[kind]
    assert low <= cuts <= high


def test_mix_is_a_probability() -> None:
    """Oracle: the share of pairs that are mixed; none where nothing mixes."""
    assert [POLICIES[n].mixes for n in ("distill", "light", "crop", "strong")] == [False] * 3 + [
        True
    ]
    half = replace(POLICIES["strong"], mix=0.5)
    mixed = [draw_mix(half, seed, 5000) is not None for seed in range(1000)]
    assert np.mean(mixed) == pytest.approx(0.5, abs=0.06)
    for off in (replace(half, mix=0.0), POLICIES["distill"]):
        assert not off.mixes
        assert draw_mix(off, 1, 2) is None


# --- policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("scale", [(0, 1), (0.5, 0.2), (0.1, 1.5), (math.nan, 1), (0.1, math.nan)]),
        ("ratio", [(0, 1), (2, 1), (-1, 1), (1, math.inf), (1e-300, 1), (math.nan, 1)]),
        ("flip", [-0.1, 1.1, math.nan]),
        ("erase", [-1, 2]),
        ("mix", [-1, 2, math.nan]),
        ("operations", [-1]),
        ("magnitude", [-1, 10.5, math.nan]),
        ("mixup", [-1, math.nan, math.inf, 1e-300, 20]),
        ("cutmix", [-1, math.nan, math.inf, 1e-300, 20]),
    ],
)
def test_bad_numbers_are_refused(name: str, values: list[Any]) -> None:
    """Oracle: what the policy's docstring allows; each is one line that names the field."""
    for value in values:
        with pytest.raises(InputError, match=rf"^augmentation: .*{name}[^\n]*$"):
            Policy(**{name: value})
        listed = list(value) if isinstance(value, tuple) else value
        with pytest.raises(InputError, match=name):
            Policy.from_dict({name: listed})


def test_names() -> None:
    """Oracle: the table; an unknown name is answered with those there are."""
    assert policy_for("strong") is POLICIES["strong"]
    with pytest.raises(InputError, match="'stong': choose distill, light, strong, crop"):
        policy_for("stong")
    with pytest.raises(InputError, match="unknown key 'colour'"):
        Policy.from_dict({"flip": 0.5, "colour": 1})
