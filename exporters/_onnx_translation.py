"""ONNX nodes for the torch operators whose default translation ONNX Runtime cannot fuse.

The ``quantized_decomposed`` operators have no default translation, and a Linear layer on a
tensor of rank 3 or 4 has one (Transpose, MatMul, Add) that hides it from the integer kernels.
The nodes made here are the ones that ONNX Runtime turns into QLinearConv, QGemm,
DynamicQuantizeMatMul and MatMulIntegerToFloat, and that a TFLite converter turns into
FULLY_CONNECTED.

Each function translates one operator and may look back at the nodes that made its inputs; what
it bypasses is dead code, which the optimizer behind `torch.onnx.export` removes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from onnxscript import opset20 as op

__all__ = ["translation_table"]

_INT8_RANGE = (-128, 127)
# int8 with zero point z and uint8 with zero point z + 128 stand for the same reals, exactly.
# x86 multiplies uint8 by int8 in one instruction; with int8 on both sides ONNX Runtime took
# three times as long as in float32 on a CPU that has it.
_UINT8_SHIFT = 128


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Translations by operator, for `torch.onnx.export(custom_translation_table=...)`."""
    quantized = torch.ops.quantized_decomposed
    return {
        quantized.quantize_per_tensor.default: _quantize,
        quantized.dequantize_per_tensor.default: _dequantize,
        quantized.dequantize_per_channel.default: _dequantize_weight,
        quantized.choose_qparams.tensor: _choose_range,
        quantized.quantize_per_tensor.tensor: _quantize_at_run_time,
        quantized.dequantize_per_tensor.tensor: _dequantize_at_run_time,
        torch.ops.aten.linear.default: _linear,
    }


def _quantize(
    x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int
) -> Any:
    """Quantize to uint8; before a Reshape, so that the layer's own node meets QuantizeLinear."""
    parameters = _parameters(scale, zero_point, quant_min, quant_max)
    if reshape := _made_by(x, "Reshape"):
        return op.Reshape(op.QuantizeLinear(reshape.inputs[0], *parameters), reshape.inputs[1])
    return op.QuantizeLinear(x, *parameters)


def _dequantize(
    x: Any,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    if x.producer() is None:  # a constant, int8 as it is stored
        zero = onnx.helper.make_tensor("zero_point", onnx.TensorProto.INT8, [], [zero_point])
        return op.DequantizeLinear(x, op.Constant(value_float=scale), op.Constant(value=zero))
    return op.DequantizeLinear(x, *_parameters(scale, zero_point, quant_min, quant_max))


def _dequantize_weight(
    weight: Any,
    scales: Any,
    zero_points: Any,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: int,
    out_dtype: int = -1,
) -> Any:
    # The zero points are zeros and the standard lets them be left out, but QGemm needs them. Not a
    # Cast of those at hand: the optimizer behind `torch.onnx.export` folds 8192 values at most.
    count = weight.shape[axis]
    zeros = onnx.helper.make_tensor("zero_points", onnx.TensorProto.INT8, [count], [0] * count)
    return op.DequantizeLinear(weight, scales, op.Constant(value=zeros), axis=axis)


def _choose_range(x: Any, quant_min: int, quant_max: int, eps: float, dtype: int) -> Any:
    _check_range(quant_min, quant_max)
    _, scale, zero_point = op.DynamicQuantizeLinear(x)
    return scale, zero_point


def _quantize_at_run_time(x: Any, scale: Any, *_: Any) -> Any:
    source = _made_by(scale, "DynamicQuantizeLinear")
    if source is None or source.inputs[0] is not x:
        raise ValueError("a run-time range must be that of the tensor it quantizes")
    return source.outputs[0]


def _dequantize_at_run_time(x: Any, scale: Any, zero_point: Any, *_: Any) -> Any:
    return op.DequantizeLinear(x, scale, zero_point)


def _linear(x: Any, weight: Any, bias: Any) -> Any:
    """Linear layer: x (..., in), weight (out, in), bias (out,)."""
    values, weights = _made_by(x, "DequantizeLinear"), _made_by(weight, "DequantizeLinear")
    if values and weights and _made_by(values.inputs[1], "DynamicQuantizeLinear"):
        return _linear_at_run_time(values, weights, bias)
    if len(x.shape) == 2:
        return op.Gemm(x, weight, bias, transB=1)
    *batch, features = x.shape
    rows = op.Constant(value_ints=[-1, features])
    if values:
        x = op.DequantizeLinear(op.Reshape(values.inputs[0], rows), *values.inputs[1:])
    else:
        x = op.Reshape(x, rows)
    out = op.Gemm(x, weight, bias, transB=1)
    return op.Reshape(out, op.Constant(value_ints=[*batch, weight.shape[0]]))


def _linear_at_run_time(values: Any, weights: Any, bias: Any) -> Any:
    quantized, scale, zero_point = values.inputs
    weight, weight_scales = weights.inputs[:2]
    product = op.MatMulInteger(quantized, op.Transpose(weight, perm=[1, 0]), zero_point)
    real = op.Cast(product, to=onnx.TensorProto.FLOAT)
    return op.Add(op.Mul(real, op.Mul(scale, weight_scales)), bias)


def _parameters(scale: float, zero_point: int, quant_min: int, quant_max: int) -> tuple[Any, Any]:
    _check_range(quant_min, quant_max)
    shifted = onnx.helper.make_tensor(
        "zero_point", onnx.TensorProto.UINT8, [], [zero_point + _UINT8_SHIFT]
    )
    return op.Constant(value_float=scale), op.Constant(value=shifted)


def _check_range(quant_min: int, quant_max: int) -> None:
    if (quant_min, quant_max) != _INT8_RANGE:
        raise ValueError(f"activations in {quant_min}..{quant_max} have no translation to uint8")


def _made_by(value: Any, op_type: str) -> Any:
    """The node that made a value, if it is of this type."""
    node = value.producer()
    return node if node is not None and node.op_type == op_type else None
