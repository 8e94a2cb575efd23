"""Rounding to few bits: the grids, the compensation, and what both are worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.precision import PRECISIONS, Precision
from tinyvit_edge.quantization.calibration import quantizable
from tinyvit_edge.quantization.coded import Coded, CodedLayer, coded_tensors, coded_weights
from tinyvit_edge.quantization.moments import Moments, collect_moments, rows_of, unrows
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.rounding import code_layer, round_weights

CODED = [name for name, row in PRECISIONS.items() if row.coded]
Rounded = Callable[[nn.Module, Precision, list[Tensor]], dict[str, Coded]]


def mixed_inputs(count: int, channels: int, seed: int = 0) -> Tensor:
    """Rows (count, channels) whose channels go together, and whose means are not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator) / channels**0.5
    return torch.randn(count, channels, generator=generator) @ mixing + 0.5


@pytest.fixture(scope="module")
def linear() -> nn.Linear:
    """A Linear of 64 inputs and 48 outputs."""
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False)


def layer_of(linear: nn.Linear, coded: Coded) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, coded.weight(), coded.bias)


@pytest.mark.parametrize("name", CODED)
def test_compensation_is_the_least_squares_one(linear: nn.Linear, name: str) -> None:
    """Oracle: the textbook: after each column, the rest solves its least squares problem anew."""
    row = PRECISIONS[name]
    seen = collect_moments(linear, [""], [mixed_inputs(500, 64)])[""]
    coded = code_layer(linear, row, seen)
    second = seen.second + 0.01 * seen.second.diagonal().mean() * torch.eye(64).double()
    rest, values = linear.weight.double().clone(), coded.weight().double()
    for column in range(64):
        if coded.table is not None:
            nearest = (rest[:, column, None] - coded.table).abs().argmin(1)
            assert (nearest == coded.codes[:, column]).float().mean() > 0.99  # ties in float32
        else:
            assert coded.scale is not None
            scaled = rest[:, column] / coded.scale[:, column // 32]
            assert ((scaled.clamp(-8, 7) - coded.codes[:, column]).abs() <= 0.5 + 1e-3).all()
        after = second[column + 1 :, column + 1 :]
        error = rest[:, column] - values[:, column]
        if len(after):
            shift = torch.linalg.solve(after, second[column + 1 :, column])
            rest[:, column + 1 :] += error[:, None] * shift


@pytest.mark.parametrize("name", CODED)
def test_outputs_change_less_than_by_rounding_to_the_nearest(linear: nn.Linear, name: str) -> None:
    """Oracle: each weight to the nearest value of the very same grid, on other inputs."""
    seen = collect_moments(linear, [""], [mixed_inputs(500, 64)])[""]
    coded = code_layer(linear, PRECISIONS[name], seen)
    if coded.table is not None:
        nearest = (linear.weight[..., None] - coded.table).abs().argmin(-1).to(torch.uint8)
    else:
        assert coded.scale is not None
        spread = coded.scale.repeat_interleave(32, 1)
        nearest = (linear.weight / spread).round().clamp(-8, 7).to(torch.int8)
    plain = replace(coded, codes=nearest, bias=linear.bias)
    x = mixed_inputs(500, 64)[250:]
    wanted = linear(x)
    error, plain_error = (
        float((layer_of(linear, one)(x) - wanted).square().mean()) for one in (coded, plain)
    )
    assert error < 0.6 * plain_error


def test_the_mean_of_the_outputs_stays(linear: nn.Linear) -> None:
    """Oracle: the layer itself, on the inputs that the moments are of."""
    x = mixed_inputs(500, 64)
    coded = code_layer(linear, PRECISIONS["w4-lut"], collect_moments(linear, [""], [x])[""])
    found, wanted = layer_of(linear, coded)(x), linear(x)
    torch.testing.assert_close(found.mean(0), wanted.mean(0), atol=1e-5, rtol=1e-4)
    assert not torch.equal(coded.bias, linear.bias)


def test_tables_find_clusters_and_follow_the_weightiest_input() -> None:
    """Oracle: 16 values that the weights have, and the float16 nearest to each."""
    values = torch.linspace(-2, 3, 16)
    torch.manual_seed(1)
    layer = nn.Linear(64, 64).requires_grad_(False)
    layer.weight.copy_(values[torch.randint(0, 16, (64, 64))])
    seen = collect_moments(layer, [""], [torch.eye(64)])[""]
    coded = code_layer(layer, PRECISIONS["w4-lut"], seen)
    assert coded.table is not None
    torch.testing.assert_close(coded.table, values.half().float())
    torch.testing.assert_close(coded.weight(), layer.weight, atol=2e-3, rtol=0)
    # an input that is a hundred times larger gets the table to itself
    layer.weight.copy_(torch.randn(64, 64, generator=torch.Generator().manual_seed(2)))
    layer.weight[:, 5] = values.repeat(4)
    loud = torch.eye(64)
    loud[5, 5] = 100.0
    coded = code_layer(layer, PRECISIONS["w4-lut"], collect_moments(layer, [""], [loud])[""])
    assert coded.table is not None
    torch.testing.assert_close(coded.table, values.half().float(), atol=5e-2, rtol=0)


def test_blocks_have_scales_of_their_own_and_survive_zeros() -> None:
    """Oracle: blocks of very different size, one of zeros; each error is small beside its peak."""
    torch.manual_seed(0)
    layer = nn.Linear(96, 64).requires_grad_(False)
    layer.weight[:, :32] *= 100
    layer.weight[:, 64:] = 0
    coded = code_layer(
        layer, PRECISIONS["w4g32"], collect_moments(layer, [""], [torch.eye(96)])[""]
    )
    assert coded.scale is not None
    assert coded.scale.shape == (64, 3)
    assert torch.equal(coded.scale, coded.scale.half().float())
    assert not coded.codes[:, 64:].any()
    for start in (0, 32):
        block = layer.weight[:, start : start + 32]
        error = (coded.weight()[:, start : start + 32] - block).abs().amax(1)
        assert (error <= block.abs().amax(1) / 2).all()  # what is cut off at the most
        assert error.mean() < 0.12 * block.abs().amax()
    assert (coded.codes.min(), coded.codes.max()) == (-8, 7)


@pytest.mark.parametrize("name", CODED)
def test_convolutions_are_rounded_as_the_products_they_are(name: str) -> None:
    """Oracle: the convolution, as a product of patches; blocks lie within one tap."""
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 16, 3, stride=2, padding=1).requires_grad_(False)
    images = torch.randn(4, 32, 9, 9)
    rows = rows_of(layer.weight)
    assert torch.equal(unrows(rows, layer.weight), layer.weight)
    assert torch.equal(rows[:, 32:64], layer.weight[:, :, 0, 1])
    seen = collect_moments(layer, [""], [images[:2], images[2:]])[""]
    energy = (rows.double() @ seen.second * rows).sum(1)  # of each output, by its moments
    outputs = (layer(images) - layer.bias[:, None, None]).double()
    torch.testing.assert_close(energy, outputs.square().mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    mean = rows.double() @ seen.mean
    torch.testing.assert_close(mean, outputs.mean((0, 2, 3)), rtol=1e-3, atol=1e-5)
    coded = code_layer(layer, PRECISIONS[name], seen)
    assert coded.codes.shape == layer.weight.shape
    if coded.scale is not None:
        assert coded.scale.shape == (16, 1, 3, 3)
    made = CodedLayer(layer, coded, bits=PRECISIONS[name].bits)
    error = (made(images) - layer(images)).square().mean() / layer(images).square().mean()
    assert error < 0.02


@pytest.mark.parametrize("name", CODED)
def test_a_coded_module_survives_its_file_and_its_graph(
    float_form: nn.Module, batches: list[Tensor], rounded: Rounded, name: str
) -> None:
    """Oracles: the module itself, bit for bit; the layers that the precision names."""
    row = PRECISIONS[name]
    coded = rounded(float_form, row, batches)
    made = quantize(float_form, row, coded=coded)
    layers = [key for key, layer in made.named_modules() if isinstance(layer, CodedLayer)]
    assert layers == list(quantizable(float_form, row))
    again = quantize(float_form, row, coded=coded_weights(coded_tensors(made)))
    x = batches[0]
    with torch.inference_mode():
        assert torch.equal(made(x), again(x))
    with torch.no_grad():
        graph = torch.export.export(made, (x,), strict=False)
        torch.testing.assert_close(graph.module()(x), made(x))
    operators = [
        str(node.target) for node in graph.graph.nodes if "tinyvit_edge" in str(node.target)
    ]
    assert len(operators) == len(layers)


def test_what_is_missing_is_named(float_form: nn.Module, batches: list[Tensor]) -> None:
    """Oracle: the layer that was left out."""
    row = PRECISIONS["w4-lut"]
    names = list(quantizable(float_form, row))
    with pytest.raises(InputError, match="'w4-lut' needs calibration images: give --calib"):
        round_weights(float_form, row, None)
    few = collect_moments(float_form, names[1:], batches)
    with pytest.raises(InputError, match=names[0]):
        round_weights(float_form, row, Moments(layers=few, images=5))
    with pytest.raises(InputError, match=names[0]):
        quantize(float_form, row)
    tiny = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(InputError, match=r"'w4-lut' suits no layer of this model.*use w8"):
        round_weights(tiny, row, Moments(layers={}, images=5))
    with pytest.raises(DataError, match="no image"):
        collect_moments(float_form, names, [])
    with pytest.raises(DataError, match=names[0]):
        collect_moments(float_form, names[:1], [torch.full((1, 3, 64, 64), torch.nan)])


@pytest.mark.parametrize(("name", "decibels"), [("w6-lut", 46), ("w4-lut", 33), ("w4g32", 36)])
def test_trained_weights_keep_their_logits(
    digits: Checkpoint, digits_images, rounded: Rounded, name: str, decibels: float
) -> None:
    """Oracle: the float form, on digits that gave no moments; rounded to the nearest, the same
    grids give 44, 29 and 30 dB.
    """
    from tinyvit_edge.data import load_batches, scan_folder
    from tinyvit_edge.metrics import sqnr_db

    def load(part: str, count: int) -> list[Tensor]:
        photos = scan_folder(digits_images / part).subset(count)
        return [torch.from_numpy(x) for x, _ in load_batches(photos, digits.preprocessing, 32)]

    form, row = deployment_form(digits.model), PRECISIONS[name]
    made = quantize(form, row, coded=rounded(form, row, load("train", 64)))
    (held_out,) = load("heldout", 32)
    with torch.inference_mode():
        assert sqnr_db(form(held_out).numpy(), made(held_out).numpy()) >= decibels
