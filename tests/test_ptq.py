"""The quantized form of a model, and the int8 share that it ought to have."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_edge.attention import AttentionBias
from tinyvit_edge.deployment import FormOptions
from tinyvit_edge.errors import InputError
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.program import Program, build_program
from tinyvit_edge.quantization.accounting import integer_demand
from tinyvit_edge.quantization.calibration import Calibration, calibrate
from tinyvit_edge.quantization.coded import Coded
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qdq import DynamicLinear, Int8AttentionBias, StaticLayer

MakeProgram = Callable[..., Program]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the quantized form -----------------------------------------------------------------------


def test_quantize_does_not_change_its_input(
    float_form: nn.Module,
    calibration: Calibration,
    rounded: Callable[..., dict[str, Coded]],
    batches: list[Tensor],
) -> None:
    """Oracle: the state dict and module types from before."""
    state = deepcopy(float_form.state_dict())
    types = [type(m) for m in float_form.modules()]
    for row in PRECISIONS.values():
        coded = rounded(float_form, row, batches) if row.coded else None
        made = quantize(float_form, row, calibration=calibration, coded=coded)
        assert made is not float_form
        for tensor in (*made.parameters(), *made.buffers()):
            tensor.data.fill_(1)
    assert [type(m) for m in float_form.modules()] == types
    assert all(torch.equal(state[key], value) for key, value in float_form.state_dict().items())


def test_fp32_is_a_plain_copy(float_form: nn.Module) -> None:
    """Oracle: the module itself, bit for bit."""
    made = quantize(float_form, PRECISIONS["fp32"])
    x = normal(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(made(x), float_form(x))


def test_fp16_rounds_parameters_and_buffers_to_half(float_form: nn.Module) -> None:
    """Oracle: NumPy's float16, element for element; the attention biases are buffers."""
    made = quantize(float_form, PRECISIONS["fp16"])
    before, after = float_form.state_dict(), made.state_dict()
    assert any(name.endswith(".bias.values") for name in after)
    assert before.keys() == after.keys()
    for name, value in after.items():
        assert value.dtype == torch.float32
        half = before[name].numpy().astype(np.float16)
        np.testing.assert_array_equal(value.numpy(), half.astype(np.float32))
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_int8_rows_replace_exactly_their_kinds_of_layer(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: the names of the float form's layers; local convolutions stay float at w8a8."""
    kinds = {name: type(m) for name, m in float_form.named_modules()}
    dynamic = quantize(float_form, PRECISIONS["w8-dynamic"])
    static = quantize(float_form, PRECISIONS["w8a8"], calibration=calibration)
    for name, kind in kinds.items():
        made = type(dynamic.get_submodule(name)), type(static.get_submodule(name))
        if kind is nn.Linear:
            assert made == (DynamicLinear, StaticLayer)
        elif kind is nn.Conv2d:
            local = name.endswith("local_conv")
            assert made == (nn.Conv2d, nn.Conv2d if local else StaticLayer)
        elif kind is AttentionBias:
            assert made == (Int8AttentionBias, Int8AttentionBias)
        else:
            assert made == (kind, kind)
    assert not dynamic.training
    assert not static.training


def test_every_static_layer_gets_its_own_ranges(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: the calibration, by name."""
    static = quantize(float_form, PRECISIONS["w8a8"], calibration=calibration)
    for name, ranges in calibration.layers.items():
        layer = static.get_submodule(name)
        assert isinstance(layer, StaticLayer)
        assert layer.input_params == ranges.input
        assert layer.output_params == ranges.output
    assert len({ranges.input for ranges in calibration.layers.values()}) > 10


def test_layer_norm_products_are_never_quantized(small_program: MakeProgram) -> None:
    """Oracle: the constant row of every LayerNorm keeps 1 / C in float32 at each int8 row."""
    for precision in ("w8-dynamic", "w8a8"):
        module = small_program(precision, FormOptions(layer_norm="linear")).module
        rows = {n: b for n, b in module.named_buffers() if n.endswith("norm.average")}
        assert len(rows) == 9
        for row in rows.values():
            assert row.dtype == torch.float32
            assert torch.equal(row, torch.full_like(row, 1 / row.shape[1]))


def test_ranges_that_are_missing_are_refused(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: w8a8 without a calibration, and with one that lacks a layer."""
    with pytest.raises(InputError, match="needs calibration images"):
        quantize(float_form, PRECISIONS["w8a8"])
    name = next(iter(calibration.layers))
    layers = {key: value for key, value in calibration.layers.items() if key != name}
    with pytest.raises(InputError, match=f"no range for layer {name}"):
        quantize(float_form, PRECISIONS["w8a8"], calibration=Calibration(layers=layers, images=1))


def test_a_calibration_is_ignored_where_ranges_are_taken_at_run_time(
    float_form: nn.Module, calibration: Calibration
) -> None:
    """Oracle: w8-dynamic without one, bit for bit."""
    row, x = PRECISIONS["w8-dynamic"], normal(1, 3, 64, 64)
    with torch.inference_mode():
        with_ranges = quantize(float_form, row, calibration=calibration)(x)
        assert torch.equal(with_ranges, quantize(float_form, row)(x))


@pytest.mark.parametrize(
    ("precision", "lowest", "highest"),
    [("fp32", 100, 200), ("fp16", 45, 80), ("w8-dynamic", 25, 50), ("w8a8", 15, 50)],
)
def test_each_precision_costs_what_its_width_costs(
    precision: str,
    lowest: float,
    highest: float,
    small_program: MakeProgram,
    small_model: TinyVitForImageClassification,
    batches: list[Tensor],
    sqnr_db: Callable[[Tensor, Tensor], float],
) -> None:
    """Oracle: the reference model; about 6 dB a bit, and not better than the width allows."""
    with torch.inference_mode():
        reference = small_model(batches[0]).logits
        assert lowest <= sqnr_db(reference, small_program(precision).module(batches[0])) <= highest


def test_a_program_is_made_of_its_checkpoint(digits: Any) -> None:
    """Oracle: the checkpoint's reference model at its own preprocessing size."""
    program = build_program(digits, PRECISIONS["fp32"], form=FormOptions(layer_norm="linear"))
    assert program.labels == digits.labels
    assert program.preprocessing == digits.preprocessing
    assert program.weights_sha256 == digits.sha256
    assert program.model_name == digits.variant
    x = program.example_input()
    with torch.inference_mode():
        torch.testing.assert_close(program.module(x), digits.model(x).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="--calib"):
        build_program(digits, PRECISIONS["w8a8"], form=FormOptions())


# --- accounting -------------------------------------------------------------------------------


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.fc = nn.Linear(4, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.conv(x)).permute(0, 2, 3, 1)  # (B, 4, 4, 4)
        x = F.relu(self.fc(x)).mean((1, 2))  # (B, 5)
        out: Tensor = self.head(x)  # (B, 2)
        return out


def test_integer_demand_of_a_case_worked_out_by_hand() -> None:
    """Oracle: 8 x 8 images, so 4 x 4 maps; every layer's sums and weights counted by hand."""
    module, image = _Small(), normal(1, 3, 8, 8)
    static = quantize(module, PRECISIONS["w8a8"], calibration=calibrate(module, [image]))
    demand = integer_demand(static, image)
    assert demand.weight_bytes == {"int8": 4 * 27 + 4 * 9 + 5 * 4 + 2 * 5}
    assert demand.int8_macs == 64 * 27 + 64 * 9 + 80 * 4 + 2 * 5
    assert (demand.float_macs, demand.quantize, demand.dequantize) == (0, 4, 8)
    dynamic = integer_demand(quantize(module, PRECISIONS["w8-dynamic"]), image)
    assert (dynamic.float_macs, dynamic.quantize, dynamic.dequantize) == (64 * 27 + 64 * 9, 2, 0)
    assert dynamic.weight_bytes == {"int8": 5 * 4 + 2 * 5}
    assert dynamic.int8_macs == 80 * 4 + 2 * 5
    weights = integer_demand(quantize(module, PRECISIONS["w8"]), image)
    assert (weights.weight_bytes, weights.int8_macs) == (demand.weight_bytes, 0)
    assert (weights.float_macs, weights.quantize) == (demand.int8_macs, 0)
    assert not any(m._forward_hooks for m in static.modules())


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "w8-dynamic", "w8", "w4g32"])
def test_all_work_is_demanded_in_one_type_or_the_other(
    precision: str, small_program: MakeProgram
) -> None:
    """Oracle: torch's own operation counter (two operations a multiply-accumulate)."""
    program = small_program(precision)
    demand = integer_demand(program.module, program.example_input())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module(program.example_input())
    assert 2 * (demand.int8_macs + demand.float_macs) == counter.get_total_flops()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_modules_ask_for_no_integers(precision: str, small_program: MakeProgram) -> None:
    """Oracle: there is no quantized layer."""
    program = small_program(precision)
    demand = integer_demand(program.module, program.example_input())
    assert (demand.weight_bytes, demand.int8_macs) == ({}, 0)


@pytest.mark.parametrize(
    ("name", "dtype"), [("w6-lut", "uint6"), ("w4-lut", "uint4"), ("w4g32", "int4")]
)
def test_few_bits_are_counted_in_whole_bytes_a_layer(
    small_program: MakeProgram, name: str, dtype: str
) -> None:
    """Oracle: the number of codes in the module's own layers."""
    program = small_program(name)
    codes = [
        tensor.numel() for key, tensor in program.module.named_buffers() if key.endswith("codes")
    ]
    bits = PRECISIONS[name].bits
    demand = integer_demand(program.module, program.example_input())
    buffers = program.module.named_buffers()
    biases = sum(t.numel() for key, t in buffers if key.endswith(".bias.values"))
    expected = {dtype: sum((count * bits + 7) // 8 for count in codes), "int8": biases}
    assert demand.weight_bytes == expected
    assert demand.int8_macs == 0
