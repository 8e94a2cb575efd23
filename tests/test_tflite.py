"""TFLite: the saved file in LiteRT's interpreter against the module that it was made from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("litert_torch")
pytest.importorskip("ai_edge_litert")

import litert_torch
from ai_edge_litert.interpreter import Interpreter

from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters import _tflite_file
from tinyvit_edge.exporters._tflite_edit import join_in_steps
from tinyvit_edge.exporters.tflite import TfliteExporter, delegation
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.qdq import StaticLayer
from tinyvit_edge.variants import config_for

EXPORTER = TfliteExporter()
# dB against program.module; w8a8 differs by single steps of rounding in the integer kernels
LOWEST_SQNR = {
    "fp32": 110.0,
    "fp16": 110.0,
    "w8-dynamic": 40.0,
    "w8a8": 30.0,
    "w8a8-mixed": 30.0,
    "w8": 110.0,
}


@pytest.mark.parametrize("precision", LOWEST_SQNR)
def test_saved_file_equals_the_same_precision_module(
    precision: str,
    tflite_artifacts: Callable[[str], Any],
    sqnr_db: Callable[[Tensor, Tensor], float],
) -> None:
    """Oracle: `program.module` run eagerly, on three images."""
    artifact = tflite_artifacts(precision)
    run = EXPORTER.load(artifact.path, threads=1)
    for seed in range(3):
        image = artifact.input(seed)
        expected = artifact.program.module(image)
        logits = run(image.numpy())
        assert logits.shape == (1, len(artifact.program.labels))
        assert logits.dtype == np.float32
        assert sqnr_db(expected, torch.from_numpy(logits)) >= LOWEST_SQNR[precision]


@pytest.mark.parametrize("precision", LOWEST_SQNR)
def test_whole_graph_is_one_xnnpack_partition(
    precision: str, tflite_artifacts: Callable[[str], Any]
) -> None:
    """Oracle: the operator list of the interpreter that runs the file."""
    artifact = tflite_artifacts(precision)
    assert delegation(artifact.path) == (1, ())
    assert artifact.exported.details["xnnpack_partitions"] == 1
    assert artifact.exported.details["operators_outside_xnnpack"] == []


def test_delegation_sees_operators_outside(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: XNNPACK has no GELU on int8, so typing one as int8 must split the graph."""
    model = _tflite_file.read(tflite_artifacts("w8a8").path)
    named: dict[str, list[Any]] = {}
    for operator in model.subgraphs[0].operators:
        named.setdefault(_tflite_file.operator_name(model, operator), []).append(operator)
    # undo what the exporter did: DEQUANTIZE, GELU, QUANTIZE back to one int8 GELU
    producers = {op.outputs[0]: op for op in named["DEQUANTIZE"]}
    consumers = {op.inputs[0]: op for op in named["QUANTIZE"]}
    gelu = next(
        op for op in named["GELU"] if op.inputs[0] in producers and op.outputs[0] in consumers
    )
    gelu.inputs, after = producers[gelu.inputs[0]].inputs, consumers[gelu.outputs[0]]
    gelu.outputs = after.outputs
    model.subgraphs[0].operators.remove(after)
    path = tmp_path / "split.tflite"
    path.write_bytes(_tflite_file.serialise(model))
    assert delegation(path) == (2, ("GELU",))


class _Joined(nn.Module):
    """Multiples of the input beside each other."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([factor * x for factor in range(1, self.parts + 1)], 1)


@pytest.mark.parametrize("parts", [6, 27])
def test_concatenations_are_cut_to_what_xnnpack_takes(parts: int, tmp_path: Path) -> None:
    """Oracle: the interpreter's list of operators, before and after, and PyTorch's result."""
    module, x, path = _Joined(parts).eval(), torch.randn(1, 2, 3), tmp_path / "joined.tflite"
    litert_torch.convert(module, sample_kwargs={"x": x}).export(str(path))
    assert delegation(path)[1] == ("CONCATENATION",)
    model = _tflite_file.read(path)
    join_in_steps(model)
    path.write_bytes(_tflite_file.serialise(model))
    assert delegation(path) == (1, ())
    interpreter = Interpreter(str(path))
    (joined,) = interpreter.get_signature_runner()(x=x.numpy()).values()
    np.testing.assert_array_equal(joined, module(x).numpy())


def test_signature_and_tensor_names(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the names and types that the exporter promises, as the runtime reports them."""
    for precision in LOWEST_SQNR:
        interpreter = Interpreter(str(tflite_artifacts(precision).path))
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["image"], "outputs": ["logits"]}
        }
        for details, name in (
            (interpreter.get_input_details(), "image"),
            (interpreter.get_output_details(), "logits"),
        ):
            assert [(one["name"], one["dtype"]) for one in details] == [(name, np.float32)]


def test_a_static_layer_without_integer_kernel_is_named(
    tflite_programs: dict[str, Program], tmp_path: Path
) -> None:
    """Oracle: a layer whose weights leave the int8 grid after the scales were chosen."""
    program = tflite_programs["w8a8"]
    program = replace(program, module=deepcopy(program.module))
    layer = program.module.get_submodule("classifier")
    assert isinstance(layer, StaticLayer)
    layer.weight[0, 0] = 1e6  # the quantize operator saturates it, the recipe cannot
    other = tmp_path / "model.tflite"
    with pytest.raises(ConversionError, match="layer classifier: "):
        EXPORTER.export(program, other)
    assert not other.exists()


def test_converter_failure_is_one_line(tflite_programs: dict[str, Program], tmp_path: Path) -> None:
    """Oracle: a module whose control flow depends on its input, which torch.export refuses."""

    class Branch(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

    program = replace(tflite_programs["fp32"], module=Branch())
    with pytest.raises(ConversionError, match=r"^small fp32: litert-torch failed: ") as caught:
        EXPORTER.export(program, tmp_path / "model.tflite")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_runner_returns_its_own_copy(tflite_artifacts: Callable[[str], Any]) -> None:
    """Oracle: the first result, copied before the second call."""
    artifact = tflite_artifacts("fp32")
    run = EXPORTER.load(artifact.path, threads=2)
    first = run(artifact.input(0).numpy())
    kept = first.copy()
    second = run(artifact.input(1).numpy())
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "empty", "folder"])
def test_unreadable_file_is_an_input_error(
    damage: str, tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: the error names the file and is one line."""
    path = tmp_path / "broken.tflite"
    content = tflite_artifacts("w8a8").path.read_bytes()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"text": b"some text", "truncated": content[:-5000], "empty": b""}[damage])
    for read in (lambda: EXPORTER.load(path, threads=1), lambda: EXPORTER.audit(path)):
        with pytest.raises(InputError, match=r"broken\.tflite: not a readable TFLite") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_another_model_is_an_input_error(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: a readable file whose output is not (1, classes)."""
    model = _tflite_file.read(tflite_artifacts("fp32").path)
    graph = model.subgraphs[0]
    softmax = next(
        op for op in graph.operators if _tflite_file.operator_name(model, op) == "SOFTMAX"
    )
    graph.outputs = np.array([softmax.outputs[0]], np.int32)
    model.signatureDefs[0].outputs[0].tensorIndex = int(graph.outputs[0])
    path = tmp_path / "other.tflite"
    path.write_bytes(_tflite_file.serialise(model))
    with pytest.raises(InputError, match=r"other\.tflite: not an image classifier"):
        EXPORTER.load(path, threads=1)


def test_load_imports_only_the_runtime_and_is_silent(
    tflite_artifacts: Callable[[str], Any],
) -> None:
    """Oracle: the modules and the output of a fresh process."""
    code = (
        "import sys; from pathlib import Path\n"
        "from tinyvit_edge.exporters.tflite import TfliteExporter\n"
        "assert 'numpy' not in sys.modules\n"
        "TfliteExporter().load(Path(sys.argv[1]), threads=1)\n"
        "print(sorted({'torch', 'jax', 'litert_torch', 'flatbuffers'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tflite_artifacts("fp32").path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_export_is_silent_and_writes_one_file(
    tflite_programs: dict[str, Program],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Oracle: both output streams of this process, and the folder it works in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    EXPORTER.export(tflite_programs["w8a8"], tmp_path / "out" / "model.tflite")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["model.tflite"]
    assert capfd.readouterr() == ("", "")


def test_same_inputs_give_the_same_bytes(
    tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: a second export in this process; `test_processes_agree` uses others."""
    artifact = tflite_artifacts("w8-dynamic")
    EXPORTER.export(artifact.program, tmp_path / "again.tflite")
    assert (tmp_path / "again.tflite").read_bytes() == artifact.path.read_bytes()


_EXPORT_ALL = """
import sys; from pathlib import Path; import torch
from tinyvit_edge.exporters.tflite import TfliteExporter
for name in sys.argv[2:]:
    program = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=False)
    TfliteExporter().export(program, Path(sys.argv[1], f"{name}.tflite"))
"""


@pytest.mark.slow
def test_processes_agree(
    tflite_programs: dict[str, Program], tflite_artifacts: Callable[[str], Any], tmp_path: Path
) -> None:
    """Oracle: the same export in a process of its own, with another hash seed."""
    for name, program in tflite_programs.items():
        torch.save(program, tmp_path / f"{name}.pt")
    command = [sys.executable, "-c", _EXPORT_ALL, str(tmp_path), *tflite_programs]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "11"})
    for name in tflite_programs:
        assert (tmp_path / f"{name}.tflite").read_bytes() == tflite_artifacts(
            name
        ).path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWEST_SQNR)
def test_full_size_5m(
    precision: str,
    randomise: Callable[..., Any],
    quantized_program: Callable[..., Program],
    sqnr_db: Callable[[Tensor, Tensor], float],
    tmp_path: Path,
) -> None:
    """Oracle: `program.module` on randomised tiny_vit_5m_224; int8 leaves room for its chaos."""
    model = randomise(TinyVitForImageClassification(config_for("tiny_vit_5m_224")))
    program, path = quantized_program(model, precision, EXPORTER.form), tmp_path / "model.tflite"
    assert EXPORTER.export(program, path).details["xnnpack_partitions"] == 1
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    logits = torch.from_numpy(EXPORTER.load(path, threads=1)(image.numpy()))
    # larger than the small model, so more values lie on an edge
    lowest = LOWEST_SQNR[precision] - (10.0 if PRECISIONS[precision].quantized else 0.0)
    assert sqnr_db(program.module(image), logits) >= lowest
