"""Fixtures for tests that compare numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from xdist.scheduler import LoadScopeScheduling

import onnx_samples
import report_samples
import timm_oracle as timm_oracle_module
from deployment_samples import DEPLOYED_PRECISIONS, Deployed
from executorch_samples import executorch_files, executorch_program  # noqa: F401  # fixtures
from tinyvit_edge.__main__ import main
from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.compat import tolerate_torchvision
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.deployment import FormOptions, deployment_form
from tinyvit_edge.exporters import Exported
from tinyvit_edge.exporters.onnx import OnnxExporter
from tinyvit_edge.exporters.tflite import TfliteExporter
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS, Precision
from tinyvit_edge.preprocessing import preset
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.calibration import (
    Calibration,
    CalibrationOptions,
    calibrate,
    quantizable,
)
from tinyvit_edge.quantization.coded import Coded
from tinyvit_edge.quantization.moments import Moments, collect_moments
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.rounding import round_weights


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the slow tests find real photos."""
    parser.addoption("--data", type=Path, help="ImageFolder of photos for the slow tests")


class _ByFixture(LoadScopeScheduling):
    """Gives a worker all tests of a file, and all files that share a dear fixture."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        text = (self.config.rootpath / file).read_text(encoding="utf-8")
        shared = ("deployed", "executorch_files", "onnx_artifacts", "tflite_artifacts")
        return next((name for name in shared if name in text), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Tell pytest-xdist; its own groups by marks do nothing under pytest 9."""
    return _ByFixture(config, log)


Model = TypeVar("Model", bound=nn.Module)


# Before any test module imports transformers, whose image classes import torchvision.
tolerate_torchvision()


def _randomise(model: Model, seed: int = 0) -> Model:
    """Give a TinyViT, ours or timm's, the weights that initialisation leaves trivial.

    A fresh one has zero gains at the end of every MBConv and zero attention biases, so that a
    comparison would be blind to both. Returns the model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                uniform(module.weight, 0.6, 1.4)
                uniform(module.bias, -0.3, 0.3)
            if isinstance(module, nn.BatchNorm2d):
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # At the scale that keeps the variance, so that no branch fades and softmax and
                # logits are not flat.
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
                if module.bias is not None:
                    uniform(module.bias, -0.1, 0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("attention_biases"):
                uniform(parameter, -2, 2)
    return model.eval()


def _sqnr_db(reference: Tensor, measured: Tensor) -> float:
    """10 log10 of signal power over error power; infinite where they are equal."""
    reference, error = reference.double(), reference.double() - measured.double()
    return float(10 * torch.log10(reference.square().sum() / error.square().sum()))


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Any]:
    """`randomise(model, seed=0)`: non-trivial statistics, gains and biases, in place."""
    return _randomise


@pytest.fixture(scope="session")
def sqnr_db() -> Callable[[Tensor, Tensor], float]:
    """`sqnr_db(reference, measured)` in dB."""
    return _sqnr_db


@pytest.fixture(scope="session")
def timm_oracle() -> ModuleType:
    """`timm_model(name, seed, **kwargs)` and `timm_biases(table, window)`."""
    return timm_oracle_module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    """`made`, `missing`, `report_of`, `full_report` and `printed`: reports without a run."""
    return report_samples


@pytest.fixture(scope="session")
def small_model() -> TinyVitForImageClassification:
    """A randomised TinyViT for (B, 3, 64, 64) and 10 classes; copy it before changing it.

    Its stages go through windows that tile the map, that need padding, and that are the map.
    """
    config = TinyVitConfig(
        image_size=64,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 2, 1],
        num_heads=[1, 2, 3, 4],
        window_sizes=[4, 4, 3, 2],
        num_labels=10,
    )
    torch.manual_seed(0)
    return _randomise(TinyVitForImageClassification(config))


def _calibrated(module: nn.Module, images: list[Tensor]) -> Calibration:
    """Ranges with all that a calibration can have: factors of every norm, layers left out."""
    found = calibrate(module, images, CalibrationOptions(method="min-max", strength=0.5))
    names = list(found.layers)
    return replace(found, left_float={names[0]: "a test", names[-2]: "a test"})


def _rounded(module: nn.Module, precision: Precision, images: list[Tensor]) -> dict[str, Coded]:
    found = collect_moments(module, quantizable(module, precision), images)
    return round_weights(module, precision, Moments(layers=found, images=len(images[0])))


def _quantized_program(
    model: TinyVitForImageClassification, precision: str, form: FormOptions
) -> Program:
    """A model as a program, calibrated on 8 images of noise where the precision asks for it."""
    row, size = PRECISIONS[precision], model.config.image_size
    float_module = deployment_form(model, options=form)
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    module = quantize(
        float_module,
        row,
        calibration=_calibrated(float_module, [images]) if row.calibrated else None,
        coded=_rounded(float_module, row, [images]) if row.coded else None,
        dynamic_range=form.dynamic_range,
        requantize_weights=form.requantize_weights,
        half_biases=form.half_biases,
        linear_outputs=form.linear_outputs,
    )
    return Program(
        module=module,
        precision=row,
        preprocessing=preset("microsoft", size),
        labels=tuple(f"class {i}" for i in range(model.config.num_labels)),
        model_name="small",
        weights_sha256="0" * 64,
    )


@pytest.fixture(scope="session")
def quantized_program() -> Callable[..., Program]:
    """`quantized_program(model, precision, form)`: a program of a model of one's own."""
    return _quantized_program


@pytest.fixture(scope="session")
def calibrated() -> Callable[[nn.Module, list[Tensor]], Calibration]:
    """`calibrated(form, batches)`: ranges, factors of every norm, and two layers left out."""
    return _calibrated


@pytest.fixture(scope="session")
def rounded() -> Callable[[nn.Module, Precision, list[Tensor]], dict[str, Coded]]:
    """`rounded(form, precision, batches)`: the weights of a precision with few bits."""
    return _rounded


@pytest.fixture(scope="session")
def small_program(
    small_model: TinyVitForImageClassification,
) -> Callable[[str, FormOptions], Program]:
    """`small_program(precision="fp32", form=FormOptions())`: `small_model` as a program."""
    made: dict[tuple[str, FormOptions], Program] = {}

    def make(precision: str = "fp32", form: FormOptions = FormOptions()) -> Program:  # noqa: B008
        key = (precision, form)
        if key not in made:
            made[key] = _quantized_program(small_model, precision, form)
        return made[key]

    return make


@pytest.fixture(scope="session")
def large_window_program() -> Callable[[str, FormOptions], Program]:
    """`large_window_program(precision, form)`: a tiny model with windows of 14 as a program."""
    config = TinyVitConfig(
        image_size=112,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        num_heads=[1, 2, 4],
        window_sizes=[7, 14, 7],
        num_labels=10,
    )
    torch.manual_seed(0)
    model = _randomise(TinyVitForImageClassification(config))
    return lambda precision, form: _quantized_program(model, precision, form)


@pytest.fixture(scope="session")
def float_form(small_model: TinyVitForImageClassification) -> nn.Module:
    """`small_model` in its deployment form, not quantized; copy it before changing it."""
    return deployment_form(small_model)


@pytest.fixture(scope="session")
def batches() -> list[Tensor]:
    """Two batches of calibration images, of 3 and of 2."""
    return [
        torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        for count, seed in ((3, 1), (2, 2))
    ]


@pytest.fixture(scope="session")
def calibration(float_form: nn.Module, batches: list[Tensor]) -> Calibration:
    """The ranges of `float_form` over `batches`."""
    return _calibrated(float_form, batches)


@pytest.fixture(scope="session")
def onnx_artifacts(
    small_program: Callable[[str, FormOptions], Program], tmp_path_factory: pytest.TempPathFactory
) -> onnx_samples.Build:
    """`onnx_artifacts(precision)`: the small program as an ONNX file, exported once."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def made(precision: str) -> onnx_samples.Built:
        target = OnnxExporter()
        program = replace(small_program(precision, target.form), labels=onnx_samples.LABELS)
        path = folder / f"{precision}.onnx"
        return onnx_samples.Built(program, path, target.export(program, path))

    return made


@dataclass(frozen=True)
class TfliteArtifact:
    """A saved file, what it was made of, and its flatbuffer as an object."""

    program: Program
    path: Path
    exported: Exported
    model: Any

    def input(self, seed: int = 7) -> Tensor:
        """A normalised image."""
        size = self.program.preprocessing.size
        return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def tflite_programs() -> dict[str, Program]:
    """A program of each precision that TFLite takes, in the form that it wants.

    Of two stages, because the converter's time grows with the graph: `small_model` takes more
    than twice as long. Windows of 3 on 8 x 8 tokens take the padded path too.
    """
    config = TinyVitConfig(
        image_size=64,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        num_heads=[1, 2],
        window_sizes=[3, 3],
        num_labels=10,
    )
    model, form = _randomise(TinyVitForImageClassification(config)), TfliteExporter().form
    labels = tuple(f"clåss {i}" for i in range(config.num_labels))
    return {
        name: replace(_quantized_program(model, name, form), labels=labels)
        for name in PRECISIONS
        if name not in TfliteExporter.unsupported
    }


@pytest.fixture(scope="session")
def tflite_artifacts(
    tflite_programs: dict[str, Program], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], TfliteArtifact]:
    """`tflite_artifacts(precision)`: that one of `tflite_programs`, exported once."""
    from tinyvit_edge.exporters import _tflite_file

    made: dict[str, TfliteArtifact] = {}
    folder = tmp_path_factory.mktemp("tflite")

    def artifact(precision: str) -> TfliteArtifact:
        if precision not in made:
            program, path = tflite_programs[precision], folder / f"{precision}.tflite"
            exported = TfliteExporter().export(program, path)
            made[precision] = TfliteArtifact(program, path, exported, _tflite_file.read(path))
        return made[precision]

    return artifact


@pytest.fixture(scope="session")
def digits() -> Checkpoint:
    """The bundled checkpoint."""
    return load_checkpoint("digits")


@pytest.fixture(scope="session")
def digits_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `heldout`, an ImageFolder of handwritten digits each."""
    pytest.importorskip("sklearn")
    from tinyvit_edge.digits import write_images

    folder = tmp_path_factory.mktemp("digits") / "images"
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def deployed(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """The bundled weights, deployed once for all tests that look at bundles and reports."""
    from tinyvit_edge.deploy import DeployRequest, deploy
    from tinyvit_edge.exporters import TARGETS
    from tinyvit_edge.report import write_report

    out = tmp_path_factory.mktemp("deployed")
    request = DeployRequest(
        weights="digits",
        data=digits_images / "heldout",
        calib=digits_images / "train",
        targets=tuple(TARGETS),
        precisions=DEPLOYED_PRECISIONS,
        out=out,
        runs=10,
        limit=100,
        command=("tinyvit-edge", "deploy"),
    )
    report = deploy(request)
    write_report(report, out)
    return Deployed(out=out, report=report)


@pytest.fixture(scope="session")
def content() -> Callable[[Path], dict[str, bytes]]:
    """`content(folder)`: every file below it, by its relative name."""
    return lambda folder: {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`cli(*arguments)` -> (exit code, stdout, stderr) of the command line, in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tinyvit-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small models are faster on one thread, and their sums come out the same each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
