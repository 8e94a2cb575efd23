"""The ONNX target: files run in ONNX Runtime, and converted by onnx2tf, against torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tinyvit_edge
from onnx_samples import BLOCKS, LABELS, SIZE, Build
from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters.onnx import OnnxExporter
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import Preprocessing, preset
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.qdq import DynamicLinear, QuantParams, StaticLayer, WeightOnlyLayer

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Exporter

    _: Exporter = OnnxExporter()

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

QUANTIZED = ["w8-dynamic", "w8a8", "w8a8-mixed", "w8"]
# fp16 is stored, and computed in float32. In int8 most images come out equal, but where a value
# falls on the other side of a rounding tie, all that follows changes.
MIN_SQNR_DB = {
    "fp32": 100.0,
    "fp16": 100.0,
    "w8-dynamic": 30.0,
    "w8a8": 25.0,
    "w8a8-mixed": 25.0,
    "w8": 100.0,
}

Sqnr = Callable[[Tensor, Tensor], float]


def as_program(module: nn.Module, *, precision: str = "fp32") -> Program:
    return Program(
        module=module.eval(),
        precision=PRECISIONS[precision],
        preprocessing=preset("microsoft", SIZE),
        labels=LABELS,
        model_name="small",
        weights_sha256="0123456789abcdef" * 4,
    )


@pytest.fixture(scope="module")
def build(onnx_artifacts: Build) -> Build:
    """`build(precision)`: the small program, exported once."""
    return onnx_artifacts


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(1, 3, SIZE, SIZE, generator=generator) for _ in range(3)]


def optimized(path: Path, folder: Path) -> Any:
    """The graph that ONNX Runtime makes of a file and runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def layer_counts(program: Program) -> tuple[int, int]:
    """Convolutions and Linear layers of a program, from its own quantized or float modules."""
    names = Counter(
        "conv" if getattr(module, "conv", None) or isinstance(module, nn.Conv2d) else "linear"
        for module in program.module.modules()
        if getattr(module, "weight", None) is not None
    )
    return names["conv"], names["linear"]


@pytest.mark.parametrize("precision", MIN_SQNR_DB)
def test_runs_as_the_torch_program(
    precision: str, build: Build, images: list[Tensor], sqnr_db: Sqnr
) -> None:
    """Oracle: the same-precision program, run eagerly in torch."""
    built = build(precision)
    run = OnnxExporter().load(built.path, threads=1)
    for image in images:
        logits = torch.from_numpy(run(image.numpy()))
        assert logits.shape == (1, 10)
        assert logits.dtype == torch.float32
        assert sqnr_db(built.torch_logits(image), logits) >= MIN_SQNR_DB[precision]


def test_biases_of_zeros_are_kept(
    small_model: nn.Module,
    quantized_program: Callable[..., Program],
    images: list[Tensor],
    sqnr_db: Sqnr,
    tmp_path: Path,
) -> None:
    """Oracle: the program in torch; torch's own exporter leaves such biases out of the graph."""
    model = deepcopy(small_model)
    layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.LayerNorm))]
    with torch.no_grad():
        for layer in layers:
            assert layer.bias is not None
            layer.bias.zero_()
    program = quantized_program(model, "w8a8", OnnxExporter().form)
    OnnxExporter().export(program, tmp_path / "model.onnx")
    run = OnnxExporter().load(tmp_path / "model.onnx", threads=1)
    with torch.inference_mode():
        expected = torch.cat([program.module(image) for image in images])
    found = torch.cat([torch.from_numpy(run(image.numpy())) for image in images])
    assert sqnr_db(expected, found) >= MIN_SQNR_DB["w8a8"]
    gemms = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "Gemm"]
    assert gemms
    assert all(len(node.input) == 3 for node in gemms)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_integer_kernels_are_exact(kind: str, tmp_path: Path) -> None:
    """Oracle: torch. A bias on the int32 grid leaves nothing to round but ties."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, 3, padding=1) if kind == "conv" else nn.Linear(SIZE, 24)
    image = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        output = layer(image)
    params = [QuantParams.from_range(float(x.min()), float(x.max())) for x in (image, output)]
    quantized = StaticLayer(layer, input_params=params[0], output_params=params[1])
    program = as_program(quantized, precision="w8a8")
    OnnxExporter().export(program, tmp_path / "model.onnx")
    measured = OnnxExporter().load(tmp_path / "model.onnx", threads=1)(image.numpy())
    with torch.inference_mode():
        steps = (program.module(image).numpy() - measured) / params[1].scale
    assert np.abs(steps).max() <= 1.01
    assert (np.abs(steps) > 0.01).mean() < 1e-3


@pytest.mark.parametrize("precision", ["w8-dynamic", "w8a8", "w8"])
def test_a_classifier_may_have_many_classes(precision: str, tmp_path: Path, sqnr_db: Sqnr) -> None:
    """Oracle: torch. The models of ImageNet-22k have 21,841, and the optimizer behind
    `torch.onnx.export` folds constants of 8192 values at most.
    """
    torch.manual_seed(0)
    layer, image = nn.Linear(SIZE, 21841), torch.randn(1, 3, SIZE, SIZE)
    quantized = {
        "w8-dynamic": lambda: DynamicLinear(layer, granularity="tensor"),
        "w8a8": lambda: StaticLayer(
            layer, input_params=QuantParams.from_range(-1.0, 1.0), output_params=None
        ),
        "w8": lambda: WeightOnlyLayer(layer),
    }[precision]()
    program = as_program(nn.Sequential(nn.AvgPool2d((SIZE, 1)), quantized), precision=precision)
    OnnxExporter().export(program, tmp_path / "model.onnx")
    measured = OnnxExporter().load(tmp_path / "model.onnx", threads=1)(image.numpy())
    with torch.inference_mode():
        assert sqnr_db(program.module(image), torch.from_numpy(measured)) >= MIN_SQNR_DB[precision]
    assert OnnxExporter().audit(tmp_path / "model.onnx").weight_bytes["int8"] == SIZE * 21841


@pytest.mark.parametrize("precision", QUANTIZED)
def test_exact_mode_for_x86_without_vnni(
    precision: str,
    build: Build,
    images: list[Tensor],
    sqnr_db: Sqnr,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Oracle: torch. ONNX Runtime's exact mode fails to load weights that share zero points."""
    monkeypatch.setattr("tinyvit_edge.exporters.onnx._saturates", lambda: True)
    run = OnnxExporter().load(build(precision).path, threads=1)
    logits = torch.from_numpy(run(images[0].numpy()))
    assert sqnr_db(build(precision).torch_logits(images[0]), logits) >= MIN_SQNR_DB[precision]


def test_w8a8_runs_in_integer_kernels(build: Build, tmp_path: Path) -> None:
    """Oracle: ONNX Runtime's own optimized graph, which holds the kernels that it runs."""
    built = build("w8a8")
    kernels = Counter(node.op_type for node in optimized(built.path, tmp_path).graph.node)
    convolutions, linears = layer_counts(built.program)
    assert (kernels["QLinearConv"] + BLOCKS, kernels["QGemm"]) == (convolutions, linears)
    assert (kernels["Conv"], kernels["Gemm"]) == (BLOCKS, 0)


def test_w8_dynamic_runs_in_integer_kernels(build: Build, tmp_path: Path) -> None:
    """Oracle: ONNX Runtime's own optimized graph, which holds the kernels that it runs."""
    built = build("w8-dynamic")
    kernels = Counter(node.op_type for node in optimized(built.path, tmp_path).graph.node)
    convolutions, linears = layer_counts(built.program)
    assert kernels["DynamicQuantizeMatMul"] + kernels["MatMulIntegerToFloat"] == linears
    assert kernels["Gemm"] == 0
    assert kernels["Conv"] == convolutions


@pytest.mark.parametrize("precision", QUANTIZED)
def test_int8_weights_are_constants_in_place(precision: str, build: Build) -> None:
    """Oracle: the file. An int8 weight goes into its layer with no node but one that widens it."""
    graph = build(precision).model().graph
    int8 = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and t.dims}
    users = [node for node in graph.node if int8 & set(node.input)]
    biases = [node.op_type for node in users if ".bias.values" in node.input[0]]
    assert biases == BLOCKS * ["Cast"]
    layers = {node.op_type for node in users if ".bias.values" not in node.input[0]}
    widening = {"w8-dynamic": "MatMulInteger", "w8": "Cast"}
    assert layers == {widening.get(precision, "DequantizeLinear")}
    activations = {
        graph_type.type.tensor_type.elem_type
        for graph_type in graph.value_info
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear")
        and node.output[0] == graph_type.name
    }
    assert activations == (set() if precision == "w8" else {onnx.TensorProto.UINT8})


@pytest.mark.parametrize("precision", ["fp32", "fp16", *QUANTIZED])
def test_the_runtime_widens_constants_when_it_loads_them(
    precision: str, build: Build, tmp_path: Path
) -> None:
    """Oracle: the graph that ONNX Runtime runs. No node in it has constants alone for inputs, but
    for the weights that integer kernels take as they are.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # a saved graph is for this machine alone, it warns
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(build(precision).path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    assert len(constants) > BLOCKS
    repeated = [node.op_type for node in graph.node if set(node.input) <= constants]
    assert repeated == []


def test_biases_are_int32_beside_int8(build: Build) -> None:
    """Oracle: the module's own biases, bit for bit."""
    built = build("w8a8")
    graph = built.model().graph
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = set()
    for node in graph.node:
        whole = stored.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if whole is not None and whole.dtype == np.int32:
            found.add((whole.astype(np.float32) * stored[node.input[1]]).tobytes())
    layers = [m for m in built.program.module.modules() if isinstance(m, StaticLayer)]
    assert found == {layer.bias.numpy().tobytes() for layer in layers}


def test_fp16_halves_the_file(build: Build) -> None:
    """Oracle: two bytes for four, of all weights; what remains is the graph."""
    audit = OnnxExporter().audit(build("fp16").path)
    weights = sum(parameter.numel() for parameter in build("fp32").program.module.parameters())
    assert audit.weight_bytes["float16"] >= 2 * weights
    assert audit.weight_bytes.get("float32", 0) == 0
    assert build("fp16").path.stat().st_size < 0.6 * build("fp32").path.stat().st_size
    assert build("fp16").exported.details["arithmetic"].startswith("float32")


@pytest.mark.parametrize("precision", MIN_SQNR_DB)
def test_interface(precision: str, build: Build) -> None:
    """Oracle: the names and shapes that `tinyvit_edge.program` promises."""
    model = build(precision).model()
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    session = ort.InferenceSession(build(precision).path)
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape, image.type) == ("image", [1, 3, SIZE, SIZE], "tensor(float)")
    assert (logits.name, logits.shape, logits.type) == ("logits", [1, 10], "tensor(float)")


def test_metadata_is_in_the_file(build: Build) -> None:
    """Oracle: the program's own fields, read back by ONNX Runtime."""
    built = build("w8a8")
    found = ort.InferenceSession(built.path).get_modelmeta().custom_metadata_map
    preprocessing = Preprocessing.from_dict(json.loads(found["preprocessing"]))
    assert preprocessing == built.program.preprocessing
    assert tuple(json.loads(found["labels"])) == LABELS
    assert found["model_name"] == "small"
    assert found["precision"] == "w8a8"
    assert found["weights_sha256"] == built.program.weights_sha256


@pytest.mark.parametrize("precision", MIN_SQNR_DB)
def test_file_carries_no_path_of_this_machine(precision: str, build: Build) -> None:
    """Oracle: where this package, torch and the user's folder are."""
    data = build(precision).path.read_bytes()
    here = (tinyvit_edge.__file__, torch.__file__)
    for text in (*(str(Path(file).parent) for file in here), str(Path.home()), ".py", "trace"):
        assert text.encode() not in data


def test_second_export_is_byte_identical(build: Build, tmp_path: Path) -> None:
    """Oracle: the first export of the same program; and nothing else is written."""
    again = tmp_path / "again.onnx"
    assert OnnxExporter().export(build("w8a8").program, again).reproducible
    assert again.read_bytes() == build("w8a8").path.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Oracle: the terminal."""
    OnnxExporter().export(as_program(Flat(nn.Identity())), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_runner_gives_own_copies(build: Build, images: list[Tensor]) -> None:
    """Oracle: the first result, copied before the second run."""
    run = OnnxExporter().load(build("fp32").path, threads=2)
    first = run(images[0].numpy())
    kept = first.copy()
    second = run(images[1].numpy())
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)
    assert first.flags.writeable


def test_load_imports_only_the_runtime(build: Build) -> None:
    """Oracle: the modules of a fresh process."""
    code = (
        "import sys; from pathlib import Path; from tinyvit_edge.exporters import exporter; "
        "exporter('onnx').load(Path(sys.argv[1]), threads=1); "
        "print(sorted({'torch', 'onnx', 'onnxscript', 'transformers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(build("w8a8").path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text", "two inputs"])
def test_load_refuses(damage: str, build: Build, tmp_path: Path, capfd: Any) -> None:
    """Oracle: files that are no classifier; the error is one line that names the file."""
    path, good = tmp_path / "model.onnx", build("fp32").path.read_bytes()
    if damage == "two inputs":
        value = onnx.helper.make_tensor_value_info
        kinds = [value(name, onnx.TensorProto.FLOAT, [1]) for name in "abc"]
        node = onnx.helper.make_node("Add", ["a", "b"], ["c"])
        graph = onnx.helper.make_graph([node], "add", kinds[:2], kinds[2:])
        opset = [onnx.helper.make_opsetid("", 20)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    elif damage != "missing":
        contents = {"empty": b"", "truncated": good[: len(good) // 2], "text": b"not a model"}
        path.write_bytes(contents[damage])
    with pytest.raises(InputError, match=r"^\S*model\.onnx is not .*export it again$"):
        OnnxExporter().load(path, threads=1)
    assert capfd.readouterr() == ("", "")


class Flat(nn.Module):
    """A layer in front of logits: image (1, 3, S, S) to (1, 3)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.inner(image).flatten(2).mean(-1)
        return out


class RankFive(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 3, 2, -1, SIZE).transpose(2, 3).reshape(1, 3, SIZE, SIZE)


class Unsigned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor.default(
            x, 0.1, 0, 0, 255, torch.uint8
        )
        return out.float()


def test_export_outside_the_profile_names_the_node(tmp_path: Path) -> None:
    """Oracle: the profile's limit of rank 4; the module goes through rank 5."""
    with pytest.raises(ConversionError, match=r"view.*rank 5, shape 1x3x2x32x64") as caught:
        OnnxExporter().export(as_program(Flat(RankFive())), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)


def test_export_refuses_what_it_cannot_translate(tmp_path: Path) -> None:
    """Oracle: activations that are not int8 have no exact translation to uint8."""
    with pytest.raises(ConversionError, match=r"small at fp32: activations in 0\.\.255"):
        OnnxExporter().export(as_program(Flat(Unsigned())), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
