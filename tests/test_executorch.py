"""The ExecuTorch target: every file is written, executed in its own runtime, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from executorch_samples import (
    SIZE,
    SUPPORTED,
    Calibrate,
    MakeProgram,
    Written,
    images_of,
    program_maker,
    program_of,
    written_files,
)
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.errors import ConversionError, InputError, UnsupportedError
from tinyvit_edge.exporters.executorch import ExecuTorchExporter, read_metadata
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.variants import config_for

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Exporter

    _: Exporter = ExecuTorchExporter()

pytest.importorskip("executorch")

Sqnr = Callable[[torch.Tensor, torch.Tensor], float]


@pytest.fixture(scope="module")
def make_program(randomise: Callable[..., Any], calibrated: Calibrate) -> MakeProgram:
    """`make_program(precision, options)`: a model of 32 px whose windows need padding."""
    return program_maker(randomise, calibrated)


@pytest.fixture(scope="module")
def written(
    make_program: MakeProgram, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Written]:
    """One file per precision, all through XNNPACK."""
    return written_files(make_program, tmp_path_factory.mktemp)


@pytest.mark.parametrize(
    ("precision", "decibels"),
    [("fp32", 90), ("fp16", 35), ("w8-dynamic", 30), ("w8a8", 30), ("w8a8-mixed", 30)],
)
def test_file_computes_what_the_program_computes(
    written: Mapping[str, Written], sqnr_db: Sqnr, precision: str, decibels: float
) -> None:
    """Oracle: the program's module, run eagerly by torch on the same images."""
    file, images = written[precision], images_of(4)
    assert sqnr_db(file.reference(images), file.logits(images)) >= decibels


@pytest.mark.parametrize("precision", SUPPORTED)
def test_everything_is_in_one_partition(written: Mapping[str, Written], precision: str) -> None:
    """Oracle: the lowering's contract; half precision adds the casts of its input and output."""
    details = written[precision].exported.details
    casts = {"dim_order_ops::_to_dim_order_copy": 2} if precision == "fp16" else {}
    assert (details["partitions"], details["operators_outside"]) == (1, casts)


def test_metadata_is_inside_the_file(written: Mapping[str, Written]) -> None:
    """Oracle: the program that was exported; the runtime itself reads the text back."""
    file = written["w8a8"]
    assert read_metadata(file.path) == {
        "model_name": "tiny",
        "precision": "w8a8",
        "preprocessing": file.program.preprocessing.to_dict(),
        "labels": ["ant", "bee", "cat", "dog", "émeu"],
        "weights_sha256": "ab" * 32,
    }
    assert json.dumps(dict(file.exported.details))  # facts for the manifest are JSON values


def test_results_belong_to_the_caller(written: Mapping[str, Written]) -> None:
    """Oracle: a result kept across a second call, and a read-only, strided input."""
    runner = ExecuTorchExporter().load(written["fp32"].path, threads=1)
    first, second = images_of(2).numpy()[:, None]
    kept = runner(first)
    before = kept.copy()
    assert not np.array_equal(runner(second), before)
    np.testing.assert_array_equal(kept, before)
    strided = np.asfortranarray(first)
    strided.flags.writeable = False
    np.testing.assert_array_equal(runner(strided), before)


def test_loading_is_light_and_silent(written: Mapping[str, Written]) -> None:
    """Oracle: a fresh process: what it has imported after a run, and its standard error."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from tinyvit_edge.exporters.executorch import ExecuTorchExporter as E\n"
        "run = E().load(pathlib.Path(sys.argv[1]), threads=1)\n"
        f"assert run(np.zeros((1, 3, {SIZE}, {SIZE}), np.float32)).shape == (1, 5)\n"
        "print([m for m in ('executorch.exir', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(written["w8a8"].path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("damage", ["truncated", "text", "missing", "empty"])
def test_a_damaged_file_is_refused_by_name(
    written: Mapping[str, Written], tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    """Oracle: the error names the file in one line, and the runtime's own messages stay away."""
    path, good = tmp_path / "bad.pte", written["fp32"].path.read_bytes()
    data = {"truncated": good[: len(good) // 2], "text": b"not a program" * 99, "empty": b""}
    if damage in data:
        path.write_bytes(data[damage])
    with pytest.raises(InputError, match=r"bad\.pte") as caught:
        ExecuTorchExporter().load(path, threads=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"bad\.pte"):
        ExecuTorchExporter().audit(path)
    assert capfd.readouterr().err == ""


def test_a_changed_weight_changes_the_logits(
    written: Mapping[str, Written], tmp_path: Path, sqnr_db: Sqnr
) -> None:
    """Oracle: the file holds its weights once and unpacked, so zeros over one must show."""
    file, path = written["fp32"], tmp_path / "corrupt.pte"
    weight = file.program.module.get_parameter("stem.convs.0.weight").detach()
    stored = weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes()  # XNNPACK's layout
    data = file.path.read_bytes()
    assert data.count(stored) == 1
    path.write_bytes(data.replace(stored, bytes(len(stored))))
    images = images_of(2)
    corrupt = replace(file, path=path)
    assert sqnr_db(file.reference(images), corrupt.logits(images)) < 40


class _Small(torch.nn.Module):
    """A classifier of five operators, one of them a LayerNorm: lowered in a second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=4)  # 32 x 32 -> 8 x 8
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.gelu(self.conv(image)).mean((2, 3))  # (B, 8)
        out: torch.Tensor = self.head(self.norm(x))
        return out


@pytest.fixture
def small_program(make_program: Callable[..., Program]) -> Callable[[str], Program]:
    """`small_program(precision)`: a float program around `_Small`."""
    torch.manual_seed(1)
    module = _Small().eval().requires_grad_(False)

    def make(name: str) -> Program:
        program = make_program("fp32", FormOptions())
        row = PRECISIONS[name]
        return replace(program, module=quantize(module, row), precision=row)

    return make


def test_fp32_outside_the_partition_is_an_error(
    small_program: Callable[[str], Program], tmp_path: Path
) -> None:
    """Oracle: XNNPACK's partitioner takes no LayerNorm, so one must be refused, and named."""
    with pytest.raises(ConversionError, match=r"native_layer_norm x1.* outside"):
        ExecuTorchExporter().export(small_program("fp32"), tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_portable_kernels_compute_the_same(
    small_program: Callable[[str], Program], tmp_path: Path, sqnr_db: Sqnr, precision: str
) -> None:
    """Oracle: the module in torch, and the sizes of its layers and constants."""
    target, path = ExecuTorchExporter(delegate="portable"), tmp_path / "model.pte"
    program = small_program(precision)
    exported = target.export(program, path)
    file, images = Written(program=program, path=path, exported=exported), images_of(2)
    assert sqnr_db(file.reference(images), file.logits(images)) >= 90
    assert exported.details["partitions"] == 0
    audit, width = target.audit(path), {"fp32": 4, "fp16": 2}[precision]
    parameters = sum(tensor.numel() for tensor in program.module.parameters())
    assert dict(audit.weight_bytes) == {f"float{8 * width}": width * parameters}
    assert audit.total_macs == 8 * 8 * 8 * 27 + 8 * 5


@pytest.mark.parametrize("delegate", ["portable", "coreml"])
def test_int8_is_refused_where_the_delegate_has_none(
    make_program: Callable[..., Program], tmp_path: Path, delegate: Any
) -> None:
    """Oracle: the delegate's own list of what it cannot do."""
    target = ExecuTorchExporter(delegate=delegate)
    assert set(PRECISIONS) - set(target.unsupported) == {"fp32", "fp16"}
    with pytest.raises(UnsupportedError, match=r"it can do fp32, fp16"):
        target.export(make_program("w8-dynamic", target.form), tmp_path / "model.pte")
    assert not list(tmp_path.iterdir())


def test_delegates_that_do_not_exist_are_refused() -> None:
    """Oracle: the list of delegates; the message names the option of the command line."""
    wrong: Any = "foo"
    with pytest.raises(InputError, match=r"--delegate is 'foo'.* xnnpack, portable, coreml$"):
        ExecuTorchExporter(delegate=wrong)


def test_core_ml_delegate_is_made_ahead_of_time(
    small_program: Callable[[str], Program],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Oracle: the file's own delegate table; it runs on Apple devices, so here it is refused."""
    pytest.importorskip("coremltools")
    target, path = ExecuTorchExporter(delegate="coreml"), tmp_path / "model.pte"
    exported = target.export(small_program("fp16"), path)
    assert (exported.details["partitions"], exported.details["operators_outside"]) == (1, {})
    assert read_metadata(path)["precision"] == "fp16"
    with pytest.raises(UnsupportedError, match=r"Core ML.* --delegate xnnpack$"):
        target.load(path, threads=1)
    with pytest.raises(UnsupportedError, match="CoreMLBackend"):
        target.audit(path)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "decibels"), [("fp32", 90), ("fp16", 35), ("w8-dynamic", 30)]
)
def test_full_size_model(
    randomise: Callable[..., Any],
    calibrated: Calibrate,
    tmp_path: Path,
    sqnr_db: Sqnr,
    precision: str,
    decibels: float,
) -> None:
    """Oracle: the program's module in torch, on tiny_vit_5m_224."""
    target, path = ExecuTorchExporter(), tmp_path / "model.pte"
    model = randomise(TinyVitForImageClassification(config_for("tiny_vit_5m_224")))
    program = program_of(deployment_form(model, options=target.form), precision, 224, calibrated)
    file = Written(program=program, path=path, exported=target.export(program, path))
    images = images_of(2, size=224)
    assert sqnr_db(file.reference(images), file.logits(images)) >= decibels
    assert file.exported.details["partitions"] == 1


@pytest.mark.slow
def test_same_program_gives_the_same_bytes(written: Mapping[str, Written], tmp_path: Path) -> None:
    """Oracle: a second process, whose hashes of strings are salted otherwise."""
    file, path = written["w8a8"], tmp_path / "model.pte"
    child = get_context("spawn").Process(
        target=ExecuTorchExporter().export, args=(file.program, path)
    )
    child.start()
    child.join()
    assert path.read_bytes() == file.path.read_bytes()
