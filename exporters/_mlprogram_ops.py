"""Operators of the reference evaluator: MIL name to a function of its parameters by name.

The semantics are those of the operator reference of coremltools 9.0 (iOS15 to iOS18). Every
function computes in float32 on torch tensors; the evaluator rounds each result to the type that
the program declares, so a float16 program is rounded after every operator and not within one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["OPERATORS", "TORCH_DTYPES"]

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "bool": torch.bool,
    "float16": torch.float32,  # held in float32; the evaluator rounds
    "float32": torch.float32,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
}
"""What holds a value of a declared type while the program runs."""

_CAST = {"fp16": torch.float32, "fp32": torch.float32, "int32": torch.int32, "bool": torch.bool}
_INT_RANGES = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}
_GELU = {"EXACT": "none", "TANH_APPROXIMATION": "tanh"}
_PAD = {"constant": "constant", "reflect": "reflect", "replicate": "replicate"}


def _ints(parameter: Tensor) -> list[int]:
    values: list[int] = parameter.reshape(-1).tolist()
    return values


def _along(x: Tensor, parameter: Tensor, axis: Tensor | None) -> Tensor:
    """Shape a scalar or vector parameter to broadcast along one axis of `x`."""
    if parameter.ndim == 0 or axis is None:
        return parameter
    shape = [1] * x.ndim
    shape[int(axis)] = -1
    return parameter.reshape(shape)


def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.to(_CAST[dtype])


def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    return F.gelu(x, approximate=_GELU[mode])


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    stride = _ints(strides) if strides is not None else [1, 1]
    dilation = _ints(dilations) if dilations is not None else [1, 1]
    if pad_type == "custom" and pad is not None:
        top, bottom, left, right = _ints(pad)
        x = F.pad(x, (left, right, top, bottom))
    elif pad_type != "valid":
        raise NotImplementedError(f"conv with pad_type {pad_type}")
    return F.conv2d(x, weight, bias, stride, 0, dilation, int(groups) if groups is not None else 1)


def _layer_norm(
    x: Tensor,
    axes: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Tensor | None = None,
) -> Tensor:
    dims = sorted(axis % x.ndim for axis in _ints(axes))
    last = list(range(x.ndim - len(dims), x.ndim))
    x = x.movedim(dims, last)
    shape = x.shape[x.ndim - len(dims) :]
    normal = F.layer_norm(x, shape, gamma, beta, 1e-5 if epsilon is None else float(epsilon))
    return normal.movedim(last, dims)


def _matmul(
    x: Tensor, y: Tensor, transpose_x: Tensor | None = None, transpose_y: Tensor | None = None
) -> Tensor:
    if transpose_x is not None and bool(transpose_x):
        x = x.transpose(-1, -2)
    if transpose_y is not None and bool(transpose_y):
        y = y.transpose(-1, -2)
    return x @ y


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def _reduce_mean(x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | None = None) -> Tensor:
    dims = _ints(axes) if axes is not None else list(range(x.ndim))
    return x.mean(dims, keepdim=keep_dims is not None and bool(keep_dims))


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    # 0 copies the input's size; -1 is inferred
    return x.reshape([size or x.shape[axis] for axis, size in enumerate(_ints(shape))])


def _pad(
    x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | None = None
) -> Tensor:
    # MIL: (before, after) of the last axes, first of them first; torch: last axis first
    amounts = _ints(pad)
    pairs = [amounts[at : at + 2] for at in range(0, len(amounts), 2)]
    flat = [amount for pair in reversed(pairs) for amount in pair]
    value = float(constant_val) if constant_val is not None else 0.0
    return F.pad(x, flat, _PAD[mode], value if mode == "constant" else None)


def _slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    count = len(_ints(begin))
    steps = _ints(stride) if stride is not None else [1] * count
    masks = [
        [bool(item) for item in _ints(mask)] if mask is not None else [False] * count
        for mask in (begin_mask, end_mask, squeeze_mask)
    ]
    index: list[int | slice] = []
    for low, high, step, no_low, no_high, squeeze in zip(
        _ints(begin), _ints(end), steps, *masks, strict=True
    ):
        if step < 1:
            raise NotImplementedError(f"slice_by_index with stride {step}")
        index.append(
            low if squeeze else slice(None if no_low else low, None if no_high else high, step)
        )
    return x[tuple(index)]


def _split(
    x: Tensor, axis: Tensor, num_splits: Tensor | None = None, split_sizes: Tensor | None = None
) -> tuple[Tensor, ...]:
    dim = int(axis)
    if split_sizes is not None:
        return torch.split(x, _ints(split_sizes), dim)
    if num_splits is None:
        raise NotImplementedError("split without num_splits or split_sizes")
    return torch.chunk(x, int(num_splits), dim)


def _concat(values: Sequence[Tensor], axis: Tensor, interleave: Tensor | None = None) -> Tensor:
    if interleave is not None and bool(interleave):
        raise NotImplementedError("concat with interleave")
    return torch.cat(list(values), int(axis))


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _quantize(
    input: Tensor,
    scale: Tensor,
    output_dtype: str,
    zero_point: Tensor | None = None,
    axis: Tensor | None = None,
) -> Tensor:
    low, high, dtype = _INT_RANGES[output_dtype]
    q = torch.round(input / _along(input, scale, axis))  # a half rounds to even
    if zero_point is not None:
        q = q + _along(input, zero_point.float(), axis)
    return q.clamp(low, high).to(dtype)


def _dequantize(
    input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: Tensor | None = None
) -> Tensor:
    shifted = input.float()
    if zero_point is not None:
        shifted = shifted - _along(input, zero_point.float(), axis)
    return shifted * _along(input, scale, axis)


def _classify(probabilities: Tensor, classes: list[str]) -> tuple[str, dict[str, float]]:
    values: list[float] = probabilities.reshape(-1).tolist()
    if len(values) != len(classes):
        raise NotImplementedError(f"classify of {len(values)} values into {len(classes)} classes")
    return classes[int(probabilities.argmax())], dict(zip(classes, values, strict=True))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "add": lambda x, y: x + y,
    "cast": _cast,
    "classify": _classify,
    "concat": _concat,
    "conv": _conv,
    "dequantize": _dequantize,
    "expand_dims": _expand_dims,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias=None: F.linear(x, weight, bias),
    "matmul": _matmul,
    "mul": lambda x, y: x * y,
    "pad": _pad,
    "quantize": _quantize,
    "real_div": lambda x, y: x / y,
    "reduce_mean": _reduce_mean,
    "relu": lambda x: x.relu(),
    "reshape": _reshape,
    "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(x + epsilon),
    "scaled_dot_product_attention": _attention,
    "sigmoid": lambda x: x.sigmoid(),
    "silu": lambda x: F.silu(x),
    "slice_by_index": _slice_by_index,
    "softmax": lambda x, axis=-1: x.softmax(int(axis)),
    "split": _split,
    "squeeze": _squeeze,
    "sub": lambda x, y: x - y,
    "tanh": lambda x: x.tanh(),
    "transpose": lambda x, perm: x.permute(_ints(perm)),
}
