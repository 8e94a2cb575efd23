"""The ExecuTorch target: every file is written, executed in its own runtime, and read back."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import DeploymentForm, FormOptions, deployment_form
from tinyvit_edge.errors import ConversionError, InputError, UnsupportedError
from tinyvit_edge.exporters.executorch import ExecuTorchExporter, read_metadata
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.accounting import integer_demand
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.variants import config_for

if TYPE_CHECKING:
    from tinyvit_edge.exporters import Exported, Exporter

    _: Exporter = ExecuTorchExporter()

pytest.importorskip("executorch")

Calibrate = Callable[[DeploymentForm, list[torch.Tensor]], Calibration]

SIZE = 32
SUPPORTED = [name for name in PRECISIONS if name not in ExecuTorchExporter().unsupported]
Sqnr = Callable[[torch.Tensor, torch.Tensor], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An exported program and its file."""

    program: Program
    path: Path
    exported: Exported

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        runner = ExecuTorchExporter().load(self.path, threads=1)
        return torch.from_numpy(np.concatenate([runner(image[None].numpy()) for image in images]))

    def reference(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([self.program.module(image[None]) for image in images])


@pytest.fixture(scope="module")
def make_program(randomise: Callable[..., Any], calibrated: Calibrate) -> Callable[..., Program]:
    """`make_program(precision, options)`: a model of 32 px whose windows need padding."""
    torch.manual_seed(0)
    config = TinyVitConfig(
        image_size=SIZE,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_heads=[1, 2],
        window_sizes=[3, 3],
        num_labels=5,
    )
    model = randomise(TinyVitForImageClassification(config))

    def make(precision: str, options: FormOptions) -> Program:
        form = deployment_form(model, options=options)
        # lowering takes seconds, and the stem and the downsampling have all that this stage has
        form.stages[0].blocks = torch.nn.Sequential()
        return _program(form, precision, SIZE, calibrated)

    return make


def _program(form: DeploymentForm, precision: str, size: int, calibrated: Calibrate) -> Program:
    row, images = PRECISIONS[precision], _images(4, seed=1, size=size)
    return Program(
        module=quantize(
            form,
            row,
            calibration=calibrated(form, [images]) if row.calibrated else None,
            dynamic_range=ExecuTorchExporter().form.dynamic_range,
        ),
        precision=row,
        preprocessing=preset("microsoft", size),
        labels=("ant", "bee", "cat", "dog", "émeu"),
        model_name="tiny",
        weights_sha256="ab" * 32,
    )


def _images(count: int, seed: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def written(
    make_program: Callable[..., Program], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Written]:
    """One file per precision, all through XNNPACK."""
    target, folder = ExecuTorchExporter(), tmp_path_factory.mktemp("executorch")
    files = {}
    for name in SUPPORTED:
        program, path = make_program(name, target.form), folder / f"{name}.pte"
        exported = target.export(program, path)
        files[name] = Written(program=program, path=path, exported=exported)
    return files


@pytest.mark.parametrize(
    ("precision", "decibels"),
    [("fp32", 90), ("fp16", 35), ("w8-dynamic", 30), ("w8a8", 30), ("w8a8-mixed", 30)],
)
def test_file_computes_what_the_program_computes(
    written: Mapping[str, Written], sqnr_db: Sqnr, precision: str, decibels: float
) -> None:
    """Oracle: the program's module, run eagerly by torch on the same images."""
    file, images = written[precision], _images(4)
    assert sqnr_db(file.reference(images), file.logits(images)) >= decibels


@pytest.mark.parametrize("precision", SUPPORTED)
def test_everything_is_in_one_partition(written: Mapping[str, Written], precision: str) -> None:
    """Oracle: the lowering's contract; half precision adds the casts of its input and output."""
    details = written[precision].exported.details
    casts = {"dim_order_ops::_to_dim_order_copy": 2} if precision == "fp16" else {}
    assert (details["partitions"], details["operators_outside"]) == (1, casts)


def _layer_macs(program: Program) -> dict[str, int]:
    """Multiply-accumulates of Linear and convolution layers, from the shapes torch sees."""
    macs = {"linear": 0, "conv": 0, "local_conv": 0}

    def counter(kind: str) -> Any:
        def count(layer: Any, _: Any, output: torch.Tensor) -> None:
            macs[kind] += output.numel() * layer.weight[0].numel()

        return count

    hooks = []
    for name, layer in program.module.named_modules():
        if hasattr(layer, "weight"):
            kind = "linear" if layer.weight.ndim == 2 else "conv"
            last = name.rpartition(".")[2]
            hooks.append(layer.register_forward_hook(counter(last if last in macs else kind)))
    with torch.no_grad():
        program.module(program.example_input())
    for hook in hooks:
        hook.remove()
    return macs


def test_audit_counts_what_runs_in_int8(written: Mapping[str, Written]) -> None:
    """Oracle: multiply-accumulates counted by hooks on the module's layers in torch."""
    audits = {name: ExecuTorchExporter().audit(file.path) for name, file in written.items()}
    macs = _layer_macs(written["fp32"].program)
    # 4 windows of 3 x 3 tokens cover 4 x 4 positions; 2 heads of 16 channels, 2 products
    attention = 4 * 2 * 2 * 9 * 9 * 16
    assert {audit.total_macs for audit in audits.values()} == {sum(macs.values()) + attention}
    mixed = written["w8a8-mixed"].program
    assert {name: audit.int8_macs for name, audit in audits.items()} == {
        "fp32": 0,
        "fp16": 0,
        "w8-dynamic": macs["linear"],
        "w8a8": macs["linear"] + macs["conv"],
        "w8a8-mixed": integer_demand(mixed.module, mixed.example_input()).int8_macs,
    }


def test_audit_finds_the_weights_in_their_storage_type(written: Mapping[str, Written]) -> None:
    """Oracle: the modules: their int8 layers, and the sizes of their own tensors."""
    audits = {name: ExecuTorchExporter().audit(file.path) for name, file in written.items()}
    for name in ("w8-dynamic", "w8a8-mixed", "w8a8"):
        demand = integer_demand(written[name].program.module, _images(1))
        found = audits[name].weight_bytes["int8"], audits[name].int8_macs
        assert found == (demand.weight_bytes["int8"], demand.int8_macs)
    assert set(audits["fp32"].weight_bytes) == {"float32"}
    half = audits["fp16"].weight_bytes
    convolutions = 4 * sum(
        tensor.numel()
        for layer in written["fp16"].program.module.modules()
        if isinstance(layer, torch.nn.Conv2d)
        for tensor in layer.parameters()
    )
    assert half["float32"] == convolutions  # the rest of the weights is in float16
    assert written["w8a8"].path.stat().st_size < written["fp16"].path.stat().st_size


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
    first, second = _images(2).numpy()[:, None]
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
    images = _images(2)
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
    file, images = Written(program=program, path=path, exported=exported), _images(2)
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
    program = _program(deployment_form(model, options=target.form), precision, 224, calibrated)
    file = Written(program=program, path=path, exported=target.export(program, path))
    images = _images(2, size=224)
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
