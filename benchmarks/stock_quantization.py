"""The quantization that each toolchain's documentation shows, by its defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["STOCK", "Stock"]

Build = Callable[[nn.Module, NDArray[np.float32], Path], None]


@dataclass(frozen=True, slots=True)
class Stock:
    """One way to quantize; `build` takes the model, images (n, 3, S, S) and the file to write."""

    name: str
    title: str
    build: Build


def _exported(module: nn.Module, images: NDArray[np.float32]) -> Any:
    with torch.no_grad():
        return torch.export.export(module, (torch.from_numpy(images[:1].copy()),), strict=False)


def _onnx_float(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    program = torch.onnx.export(
        _exported(module, images),
        (),
        dynamo=True,
        opset_version=20,
        input_names=["image"],
        output_names=["logits"],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


def _onnx_static(
    module: nn.Module, images: NDArray[np.float32], path: Path, *, activations: int = 8
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"image": image[None]}

    source = path.with_name("float.onnx")
    _onnx_float(module, images, source)
    types = {8: {}, 16: {"activation_type": QuantType.QInt16}}[activations]
    # opset 20 has no 16-bit quantize: these are ONNX Runtime's own operators
    extra = {8: {}, 16: {"extra_options": {"UseQDQContribOps": True}}}[activations]
    quantize_static(str(source), str(path), Reader(), **types, **extra)


def _onnx_dynamic(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    source = path.with_name("float.onnx")
    _onnx_float(module, images, source)
    model = onnx.load(source)
    del model.graph.value_info[:]  # the tool refuses the exporter's shapes
    quantize_dynamic(model, str(path))


def _onnx_static_16(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    _onnx_static(module, images, path, activations=16)


def _executorch(module: nn.Module, images: NDArray[np.float32], path: Path, *, int8: bool) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    exported = _exported(module, images)
    if int8:
        quantizer = XNNPACKQuantizer()
        quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
        prepared = prepare_pt2e(exported.module(), quantizer)
        with torch.no_grad():
            for image in images:
                prepared(torch.from_numpy(image[None]))
        exported = _exported(convert_pt2e(prepared), images)
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    program = edge.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)


def _executorch_float(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    _executorch(module, images, path, int8=False)


def _executorch_static(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    _executorch(module, images, path, int8=True)


def _tflite_float(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    import litert_torch

    litert_torch.convert(module, (torch.from_numpy(images[:1].copy()),)).export(str(path))


def _tflite_static(
    module: nn.Module, images: NDArray[np.float32], path: Path, *, activations: int = 8
) -> None:
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    from tinyvit_edge.exporters import _tflite_file as tflite_file
    from tinyvit_edge.exporters._tflite_rewrites import restore_float_io

    source = path.with_name("float.tflite")
    _tflite_float(module, images, source)
    runner = Interpreter(str(source)).get_signature_runner("serving_default")
    (name,) = runner.get_input_details()
    recipes = {8: recipe.static_wi8_ai8, 16: recipe.static_wi8_ai16}
    tool = quantizer.Quantizer(str(source), recipes[activations]())
    seen = tool.calibrate({"serving_default": [{name: image[None]} for image in images]})
    model = tflite_file.parse(bytes(tool.quantize(seen).quantized_model))
    restore_float_io(model)  # for a probe that gives every artifact the same tensor
    path.write_bytes(tflite_file.serialise(model))


def _tflite_static_16(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
    _tflite_static(module, images, path, activations=16)


def _core_ml(compress: Callable[[Any, Any], Any] | None, target: str) -> Build:
    def build(module: nn.Module, images: NDArray[np.float32], path: Path) -> None:
        import coremltools as ct
        import coremltools.optimize.coreml as cto

        # coremltools does not know the operator, which does nothing
        no_alias = {torch.ops.aten.alias.default: lambda x: x}
        model = ct.convert(
            _exported(module, images).run_decompositions(no_alias),
            convert_to="mlprogram",
            inputs=[ct.TensorType(name="image", shape=images[:1].shape)],
            outputs=[ct.TensorType(name="logits", dtype=np.float32)],
            minimum_deployment_target=ct.target[target],
            skip_model_load=True,
        )
        (model if compress is None else compress(cto, model)).save(str(path))

    return build


def _int8(cto: Any, model: Any) -> Any:
    options = cto.OpLinearQuantizerConfig(mode="linear_symmetric")
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=options))


def _int4(cto: Any, model: Any) -> Any:
    options = cto.OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32
    )
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=options))


def _palettes(bits: int) -> Callable[[Any, Any], Any]:
    def compress(cto: Any, model: Any) -> Any:
        options = cto.OpPalettizerConfig(mode="kmeans", nbits=bits)
        return cto.palettize_weights(model, cto.OptimizationConfig(global_config=options))

    return compress


STOCK: Mapping[str, tuple[Stock, ...]] = {
    "onnx": (
        Stock("onnx-float", "torch.onnx.export", _onnx_float),
        Stock("onnx-dynamic", "onnxruntime quantize_dynamic", _onnx_dynamic),
        Stock("onnx-static", "onnxruntime quantize_static", _onnx_static),
        Stock("onnx-static-16", "onnxruntime quantize_static, 16-bit activations", _onnx_static_16),
    ),
    "executorch": (
        Stock("executorch-float", "XnnpackPartitioner", _executorch_float),
        Stock("executorch-static", "XNNPACKQuantizer, global", _executorch_static),
    ),
    "tflite": (
        Stock("tflite-float", "litert-torch", _tflite_float),
        Stock("tflite-static", "ai-edge-quantizer static_wi8_ai8", _tflite_static),
        Stock("tflite-static-16", "ai-edge-quantizer static_wi8_ai16", _tflite_static_16),
    ),
    "coreml": (
        Stock("coreml-half", "coremltools, float16", _core_ml(None, "iOS17")),
        Stock("coreml-int8", "coremltools int8 weights", _core_ml(_int8, "iOS17")),
        Stock("coreml-palettes-6", "coremltools 6-bit k-means", _core_ml(_palettes(6), "iOS17")),
        Stock("coreml-palettes-4", "coremltools 4-bit k-means", _core_ml(_palettes(4), "iOS17")),
        Stock("coreml-int4", "coremltools int4, blocks of 32", _core_ml(_int4, "iOS18")),
    ),
}
"""Target -> the ways of its own tools, without quantization first."""
