"""Constants of saved Core ML packages, plain and compressed, against coremltools' own loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tinyvit_edge.exporters._mlprogram import MlProgram
from tinyvit_edge.exporters._mlprogram_package import read_spec
from tinyvit_edge.exporters._mlprogram_reader import load_program
from tinyvit_edge.exporters._quiet import quiet_converter

with quiet_converter():
    ct = pytest.importorskip("coremltools")
    import coremltools.optimize.coreml as cto
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
    from coremltools.converters.mil.mil import types

Array = NDArray[Any]
RNG = np.random.default_rng(0)
IOS16, IOS18 = ct.target.iOS16, ct.target.iOS18


def _convert(target: Any, shape: tuple[int, ...], build: Callable[[Any], Any]) -> Any:
    """A float32 model whose operators are left as they were built."""

    @mb.program(input_specs=[mb.TensorSpec(shape=shape)], opset_version=target)
    def program(x: Any) -> Any:
        return build(x)

    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=target,
        compute_precision=ct.precision.FLOAT32,
        pass_pipeline=ct.PassPipeline.EMPTY,
        skip_model_load=True,
    )


def _integers(dtype: Any, shape: tuple[int, ...]) -> Array:
    """Random values of a sub-byte type, as coremltools wants them."""
    low, high = (
        types.type_mapping.builtin_to_range(dtype).low,
        (types.type_mapping.builtin_to_range(dtype).high),
    )
    values = RNG.integers(low, high + 1, shape)
    return values.astype(types.nptype_from_builtin(dtype))


def _half(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float16)


def _packed(bits: int, count: int) -> Array:
    return RNG.integers(0, 256, -(-bits * count // 8)).astype(np.uint8)


MASK = RNG.integers(0, 2, (6, 10)).astype(types.nptype_from_builtin(types.uint1))
NONZERO = int((MASK != 0).sum())
MASK_BYTES = np.packbits(MASK.astype(np.uint8).reshape(-1), bitorder="little")
SIZE = np.array([6, 10], np.uint32)

# name -> (opset, constexpr expression)
COMPRESSED: dict[str, tuple[Any, Callable[[], Any]]] = {
    "affine_int8_channel": (
        IOS16,
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=RNG.integers(-128, 128, (6, 10)).astype(np.int8),
            zero_point=RNG.integers(-5, 5, 6).astype(np.int8),
            scale=_half(6),
            axis=0,
        ),
    ),
    "affine_uint8_tensor": (
        IOS16,
        lambda: mb.constexpr_affine_dequantize(
            quantized_data=RNG.integers(0, 256, (6, 10)).astype(np.uint8),
            zero_point=np.uint8(130),
            scale=np.float32(0.01),
            axis=0,
        ),
    ),
    **{
        f"lut_packed_{bits}": (
            IOS16,
            lambda bits=bits: mb.constexpr_lut_to_dense(
                indices=_packed(bits, 60), lut=_half(2**bits), shape=SIZE
            ),
        )
        for bits in (1, 2, 4, 6, 8)
    },
    "sparse_packed": (
        IOS16,
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=_half(NONZERO), mask=MASK_BYTES, shape=SIZE
        ),
    ),
    "cast": (IOS16, lambda: mb.constexpr_cast(source_val=_half(6, 10), output_dtype="fp32")),
    **{
        f"blockwise_{types.builtin_to_string(dtype)}": (
            IOS18,
            lambda dtype=dtype: mb.constexpr_blockwise_shift_scale(
                data=_integers(dtype, (6, 10)), scale=_half(3, 2), offset=_integers(dtype, (3, 2))
            ),
        )
        for dtype in (types.int4, types.uint4, types.int8, types.uint8)
    },
    "blockwise_without_offset": (
        IOS18,
        lambda: mb.constexpr_blockwise_shift_scale(
            data=_integers(types.int4, (6, 10)), scale=_half(6, 1).astype(np.float32)
        ),
    ),
    **{
        f"lut_grouped_{types.builtin_to_string(dtype)}": (
            IOS18,
            lambda dtype=dtype: mb.constexpr_lut_to_dense(
                indices=_integers(dtype, (6, 10)), lut=_half(3, 2, 2 ** dtype.get_bitwidth(), 1)
            ),
        )
        for dtype in (
            types.uint1,
            types.uint2,
            types.uint3,
            types.uint4,
            types.uint6,
            types.uint8,
        )
    },
    **{
        f"lut_vector_axis_{axis}": (
            IOS18,
            lambda axis=axis: mb.constexpr_lut_to_dense(
                indices=_integers(types.uint2, (6, 10)), lut=_half(2, 1, 4, 3), vector_axis=axis
            ),
        )
        for axis in (0, 1)
    },
    "sparse": (
        IOS18,
        lambda: mb.constexpr_sparse_to_dense(nonzero_data=_half(NONZERO), mask=MASK),
    ),
    "sparse_lut": (
        IOS18,
        lambda: _sparse(
            mb.constexpr_lut_to_sparse(
                indices_mask=MASK,
                indices_nonzero_data=_integers(types.uint2, (NONZERO,)),
                lut=_half(1, 1, 4, 1),
            )
        ),
    ),
    "sparse_int4": (
        IOS18,
        lambda: _sparse(
            mb.constexpr_sparse_blockwise_shift_scale(
                data_mask=MASK,
                nonzero_data=_integers(types.int4, (NONZERO,)),
                scale=_half(6, 1),
                offset=_integers(types.int4, (6, 1)),
            )
        ),
    ),
}


def _sparse(outputs: tuple[Any, Any]) -> Any:
    mask, nonzero = outputs
    return mb.constexpr_sparse_to_dense(nonzero_data=nonzero, mask=mask)


def _compare_constants(path: Path) -> tuple[MlProgram, int]:
    """Compare every constant that an operator reads with coremltools' own loader, exactly.

    Returns:
        The program, and how many of its compressed constants were compared.
    """
    program = load_program(path)
    spec = read_spec(path)
    weights = path / "Data" / "com.apple.CoreML" / "weights"
    real = ct.proto.Model_pb2.Model()
    real.ParseFromString(spec.SerializeToString())
    with quiet_converter():
        loaded = load_milproto(real, real.specificationVersion, file_weights_dir=str(weights))
    compared = 0
    for operation in loaded.functions["main"].operations:
        if operation.op_type.startswith("constexpr_"):
            values = operation.materialized_val_inference()
            values = values if isinstance(values, tuple) else (values,)
        elif operation.op_type == "const":
            values = (operation.outputs[0].val,)
        else:
            continue
        for output, value in zip(operation.outputs, values, strict=True):
            mine = program.constants.get(output.name)
            if isinstance(mine, torch.Tensor):
                value = np.asarray(value)
                np.testing.assert_array_equal(mine.numpy(), value.astype(mine.numpy().dtype))
                compared += operation.op_type != "const"
    return program, compared


@pytest.mark.parametrize("target", [IOS16, IOS18], ids=["iOS16", "iOS18"])
def test_compressed_constants_equal_coremltools(target: Any, tmp_path: Path) -> None:
    """Oracle: `materialized_val_inference` of coremltools' own loader, bit for bit."""
    builders = [build for opset, build in COMPRESSED.values() if opset == target]

    def body(x: Any) -> Any:
        flat = (mb.reshape(x=build(), shape=[-1]) for build in builders)
        return tuple(mb.add(x=mb.cast(x=constant, dtype="fp32"), y=x) for constant in flat)

    path = tmp_path / "compressed.mlpackage"
    with quiet_converter():
        _convert(target, (1,), body).save(str(path))
    assert _compare_constants(path)[1] == len(builders)


def _quantize(model: Any, dtype: str, **options: Any) -> Any:
    config = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype=dtype, **options)
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(global_config=config))


def _palettize(model: Any, **options: Any) -> Any:
    config = cto.OpPalettizerConfig(mode="uniform", **options)
    return cto.palettize_weights(model, cto.OptimizationConfig(global_config=config))


def _prune(model: Any) -> Any:
    config = cto.OpMagnitudePrunerConfig(target_sparsity=0.5)
    return cto.prune_weights(model, cto.OptimizationConfig(global_config=config))


# recipe -> (target, compression by coremltools.optimize, what the weights are stored in)
RECIPES: dict[str, tuple[Any, Callable[[Any], Any], str]] = {
    "w8_channel": (IOS16, lambda model: _quantize(model, "int8"), "int8"),
    "palettized_6": (IOS16, lambda model: _palettize(model, nbits=6), "uint6"),
    "pruned": (IOS16, _prune, "float32"),
    "w8_channel_ios18": (IOS18, lambda model: _quantize(model, "int8"), "int8"),
    "w4_block": (
        IOS18,
        lambda model: _quantize(model, "int4", granularity="per_block", block_size=16),
        "int4",
    ),
    "palettized_3_grouped": (
        IOS18,
        lambda model: _palettize(model, nbits=3, granularity="per_grouped_channel", group_size=8),
        "uint3",
    ),
    "pruned_w8": (
        IOS18,
        lambda model: cto.linear_quantize_weights(
            _prune(model),
            cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric")),
            joint_compression=True,
        ),
        "int8",
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_compressed_model_is_evaluated(name: str, tmp_path: Path) -> None:
    """Oracles: coremltools' loader for the constants, NumPy on them for the output."""
    target, compress, dtype = RECIPES[name]
    weight = np.random.default_rng(1).normal(size=(64, 48)).astype(np.float32)
    with quiet_converter():
        model = _convert(target, (4, 48), lambda x: mb.linear(x=x, weight=weight))
        compress(model).save(str(tmp_path / "model.mlpackage"))
    loaded, compared = _compare_constants(tmp_path / "model.mlpackage")
    assert compared == 1
    assert loaded.stored_bytes[dtype] == max(loaded.stored_bytes.values())
    (linear,) = (item for item in loaded.operations if item.type == "linear")
    dense = loaded.constants[str(linear.arguments["weight"])].numpy()
    x = np.random.default_rng(2).normal(size=(4, 48)).astype(np.float32)
    (result,) = loaded({"x": x}).values()
    np.testing.assert_allclose(result, x @ dense.T, rtol=1e-5, atol=1e-5)
