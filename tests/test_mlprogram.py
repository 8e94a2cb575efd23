"""The reference evaluator: operators and refusals, on packages that coremltools saved."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tinyvit_edge.errors import InputError
from tinyvit_edge.exporters._mlprogram_audit import products
from tinyvit_edge.exporters._mlprogram_package import read_spec
from tinyvit_edge.exporters._mlprogram_reader import load_program
from tinyvit_edge.exporters._quiet import quiet_converter

with quiet_converter():
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

Array = NDArray[Any]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 8, 10)).astype(np.float32)
W = RNG.normal(size=(6, 3, 3, 3)).astype(np.float32)
DEPTHWISE = RNG.normal(size=(3, 1, 3, 3)).astype(np.float32)
MATRIX = RNG.normal(size=(5, 10)).astype(np.float32)
BIAS = RNG.normal(size=(6,)).astype(np.float32)
SCALES = np.array([0.02, 0.03, 0.05], np.float32)
ZEROS = np.array([3, -5, 0], np.int8)


def _save(program: Any, path: Path, target: Any, half: bool = False, passes: Any = None) -> Path:
    with quiet_converter():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY if passes is None else passes,
            skip_model_load=True,
        )
        model.save(str(path))
    return path


def _build(
    target: Any, build: Callable[[Any], Any], shape: tuple[int, ...] = X.shape, dtype: Any = None
) -> Any:
    @mb.program(input_specs=[mb.TensorSpec(shape, dtype)], opset_version=target)
    def program(x: Any) -> Any:
        return build(x)

    return program


def _quantized(x: Array, scale: Any, zero: Any) -> Any:
    return np.clip(np.rint(x / scale) + zero, -128, 127)


def _attended(x: Array) -> Array:
    scores = torch.from_numpy(x @ x.swapaxes(-1, -2) / np.sqrt(x.shape[-1]))
    return scores.softmax(-1).numpy() @ x


def _normalised(x: Array) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-3) * MATRIX[0] + MATRIX[1]


def _tensor(function: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Array:
    return function(torch.from_numpy(X), *args, **kwargs).numpy()


# name -> (MIL expression of x, the same from NumPy or torch)
OPERATORS: dict[str, tuple[Callable[[Any], Any], Callable[[], Any]]] = {
    "add": (lambda x: mb.add(x=x, y=X[0]), lambda: X + X[0]),
    "sub": (lambda x: mb.sub(x=x, y=X[0]), lambda: X - X[0]),
    "mul": (lambda x: mb.mul(x=x, y=X[0]), lambda: X * X[0]),
    "real_div": (lambda x: mb.real_div(x=x, y=X[0]), lambda: X / X[0]),
    "cast": (lambda x: mb.cast(x=x, dtype="int32"), lambda: np.trunc(X).astype(np.int32)),
    "concat": (lambda x: mb.concat(values=[x, x], axis=1), lambda: np.concatenate([X, X], 1)),
    "conv": (
        lambda x: mb.conv(
            x=x, weight=W, bias=BIAS, strides=[2, 2], pad_type="custom", pad=[1, 1, 1, 1]
        ),
        lambda: _tensor(F.conv2d, torch.from_numpy(W), torch.from_numpy(BIAS), 2, 1),
    ),
    "conv_uneven": (
        lambda x: mb.conv(x=x, weight=DEPTHWISE, groups=3, pad_type="custom", pad=[0, 1, 2, 0]),
        lambda: F.conv2d(
            torch.from_numpy(np.pad(X, ((0, 0), (0, 0), (0, 1), (2, 0)))),
            torch.from_numpy(DEPTHWISE),
            groups=3,
        ).numpy(),
    ),
    "expand_squeeze": (
        lambda x: mb.expand_dims(x=mb.squeeze(x=mb.expand_dims(x=x, axes=[0]), axes=[0]), axes=[2]),
        lambda: X[:, :, None],
    ),
    "gelu": (lambda x: mb.gelu(x=x), lambda: _tensor(F.gelu)),
    "gelu_tanh": (
        lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
        lambda: X / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (X + 0.044715 * X**3))),
    ),
    "layer_norm": (
        lambda x: mb.layer_norm(x=x, axes=[-1], gamma=MATRIX[0], beta=MATRIX[1], epsilon=1e-3),
        lambda: _normalised(X),
    ),
    "layer_norm_channels": (
        lambda x: mb.layer_norm(x=x, axes=[1], gamma=BIAS[:3], epsilon=1e-3),
        lambda: (
            (X - X.mean(1, keepdims=True))
            / np.sqrt(X.var(1, keepdims=True) + 1e-3)
            * BIAS[:3, None, None]
        ),
    ),
    "linear": (
        lambda x: mb.linear(x=x, weight=MATRIX, bias=BIAS[:5]),
        lambda: X @ MATRIX.T + BIAS[:5],
    ),
    "matmul": (
        lambda x: mb.matmul(x=x, y=x, transpose_y=True),
        lambda: X @ X.swapaxes(-1, -2),
    ),
    "matmul_x": (
        lambda x: mb.matmul(x=x, y=x, transpose_x=True),
        lambda: X.swapaxes(-1, -2) @ X,
    ),
    "pad": (
        lambda x: mb.pad(x=x, pad=[1, 2, 0, 3], constant_val=0.5),
        lambda: np.pad(X, ((0, 0), (0, 0), (1, 2), (0, 3)), constant_values=0.5),
    ),
    "quantize": (
        lambda x: mb.cast(
            x=mb.quantize(input=x, scale=0.03, zero_point=np.int8(-7), output_dtype="int8"),
            dtype="fp32",
        ),
        lambda: _quantized(X, np.float32(0.03), np.int8(-7)),
    ),
    "quantize_channel": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=SCALES, zero_point=ZEROS, output_dtype="int8", axis=1),
            scale=SCALES,
            zero_point=ZEROS,
            axis=1,
        ),
        lambda: (
            (
                _quantized(X, SCALES.reshape(-1, 1, 1), ZEROS.reshape(-1, 1, 1))
                - ZEROS.reshape(-1, 1, 1)
            )
            * SCALES.reshape(-1, 1, 1)
        ),
    ),
    "reduce_mean": (
        lambda x: mb.reduce_mean(x=x, axes=[2, 3], keep_dims=True),
        lambda: X.mean((2, 3), keepdims=True),
    ),
    "relu": (lambda x: mb.relu(x=x), lambda: np.maximum(X, 0)),
    "reshape": (lambda x: mb.reshape(x=x, shape=[2, -1, 5]), lambda: X.reshape(2, -1, 5)),
    "rsqrt": (
        lambda x: mb.rsqrt(x=mb.mul(x=x, y=x), epsilon=1e-3),
        lambda: 1 / np.sqrt(X * X + 1e-3),
    ),
    "scaled_dot_product_attention": (
        lambda x: mb.scaled_dot_product_attention(query=x, key=x, value=x),
        lambda: _attended(X),
    ),
    "sigmoid": (lambda x: mb.sigmoid(x=x), lambda: 1 / (1 + np.exp(-X))),
    "silu": (lambda x: mb.silu(x=x), lambda: X / (1 + np.exp(-X))),
    "slice_by_index": (
        lambda x: mb.slice_by_index(
            x=x,
            begin=[0, 1, 0, 1],
            end=[2, 2, 7, 0],
            stride=[1, 1, 2, 3],
            end_mask=[True, False, False, True],
            squeeze_mask=[False, True, False, False],
        ),
        lambda: X[:, 1, 0:7:2, 1::3],
    ),
    "softmax": (
        lambda x: mb.softmax(x=x, axis=1),
        lambda: np.exp(X) / np.exp(X).sum(1, keepdims=True),
    ),
    "split": (
        lambda x: mb.split(x=x, axis=1, split_sizes=[1, 2])[1],
        lambda: X[:, 1:],
    ),
    "split_even": (lambda x: mb.split(x=x, axis=3, num_splits=2)[1], lambda: X[..., 5:]),
    "tanh": (lambda x: mb.tanh(x=x), lambda: np.tanh(X)),
    "transpose": (
        lambda x: mb.transpose(x=x, perm=[0, 2, 3, 1]),
        lambda: X.transpose(0, 2, 3, 1),
    ),
}


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every expression of `OPERATORS` as an output of one saved program, evaluated on X."""
    target = ct.target.iOS18
    program = _build(target, lambda x: tuple(build(x) for build, _ in OPERATORS.values()))
    path = _save(program, tmp_path_factory.mktemp("mil") / "operators.mlpackage", target)
    outputs = load_program(path)({"x": X})
    return dict(zip(OPERATORS, outputs.values(), strict=True))


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_equals_its_definition(operators: dict[str, Any], name: str) -> None:
    """Oracle: the operator's definition in NumPy, or torch's operator of the same meaning."""
    expected = OPERATORS[name][1]()
    assert operators[name].shape == expected.shape
    np.testing.assert_allclose(operators[name], expected, rtol=2e-5, atol=2e-5)


def test_every_result_is_rounded_to_the_declared_half(tmp_path: Path) -> None:
    """Oracle: NumPy's float16 arithmetic, one rounding an operator."""
    target = ct.target.iOS17
    program = _build(target, lambda x: mb.add(x=mb.mul(x=x, y=X[0]), y=X[1]))
    path = _save(program, tmp_path / "half.mlpackage", target, True, ct.PassPipeline.DEFAULT)
    (result,) = load_program(path)({"x": X}).values()
    half, first, second = X.astype(np.float16), X[0].astype(np.float16), X[1].astype(np.float16)
    np.testing.assert_array_equal(result, half * first + second)
    assert np.abs(result - (X * X[0] + X[1])).max() > 1e-4


def test_inputs_may_be_half(tmp_path: Path) -> None:
    """Oracle: torch, on input and weights rounded to float16."""
    target, weight = ct.target.iOS17, W.astype(np.float16)
    program = _build(target, lambda x: mb.conv(x=x, weight=weight), dtype=types.fp16)
    (result,) = load_program(_save(program, tmp_path / "half.mlpackage", target, True))(
        {"x": X}
    ).values()
    x, w = (torch.from_numpy(a.astype(np.float16)).float() for a in (X, W))
    np.testing.assert_array_equal(result, F.conv2d(x, w).half().numpy())


def test_classify_gives_the_label_and_all_probabilities(tmp_path: Path) -> None:
    """Oracle: argmax and softmax in NumPy."""
    logits = np.array([[0.5, 2.0, -1.0]], np.float32)
    program = _build(ct.target.iOS17, lambda x: mb.softmax(x=x, axis=-1), logits.shape)
    with quiet_converter():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            classifier_config=ct.ClassifierConfig(["cat", "dog", "eel"]),
            skip_model_load=True,
        )
        model.save(str(tmp_path / "labels.mlpackage"))
    outputs = load_program(tmp_path / "labels.mlpackage")({"x": logits})
    assert outputs["classLabel"] == "dog"
    assert list(outputs["classLabel_probs"]) == ["cat", "dog", "eel"]
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(list(outputs["classLabel_probs"].values()), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Linear layer of (2, 3, 8, 10) with weights in a blob."""
    program = _build(ct.target.iOS18, lambda x: mb.linear(x=x, weight=MATRIX, name="scores"))
    return _save(program, tmp_path_factory.mktemp("package") / "linear.mlpackage", ct.target.iOS18)


@pytest.fixture
def damaged(package: Path, tmp_path: Path) -> Path:
    """A copy of `package` to damage."""
    return Path(shutil.copytree(package, tmp_path / "damaged.mlpackage"))


def _model_file(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "model.mlmodel"


def _weights_file(path: Path) -> Path:
    return path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    """Change the last operation of a saved package."""
    spec = read_spec(path)
    function = spec.mlProgram.functions["main"]
    change(function.block_specializations[function.opset].operations[-1])
    _model_file(path).write_bytes(spec.SerializeToString())


def _dimension(operation: Any) -> None:
    operation.outputs[0].type.tensorType.dimensions[3].constant.size = 7


def _dtype(operation: Any) -> None:
    operation.outputs[0].type.tensorType.dataType = 10  # FLOAT16


def _unknown(operation: Any) -> None:
    operation.type = "cumsum"


def _parameter(operation: Any) -> None:
    operation.inputs["activation"].CopyFrom(operation.inputs["x"])


def _undefined(operation: Any) -> None:
    operation.inputs["x"].arguments[0].name = "nowhere"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dimension, "(2, 3, 8, 5)"),
        (_dtype, "float16 where float32 follows"),
        (_unknown, "'cumsum'"),
        (_parameter, "'activation'"),
        (_undefined, "'nowhere'"),
    ],
)
def test_what_is_not_understood_is_refused(
    damaged: Path, change: Callable[[Any], None], message: str
) -> None:
    """Oracle: the saved program was changed so that it no longer means what it declares."""
    _edit(damaged, change)
    with pytest.raises(InputError) as caught:
        load_program(damaged)({"x": X})
    assert str(damaged) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _overwrite(path: Path, start: int, content: bytes) -> None:
    whole = bytearray(_weights_file(path).read_bytes())
    whole[start : start + len(content)] = content
    _weights_file(path).write_bytes(whole)


# the first blob's record starts at byte 64: sentinel, type code, ...
DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: _weights_file(path).write_bytes(
        _weights_file(path).read_bytes()[:200]
    ),
    "sentinel": lambda path: _overwrite(path, 64, bytes(4)),
    "float16": lambda path: _overwrite(path, 68, b"\x01"),
    "no weights": lambda path: _weights_file(path).unlink(),
    "no manifest": lambda path: (path / "Manifest.json").unlink(),
    "text": lambda path: _model_file(path).write_text("no protobuf at all"),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_package_is_one_clear_error(damaged: Path, name: str) -> None:
    """Oracle: the files on disk were damaged."""
    DAMAGE[name](damaged)
    with pytest.raises(InputError) as caught:
        load_program(damaged)
    assert str(damaged) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_products_are_counted(tmp_path: Path) -> None:
    """Oracle: the definition of each product, by hand, for x of (2, 3, 8, 10)."""
    program = _build(
        ct.target.iOS18,
        lambda x: (
            mb.linear(x=x, weight=MATRIX),
            mb.conv(x=x, weight=DEPTHWISE, groups=3, pad_type="valid"),
            mb.matmul(x=x, y=x, transpose_x=True),
            mb.scaled_dot_product_attention(query=x, key=x, value=x),
        ),
    )
    path = _save(program, tmp_path / "products.mlpackage", ct.target.iOS18)
    found = {product.type: product for product in products(load_program(path))}
    assert {name: product.macs for name, product in found.items()} == {
        "linear": 2 * 3 * 8 * 5 * 10,
        "conv": 2 * 3 * 6 * 8 * 9,
        "matmul": 2 * 3 * 10 * 10 * 8,
        "scaled_dot_product_attention": 2 * 3 * 8 * 8 * (10 + 10),
    }
    assert found["linear"].weight_dtype == "float32"
    assert not any(product.int8 for product in found.values())


def test_input_of_another_shape_is_refused(package: Path) -> None:
    """Oracle: the program declares (2, 3, 8, 10)."""
    with pytest.raises(InputError, match=r"\(1, 3, 8, 10\)"):
        load_program(package)({"x": X[:1]})


def test_loading_does_not_import_coremltools(package: Path) -> None:
    """Oracle: the modules of a fresh process, and coremltools' own classes in this one."""
    assert type(read_spec(package)) is ct.proto.Model_pb2.Model
    code = (
        "import sys; from pathlib import Path\n"
        "from tinyvit_edge.exporters._mlprogram_reader import load_program\n"
        f"load_program(Path({str(package)!r}))\n"
        "assert 'coremltools' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
