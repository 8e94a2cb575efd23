"""What a saved ONNX file stores, and what it computes in which type."""

from __future__ import annotations

from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

from tinyvit_edge.exporters import Audit, Product
from tinyvit_edge.exporters._conversions import Role, Step, conversions

if TYPE_CHECKING:
    from tinyvit_edge.precision import ProductKind

__all__ = ["audit"]

_KINDS: dict[str, ProductKind] = {
    "Conv": "conv",
    "Gemm": "linear",
    "MatMul": "linear",
    "MatMulInteger": "linear",
}
_EIGHT_BITS = ("int8", "uint8")
_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear")
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
_MOVEMENT = ("Flatten", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def audit(model: Any) -> Audit:
    """Audit an `onnx.ModelProto` whose shapes have been inferred.

    Zero points count with their scales, in the scales' type: int8 bytes are those of weights.
    """
    tensors = _tensors(model.graph)
    graph = _Graph(model.graph, tensors)
    weight_bytes: Counter[str] = Counter()
    scales = _scales(model.graph)
    for name in graph.constants:
        dtype, shape = tensors[name]
        weight_bytes[tensors[scales.get(name, name)][0].name] += dtype.itemsize * prod(shape)
    made = {
        node.output[0]: _product(node, graph) for node in model.graph.node if node.op_type in _KINDS
    }
    layers = {name for name, product in made.items() if product.dtype == "int8"}
    steps = [step for node in model.graph.node if (step := _step(node, graph, layers))]
    results = {step.result for step in steps}
    floats = {
        name for node in model.graph.node if node.output[0] not in results for name in node.input
    }
    return Audit.of(
        made.values(),
        weight_bytes=weight_bytes,
        conversions=conversions(steps, floats=floats | graph.outputs, folds=True),
    )


class _Graph:
    """A graph's values, with who makes and who reads each."""

    def __init__(self, graph: Any, tensors: dict[str, Any]) -> None:
        self.tensors = tensors
        self.constants = {tensor.name for tensor in graph.initializer}
        self.makers = {output: node for node in graph.node for output in node.output}
        self.outputs = {value.name for value in graph.output}
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def users(self, node: Any) -> list[Any]:
        """The nodes that read a node's first result."""
        return self._users.get(node.output[0], [])

    def dtype(self, name: str) -> str:
        return str(self.tensors[name][0].name)

    def stored(self, name: str) -> str:
        """The integer tensor behind a dequantized value; the value itself if there is none."""
        maker = self.makers.get(name)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return str(maker.input[0])
        return name

    def rounded(self, node: Any) -> bool:
        """Whether a node's result is all that 8-bit values are made of, as in QDQ form."""
        users = self.users(node)
        return (
            node.output[0] not in self.outputs
            and len(users) > 0
            and all(user.op_type == "QuantizeLinear" for user in users)
        )


def _product(node: Any, graph: _Graph) -> Product:
    """What a node multiplies, and in which type.

    ONNX Runtime has integer kernels for layers whose input, weight and result are 8-bit, for Gemm
    of 8-bit operands and an int32 bias, and MatMulInteger for those of 8-bit operands.
    """
    operands = [graph.stored(name) for name in node.input[:2]]
    constant = operands[1] in graph.constants or _widened(operands[1], graph)
    integer = operands[1] in graph.constants and all(
        graph.dtype(name) in _EIGHT_BITS for name in operands
    )
    rounded = node.op_type == "MatMulInteger" or graph.rounded(node)
    if node.op_type == "Gemm" and len(node.input) > 2:
        rounded = rounded or graph.dtype(graph.stored(node.input[2])) == "int32"
    return Product(
        kind=_KINDS[node.op_type] if constant else "attention",
        macs=_macs(node, graph.tensors),
        dtype="int8" if integer and rounded else graph.dtype(node.output[0]),
    )


def _step(node: Any, graph: _Graph, layers: set[str]) -> Step | None:
    """What a node does to 8-bit activations; None if nothing."""
    if not node.input or node.input[0] in graph.constants:
        return None
    source, result = node.input[0], node.output[0]
    role: Role
    if result in layers:
        role = "layer"
    elif node.op_type in _ROUNDING:
        role = "quantize"
    elif node.op_type == "DequantizeLinear":
        role = "dequantize"
    elif node.op_type in _MOVEMENT and graph.dtype(source) in _EIGHT_BITS:
        role = "move"
    else:
        return None
    return Step(role=role, source=source, result=result)


def _widened(name: str, graph: _Graph) -> bool:
    """Whether a value is a constant of another type, behind a Cast and perhaps its scale."""
    maker = graph.makers.get(name)
    if maker is not None and maker.op_type == "Mul" and maker.input[1] in graph.constants:
        maker = graph.makers.get(maker.input[0])
    return maker is not None and maker.op_type == "Cast" and maker.input[0] in graph.constants


def _tensors(graph: Any) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """NumPy dtype and shape of every value, by name."""
    import onnx

    to_numpy = onnx.helper.tensor_dtype_to_np_dtype
    tensors = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        shape = tuple(size.dim_value for size in tensor.shape.dim)
        tensors[value.name] = (to_numpy(tensor.elem_type), shape)
    for constant in graph.initializer:
        tensors[constant.name] = (to_numpy(constant.data_type), tuple(constant.dims))
    return tensors


def _scales(graph: Any) -> dict[str, str]:
    """The scale of every zero point."""
    nodes = (node for node in graph.node if node.op_type in _CONVERSIONS)
    return {node.input[2]: node.input[1] for node in nodes if len(node.input) > 2}


def _macs(node: Any, tensors: dict[str, tuple[Any, tuple[int, ...]]]) -> int:
    """Multiply-accumulates of a product: outputs times terms in the sum of each."""
    left, right = (tensors[name][1] for name in node.input[:2])
    terms = prod(right[1:]) if node.op_type == "Conv" else left[-1]
    return prod(tensors[node.output[0]][1]) * terms
