"""Rules that choose a range from a histogram, and what an error in a tensor does to the logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.data import scan_folder
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.evaluate import sample_images
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.calibration import CalibrationOptions, calibrate
from tinyvit_edge.quantization.influence import Place, logit_errors
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import QuantParams
from tinyvit_edge.quantization.ranges import BINS, METHODS, Histogram


@pytest.fixture(scope="module")
def digits_form(digits: Checkpoint) -> nn.Module:
    """The trained demo model in deployment form, for 64 x 64 pixels."""
    return deployment_form(digits.model)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seen(x: Tensor) -> Histogram:
    found = Histogram.over(float(x.min()), float(x.max()))
    found.see(x)
    return found


def ends(params: QuantParams) -> tuple[float, float]:
    return (-128 - params.zero_point) * params.scale, (127 - params.zero_point) * params.scale


def squared_error(x: Tensor, params: QuantParams) -> float:
    return float((params.dequantize(params.quantize(x)) - x).square().sum())


def test_histogram_counts_every_value_once() -> None:
    """Oracle: numpy's histogram."""
    x = normal(7, 1001)
    found = seen(x)
    expected, _ = np.histogram(x.numpy(), BINS, (found.low, found.high))
    assert found.counts.sum() == x.numel()
    assert np.abs(found.counts - expected).sum() <= 0.001 * x.numel()  # values on an edge
    assert found.centres[0] == pytest.approx(found.low + found.width / 2)
    assert found.centres[-1] == pytest.approx(found.high - found.width / 2)


def test_histogram_of_a_positive_tensor_begins_at_zero() -> None:
    """Oracle: padding is zero, and has to be in range."""
    assert Histogram.over(2.0, 5.0).low == 0.0
    assert Histogram.over(-5.0, -2.0).high == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_scale_1(method: str) -> None:
    """Oracle: what `QuantParams.from_range` promises; nothing is divided by zero."""
    assert METHODS[method](seen(torch.zeros(100))) == QuantParams(scale=1.0, zero_point=0)


def test_min_max_covers_everything() -> None:
    """Oracle: the extremes, within half a level."""
    x = normal(10_000)
    params = METHODS["min-max"](seen(x))
    low, high = ends(params)
    assert abs(low - float(x.min())) <= params.scale / 2 + 1e-6
    assert abs(high - float(x.max())) <= params.scale / 2 + 1e-6


@pytest.mark.parametrize(
    ("method", "share"), [("percentile-99.99", 1e-4), ("percentile-99.999", 1e-5)]
)
def test_percentile_clips_its_share(method: str, share: float) -> None:
    """Oracle: numpy's quantiles of the values, within a bin and a level."""
    x = normal(2_000_000, seed=3)
    found = seen(x)
    low, high = ends(METHODS[method](found))
    a, b = np.quantile(x.numpy(), [share / 2, 1 - share / 2])
    slack = found.width + (high - low) / 255
    assert abs(low - a) <= slack
    assert abs(high - b) <= slack


def test_mse_is_the_best_of_all_pairs_of_ends() -> None:
    """Oracle: exhaustive search with true values, where few outliers make clipping worth it."""
    x = torch.cat([normal(100_000), torch.tensor([25.0, -9.0])])
    found = METHODS["mse"](seen(x))
    low, high = float(x.min()), float(x.max())
    best = min(
        squared_error(x, QuantParams.from_range(low * a, high * b))
        for a in np.linspace(0.2, 1, 41)
        for b in np.linspace(0.2, 1, 41)
    )
    assert squared_error(x, found) <= 1.02 * best
    assert squared_error(x, found) < 0.9 * squared_error(x, METHODS["min-max"](seen(x)))


def test_entropy_keeps_a_uniform_range_and_clips_outliers() -> None:
    """Oracle: every level of a uniform range says the same; one value in 100,000 says little."""
    uniform = torch.linspace(-1, 3, 100_001)
    assert ends(METHODS["entropy"](seen(uniform)))[1] == pytest.approx(3, rel=0.05)
    spiky = torch.cat([normal(100_000), torch.tensor([60.0])])
    assert ends(METHODS["entropy"](seen(spiky)))[1] < 30


def measured_error(module: nn.Module, batch: Tensor, place: Place, params: QuantParams) -> float:
    """The squared error of all logits when one tensor is quantized: what is to be estimated."""
    name, side = place
    layer = module.get_submodule(name)

    def rounded(x: Tensor) -> Tensor:
        return params.dequantize(params.quantize(x))

    handle = (
        layer.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
        if side == "input"
        else layer.register_forward_hook(lambda _, __, out: rounded(out))
    )
    try:
        with torch.inference_mode():
            exact_free = module(batch)
    finally:
        handle.remove()
    with torch.inference_mode():
        return float((exact_free - module(batch)).square().sum(1).mean())


def test_influence_predicts_what_quantizing_a_tensor_does(digits_form: nn.Module) -> None:
    """Oracle: quantize one tensor at a time, and look at the logits of the trained model."""
    batch = normal(48, 3, 64, 64, seed=5)
    found = calibrate(digits_form, [batch])
    names = list(found.layers)
    places = [(names[i], side) for i in (0, 2, 5, 12, 20, -1) for side in ("input", "output")]
    tried: dict[Place, list[QuantParams]] = {}
    for name, side in places:
        params = getattr(found.layers[name], side)
        low, high = ends(params)
        narrow = QuantParams.from_range(low / 2, high / 2)
        tried[name, side] = [params, narrow]
    predicted = logit_errors(digits_form, [batch[:16], batch[16:]], tried)
    for place, candidates in tried.items():
        if place == (names[-1], "output"):
            continue  # the logits themselves
        for params, error in zip(candidates, predicted[place], strict=True):
            truth = measured_error(digits_form, batch, place, params)
            assert truth / 3 < error < 3 * truth, (place, params)


def test_auto_harms_the_logits_less_than_any_one_rule(
    digits_form: nn.Module, digits: Checkpoint, digits_images: Path
) -> None:
    """Oracle: the logits of w8a8 programs on digits that gave no ranges."""
    photos = scan_folder(digits_images / "train")
    batches = [torch.from_numpy(sample_images(photos, digits.preprocessing, 32))]
    held_out = scan_folder(digits_images / "heldout")
    images = torch.from_numpy(sample_images(held_out, digits.preprocessing, 64))
    noise = {}
    for name in (*METHODS, "auto"):
        found = calibrate(digits_form, batches, CalibrationOptions(method=name))
        if name == "auto":
            assert len({rule for layer in found.layers.values() for rule in layer.rules}) > 1
        made = quantize(digits_form, PRECISIONS["w8a8"], calibration=found)
        with torch.inference_mode():
            noise[name] = float((made(images) - digits_form(images)).square().mean())
    assert noise["auto"] <= 1.05 * min(noise.values()), noise
