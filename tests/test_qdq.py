"""Quantized layers against integer arithmetic in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tinyvit_edge.attention import AttentionBias
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.qdq import (
    DynamicLinear,
    Int8AttentionBias,
    QuantParams,
    StaticLayer,
    dequantized,
    quantize_weight,
    replace_layers,
)

Array = np.ndarray
MakeProgram = Callable[..., Program]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (6, 3, 3, 3), (4, 1, 3, 3)])
def test_weights_come_back_within_half_a_step(shape: tuple[int, ...]) -> None:
    """Oracle: rounding to the nearest of 255 levels a channel, whose peak is 127 exactly."""
    weight = normal(*shape) * torch.logspace(-3, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    quantized, scale = quantize_weight(weight)
    assert quantized.dtype == torch.int8
    assert quantized.shape == weight.shape
    assert scale.shape == (shape[0],)
    assert scale.dtype == torch.float32
    for channel in range(shape[0]):
        back = quantized[channel].double() * scale[channel].double()
        error = (back - weight[channel].double()).abs().max()
        assert error <= scale[channel].double() * (0.5 + 1e-5)
        assert quantized[channel].abs().max() == 127
        assert scale[channel] == pytest.approx(float(weight[channel].abs().max()) / 127)


def test_attention_biases_have_one_scale_a_table() -> None:
    """Oracle: NumPy's rounding to the nearest of 255 levels of the whole table."""
    values = normal(3, 4, 4)
    bias = Int8AttentionBias(AttentionBias(values))
    table = values.numpy()
    step = np.abs(table).max() / np.float32(127)
    assert bias.values.dtype == torch.int8
    assert bias.scale == step
    np.testing.assert_array_equal(bias.values.numpy(), np.rint(table / step))
    np.testing.assert_array_equal(bias().numpy(), np.rint(table / step) * step)
    assert torch.equal(Int8AttentionBias(AttentionBias(0 * values))(), 0 * values)


def test_a_channel_of_zeros_stays_zero() -> None:
    """Oracle: scale 1 and integers 0, and no NaN from 0 / 0."""
    weight = normal(3, 4)
    weight[1] = 0
    quantized, scale = quantize_weight(weight)
    assert scale[1] == 1.0
    assert quantized[1].tolist() == [0, 0, 0, 0]


def test_weights_on_the_grid_are_found_exactly() -> None:
    """Oracle: the integers that the weight was made of, -127 and 127 among them."""
    integers = torch.tensor([[127, -5, 0, 64], [-127, 1, 2, -3]])
    scale = torch.tensor([[0.25], [0.0078125]])
    quantized, found = quantize_weight(integers * scale)
    assert torch.equal(quantized, integers.to(torch.int8))
    assert torch.equal(found, scale[:, 0])


def test_a_bias_beside_int8_inputs_is_a_whole_number_of_steps() -> None:
    """Oracle: int32 arithmetic, which has no finer bias; half a step is the most it moves."""
    linear = nn.Linear(32, 8)
    params = QuantParams(scale=0.05, zero_point=3)
    layer = StaticLayer(linear, input_params=params, output_params=params)
    step = params.scale * layer.weight_scale
    steps = (layer.bias / step).double()
    assert (steps - steps.round()).abs().max() < 1e-3
    assert ((layer.bias - linear.bias.detach()).abs() <= step / 2 + 1e-7).all()


def test_a_bias_never_overflows_int32() -> None:
    """Oracle: the range of int32; a channel next to no weight would ask for far more."""
    linear = nn.Linear(4, 2)
    linear.weight.data[0] = 1e-9
    linear.bias.data[:] = 1.3
    params = QuantParams(scale=0.05, zero_point=0)
    layer = StaticLayer(linear, input_params=params, output_params=params)
    steps = layer.bias.double() / (params.scale * layer.weight_scale.double())
    assert steps.abs().max() < 2**31
    assert layer.bias[0].item() == pytest.approx(1.3, rel=1e-4)


# --- activation parameters --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1.0), (0.5, 3.0), (-3.0, -0.5), (-0.001, 900.0), (-1e-6, 1e-6), (-70.0, 0.1), (0, 6)],
)
def test_a_range_is_covered_and_zero_is_exact(low: float, high: float) -> None:
    """Oracle: both ends come back within half a step, and zero comes back as zero."""
    params = QuantParams.from_range(low, high)
    ends = torch.tensor([low, high, 0.0])
    back = params.dequantize(params.quantize(ends))
    assert (back - ends).abs().max() <= params.scale * (0.5 + 1e-4)
    assert back[2] == 0.0
    assert -128 <= params.zero_point <= 127
    span = max(high, 0.0) - min(low, 0.0)
    assert params.scale == pytest.approx(span / 255, rel=1e-6)
    assert params.scale == float(np.float32(params.scale))


@pytest.mark.parametrize(
    ("low", "high", "zero_point"), [(0.0, 5.0, -128), (1.0, 5.0, -128), (-5.0, 0.0, 127)]
)
def test_one_sided_ranges_put_zero_at_an_end(low: float, high: float, zero_point: int) -> None:
    """Oracle: by hand."""
    params = QuantParams.from_range(low, high)
    assert params.zero_point == zero_point
    assert params.scale == pytest.approx(5.0 / 255)


@pytest.mark.parametrize("width", [0.0, 1e-44, 1e-40])
def test_a_range_of_next_to_nothing_has_a_usable_scale(width: float) -> None:
    """Oracle: scale 1 for zero alone; below float32's normal numbers 1 / scale would overflow."""
    for low, high in ((0.0, width), (-width, 0.0)):
        params = QuantParams.from_range(low, high)
        assert math.isfinite(float(1 / np.float32(params.scale)))
        assert abs(params.dequantize(params.quantize(torch.tensor(width)))) <= 1e-30
    assert QuantParams.from_range(0.0, 0.0) == QuantParams(scale=1.0, zero_point=0)


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(0.0, 0), (-1.0, 0), (math.nan, 0), (1.0, 128), (1.0, -129)]
)
def test_parameters_out_of_range_are_refused(scale: float, zero_point: int) -> None:
    """Oracle: int8 is -128..127, and a scale is positive."""
    with pytest.raises(ValueError, match="must be"):
        QuantParams(scale=scale, zero_point=zero_point)


def test_quantizing_saturates_and_rounds_half_to_even() -> None:
    """Oracle: clip(rint(x / scale) + zero point, -128, 127) in NumPy."""
    params = QuantParams(scale=0.5, zero_point=3)
    x = np.array([-1e9, -65.75, -0.25, 0.25, 0.75, 61.9, 62.25, 1e9], np.float32)
    expected = np.clip(np.rint(x / 0.5) + 3, -128, 127)
    assert params.quantize(torch.from_numpy(x)).tolist() == expected.tolist()
    assert params.quantize(torch.from_numpy(x)).dtype == torch.int8


# --- layers against integer arithmetic --------------------------------------------------------


def to_int8(x: Array, params: QuantParams) -> Array:
    return np.clip(np.rint(x / params.scale) + params.zero_point, -128, 127).astype(np.int32)


def integer_linear(x: Array, weight: Array) -> Array:
    """Exact sums of int8 products: (..., in) and (out, in) to (..., out) int32."""
    return x.astype(np.int32) @ weight.astype(np.int32).T


def integer_conv(x: Array, weight: Array, stride: int, padding: int, groups: int) -> Array:
    """The same for (B, in, H, W) and (out, in / groups, k, k), by loops over the kernel."""
    batch, channels, _, _ = x.shape
    out, per_group, k, _ = weight.shape
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = ((side - k) // stride + 1 for side in x.shape[2:])
    sums = np.zeros((batch, out, height, width), np.int32)
    for o in range(out):
        first = o // (out // groups) * per_group
        assert first + per_group <= channels
        for i in range(per_group):
            for dy in range(k):
                for dx in range(k):
                    rows = slice(dy, dy + stride * (height - 1) + 1, stride)
                    columns = slice(dx, dx + stride * (width - 1) + 1, stride)
                    sums[:, o] += x[:, first + i, rows, columns] * int(weight[o, i, dy, dx])
    return sums


def power_of_two_layer(layer: Any, seed: int) -> Any:
    """Weights, scales and biases for which float32 arithmetic is exact.

    Every product is then a multiple of the same power of two and every sum is below 2^24 of them.
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-126, 127, layer.weight.shape, generator=generator).float()
    flat = weight.reshape(len(weight), -1)
    flat[:, 0] = 127 * torch.where(torch.arange(len(weight)) % 2 == 0, 1.0, -1.0)
    exponents = torch.randint(-9, -5, (len(weight),), generator=generator)
    scale = torch.exp2(exponents.float())
    layer.weight.data = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    integers = torch.randint(-2000, 2000, (len(weight),), generator=generator).float()
    layer.bias.data = integers * scale * INPUT.scale
    return layer


INPUT, OUTPUT = (
    QuantParams(scale=2.0**-5, zero_point=-37),
    QuantParams(scale=2.0**-4, zero_point=11),
)
CONVS = {
    "plain": {"in_channels": 4, "out_channels": 6, "kernel_size": 3},
    "stride": {"in_channels": 3, "out_channels": 5, "kernel_size": 3, "stride": 2, "padding": 1},
    "depthwise": {
        "in_channels": 6, "out_channels": 6, "kernel_size": 3, "padding": 1, "groups": 6,
    },
    "depthwise stride": {
        "in_channels": 4, "out_channels": 4, "kernel_size": 5, "stride": 2, "padding": 2,
        "groups": 4,
    },
    "grouped": {"in_channels": 6, "out_channels": 4, "kernel_size": 1, "groups": 2},
}  # fmt: skip


def oracle(layer: Any, x: Tensor, sums: Callable[[Array, Array], Array], channel: int) -> Array:
    """int8 in, int32 sums with an int32 bias, one rescaling, int8 out; as float32."""
    shape = [1] * x.ndim
    shape[channel] = -1
    scale = np.abs(layer.weight.detach().numpy()).reshape(len(layer.weight), -1).max(1) / 127
    spread = scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    weight = np.rint(layer.weight.detach().numpy() / spread)
    step = INPUT.scale * scale.astype(np.float64)
    bias = np.rint(layer.bias.detach().numpy() / step).astype(np.int32).reshape(shape)
    total = sums(to_int8(x.numpy(), INPUT) - INPUT.zero_point, weight) + bias
    real = total.astype(np.float64) * step.reshape(shape)
    out = to_int8(real, OUTPUT) - OUTPUT.zero_point
    return (out * OUTPUT.scale).astype(np.float32)


def assert_spread(y: Array) -> None:
    """The case is worth something: many levels, and neither end holds most of them."""
    assert len(np.unique(y)) > 20
    assert np.mean((y == y.min()) | (y == y.max())) < 0.5


@pytest.mark.parametrize("requantize", [False, True])
@pytest.mark.parametrize("shape", [(9, 8), (2, 5, 8), (2, 3, 4, 8)])
def test_static_linear_equals_integer_arithmetic(shape: tuple[int, ...], requantize: bool) -> None:
    """Oracle: int32 accumulation in NumPy, exactly equal, saturated inputs included."""
    linear = power_of_two_layer(nn.Linear(8, 6), seed=1)
    layer = StaticLayer(linear, input_params=INPUT, output_params=OUTPUT, requantize=requantize)
    x = 2 * normal(*shape)
    expected = oracle(linear, x, integer_linear, channel=-1)
    assert_spread(expected)
    np.testing.assert_array_equal(layer(x).numpy(), expected)


@pytest.mark.parametrize("requantize", [False, True])
@pytest.mark.parametrize("kind", CONVS)
def test_static_conv_equals_integer_arithmetic(kind: str, requantize: bool) -> None:
    """Oracle: int32 accumulation in NumPy, exactly equal; padding is real zero, not integer 0."""
    conv = power_of_two_layer(nn.Conv2d(**CONVS[kind]), seed=2)
    layer = StaticLayer(conv, input_params=INPUT, output_params=OUTPUT, requantize=requantize)
    x = 2 * normal(2, conv.in_channels, 9, 8)
    stride, padding = conv.stride[0], conv.padding[0]
    expected = oracle(
        conv, x, lambda a, w: integer_conv(a, w, stride, padding, conv.groups), channel=1
    )
    assert expected.shape == conv(x).shape
    assert_spread(expected)
    np.testing.assert_array_equal(layer(x).numpy(), expected)


def test_static_layer_with_any_scales_is_within_one_step() -> None:
    """Oracle: the integer sums in float64; float32 may only move a value on a rounding edge."""
    linear, x = nn.Linear(64, 48), 2 * normal(50, 64)
    params = QuantParams.from_range(float(x.min()), float(x.max()))
    y = linear(x).detach()
    out = QuantParams.from_range(float(y.min()), float(y.max()))
    layer = StaticLayer(linear, input_params=params, output_params=out)
    weight, scale = (t.numpy() for t in quantize_weight(linear.weight.detach()))
    sums = integer_linear(to_int8(x.numpy(), params) - params.zero_point, weight)
    real = sums * (params.scale * scale.astype(np.float64)) + layer.bias.numpy()
    expected = to_int8(real, out)
    found = np.rint(layer(x).numpy() / out.scale) + out.zero_point
    assert np.abs(found - expected).max() <= 1
    assert np.mean(found == expected) > 0.999


def asymmetric(x: Array, axis: int | None) -> Array:
    """Quantize to int8 over run-time ranges that hold zero, and back, in float64."""
    x = x.astype(np.float64)
    low = np.minimum(x.min(axis, keepdims=True), 0)
    high = np.maximum(x.max(axis, keepdims=True), 0)
    scale = np.maximum((high - low) / 255, np.finfo(np.float32).eps)
    zero = np.clip(np.rint(-128 - low / scale), -128, 127)
    return (np.clip(np.rint(x / scale + zero), -128, 127) - zero) * scale


@pytest.mark.parametrize(("granularity", "axis"), [("token", -1), ("tensor", None)])
def test_dynamic_linear_equals_numpy(granularity: Any, axis: int | None) -> None:
    """Oracle: one affine range a token, or one a tensor, and int8 weights, in float64.

    The tokens differ a hundredfold in size, so that the two granularities are far apart.
    """
    linear, x = nn.Linear(16, 12), normal(2, 5, 16)
    x = x * torch.tensor([0.1, 1.0, 10.0, 1.0, 3.0])[:, None] + 0.3
    x[1, 4] = 0.0  # a token of zeros has no range
    x[0, 3] = x[0, 3].abs()  # and one side only
    weight, scale = (t.numpy().astype(np.float64) for t in quantize_weight(linear.weight.detach()))
    expected = asymmetric(x.numpy(), axis) @ (weight * scale[:, None]).T
    expected += linear.bias.detach().numpy()
    found = DynamicLinear(linear, granularity=granularity)(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    other = DynamicLinear(linear, granularity="tensor" if axis == -1 else "token")(x).numpy()
    assert np.abs(found - other).max() > 0.005


def test_a_layer_without_bias_is_refused() -> None:
    """Oracle: the deployment form gives every layer one."""
    with pytest.raises(ValueError, match="bias"):
        DynamicLinear(nn.Linear(3, 2, bias=False), granularity="token")


def test_requantized_weights_are_float_on_the_grid_and_give_the_same_bits(
    small_program: MakeProgram,
) -> None:
    """Oracle: the program with int8 weights, bit for bit."""
    plain = small_program("w8a8")
    folding = small_program("w8a8", FormOptions(requantize_weights=True))
    x = plain.example_input()
    with torch.inference_mode():
        assert torch.equal(plain.module(x), folding.module(x))
    pairs = list(zip(static_layers(plain.module), static_layers(folding.module), strict=True))
    for one, other in pairs:
        assert one.weight.dtype == torch.int8
        assert other.weight.dtype == torch.float32
        assert torch.equal(one.dequantized_weight(), other.dequantized_weight())


def static_layers(module: nn.Module) -> list[StaticLayer]:
    return [m for m in module.modules() if isinstance(m, StaticLayer)]


def dynamic_layers(module: nn.Module) -> dict[str, DynamicLinear]:
    return {n: m for n, m in module.named_modules() if isinstance(m, DynamicLinear)}


def test_dequantized_weights_quantize_to_the_same_integers(small_program: MakeProgram) -> None:
    """Oracle: the integers and scales of the dynamic layers."""
    module = small_program("w8-dynamic").module
    layers = dynamic_layers(module)
    floats = dequantized(module)
    assert len(layers) > 10
    assert not dynamic_layers(floats)
    assert dynamic_layers(module).keys() == layers.keys()
    for name, layer in layers.items():
        linear = floats.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        integers, scale = quantize_weight(linear.weight)
        assert torch.equal(integers, layer.weight)
        torch.testing.assert_close(scale, layer.weight_scale, rtol=1e-6, atol=0)
        assert torch.equal(linear.bias, layer.bias)
        assert not linear.weight.requires_grad


def test_replace_layers_finds_every_name() -> None:
    """Oracle: a nested module, of which one layer is replaced."""
    module = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1), nn.ReLU()))
    replace_layers(module, lambda name, _: nn.Identity() if name == "1.0" else None)
    assert isinstance(module[0], nn.Linear)
    assert isinstance(module[1][0], nn.Identity)
