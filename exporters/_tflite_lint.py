"""A TFLite file by the rules of LiteRT's delegates."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tinyvit_edge.exporters import _tflite_file as tflite_file
from tinyvit_edge.exporters.tflite import delegation
from tinyvit_edge.lint import Finding

__all__ = ["lint"]

_MAX_RANK = 4
# What LiteRT's GPU delegate documents (https://ai.google.dev/edge/litert/performance/gpu), and the
# rest of what our own files hold, which the WebGPU test of the web app sees it take.
_GPU = frozenset(
    (
        "ADD",
        "AVERAGE_POOL_2D",
        "BATCH_MATMUL",
        "CONCATENATION",
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "DEQUANTIZE",
        "EXP",
        "FULLY_CONNECTED",
        "GELU",
        "LOGISTIC",
        "MAXIMUM",
        "MAX_POOL_2D",
        "MEAN",
        "MINIMUM",
        "MUL",
        "PAD",
        "PRELU",
        "QUANTIZE",
        "RELU",
        "RELU6",
        "RESHAPE",
        "RESIZE_BILINEAR",
        "RSQRT",
        "SLICE",
        "SOFTMAX",
        "SQUARED_DIFFERENCE",
        "STRIDED_SLICE",
        "SUB",
        "TANH",
        "TRANSPOSE",
        "TRANSPOSE_CONV",
    )
)


def lint(path: Path) -> tuple[Finding, ...]:
    """Judge a ``.tflite`` file.

    Raises:
        InputError: the file is not readable.
    """
    model = tflite_file.read(path)
    graph = model.subgraphs[0]
    kinds = Counter(tflite_file.operator_name(model, operator) for operator in graph.operators)
    unknown = {kind: count for kind, count in sorted(kinds.items()) if kind not in _GPU}
    high = sum(len(tflite_file.shape_of(tensor)) > _MAX_RANK for tensor in graph.tensors)
    signatures = (tensor.shapeSignature for tensor in graph.tensors)
    open_ended = sum(shape is not None and min(shape, default=0) < 0 for shape in signatures)
    partitions, outside = delegation(path)
    return (
        Finding(
            rule="operators",
            device="GPU delegate",
            passed=not unknown,
            found=f"{sum(unknown.values())} of {kinds.total()} operators unsupported"
            + "".join(f", {kind} x{count}" for kind, count in unknown.items()),
            remedy="express them by operators that it takes: each leaves the GPU and comes back",
        ),
        Finding(
            rule="rank",
            device="GPU delegate",
            passed=not high,
            found=f"{high} of {len(graph.tensors)} tensors of rank above {_MAX_RANK}",
            remedy="cut and join windows with tensors of rank 4, as the deployment form does",
        ),
        Finding(
            rule="static shapes",
            device="GPU delegate",
            passed=not open_ended,
            found=f"{open_ended} of {len(graph.tensors)} tensors of unknown size",
            remedy="export for one image size and batch 1",
        ),
        Finding(
            rule="one partition",
            device="XNNPACK",
            passed=partitions == 1 and not outside,
            found=f"{partitions} partitions, {len(outside)} operators outside"
            + "".join(f", {kind} x{count}" for kind, count in Counter(outside).items()),
            remedy="each runs in a kernel of LiteRT, between two parts of the graph: files of this "
            "package have none",
        ),
    )
