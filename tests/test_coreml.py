"""The Core ML exporter, judged by the packages that it saves."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.errors import ConversionError, InputError, UnsupportedError
from tinyvit_edge.exporters import Exported, Exporter, exporter, require_precision
from tinyvit_edge.exporters._coreml_convert import _add_classifier, unique_labels
from tinyvit_edge.exporters._mlprogram_package import METADATA, read_spec
from tinyvit_edge.exporters._mlprogram_reader import load_program
from tinyvit_edge.exporters._quiet import quiet_converter
from tinyvit_edge.exporters.coreml import CoreMlExporter
from tinyvit_edge.imagenet import imagenet_labels
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.preprocessing import Preprocessing, normalise, preset
from tinyvit_edge.program import Program
from tinyvit_edge.quantization.accounting import integer_demand, layer_macs
from tinyvit_edge.quantization.calibration import Calibration
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.variants import config_for

with quiet_converter():
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder as mb

Sqnr = Callable[[Tensor, Tensor], float]
SmallProgram = Callable[..., Program]
CLASSIFIER: Exporter = CoreMlExporter()
TENSOR: Exporter = CoreMlExporter(package="tensor")
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
# dB against program.module. Around the int8 layers of w8a8 the program computes in float16, and
# single values fall to the next int8 step: noise of float16's size on the image moves the module
# of a model with random weights by as much (28 dB)
LOWEST_SQNR = {
    "fp32": 90.0,
    "fp16": 35.0,
    "w8a8": 25.0,
    "w8a8-mixed": 25.0,
    "w8": 35.0,
    "w6-lut": 35.0,
    "w4-lut": 35.0,
    "w4g32": 35.0,
}


@dataclass(frozen=True)
class Saved:
    program: Program
    path: Path
    exported: Exported

    @property
    def image(self) -> NDArray[np.float32]:
        return normalise(PIXELS, self.program.preprocessing)[None]

    def reference(self, image: NDArray[np.float32]) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self.program.module(torch.from_numpy(image))
        return logits


# what differs from another precision in nothing but a number or the choice of layers
_ALIKE = ("w8a8-mixed", "w6-lut")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.slow) if name in _ALIKE else name
        for name in LOWEST_SQNR
    ],
)
def classifier(
    request: pytest.FixtureRequest,
    small_program: SmallProgram,
    tmp_path_factory: pytest.TempPathFactory,
) -> Saved:
    """An image package of the small model at each precision."""
    program = small_program(request.param)
    path = tmp_path_factory.mktemp("coreml") / CLASSIFIER.artifact
    return Saved(program, path, CLASSIFIER.export(program, path))


@pytest.fixture(scope="module")
def tensor(small_program: SmallProgram, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A float32 tensor package of the small model, under a name without suffix."""
    path = tmp_path_factory.mktemp("coreml") / "temporary"
    return Saved(small_program("fp32"), path, TENSOR.export(small_program("fp32"), path))


def _hashes(path: Path) -> dict[str, str]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_image_package_equals_the_module(classifier: Saved, sqnr_db: Sqnr) -> None:
    """Oracle: the program's own module on the normalised image, eagerly in torch."""
    run = CLASSIFIER.load(classifier.path, threads=1)
    logits = run(classifier.image)
    assert logits.dtype == np.float32
    assert logits.shape == (1, 10)
    found = sqnr_db(classifier.reference(classifier.image), torch.from_numpy(logits))
    assert found >= LOWEST_SQNR[classifier.program.precision.name]
    again = run(classifier.image)
    logits[:] = 0
    np.testing.assert_array_equal(run(classifier.image), again)


def test_tensor_package_equals_the_module(tensor: Saved, sqnr_db: Sqnr) -> None:
    """Oracle: the program's own module on a tensor that is no image."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)).numpy()
    logits = TENSOR.load(tensor.path, threads=1)(x)
    assert sqnr_db(tensor.reference(x), torch.from_numpy(logits)) >= LOWEST_SQNR["fp32"]


def test_classifier_outputs_agree(classifier: Saved) -> None:
    """Oracle: softmax and argmax of the package's own logits; the pixels go in as they are."""
    pixels = PIXELS.transpose(2, 0, 1)[None].astype(np.float32)
    outputs = load_program(classifier.path)({"image": pixels})
    logits = outputs["logits"][0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    labels = classifier.program.labels
    assert outputs["classLabel"] == labels[int(logits.argmax())]
    assert tuple(outputs["classLabel_probs"]) == labels
    found = list(outputs["classLabel_probs"].values())
    np.testing.assert_allclose(found, probabilities, atol=2e-3)


def test_package_describes_itself(classifier: Saved) -> None:
    """Oracle: the program that was exported."""
    program, spec = classifier.program, read_spec(classifier.path)
    metadata = spec.description.metadata.userDefined
    facts = {key: metadata[METADATA + key] for key in ("model", "precision", "weights_sha256")}
    assert facts == {
        "model": program.model_name,
        "precision": program.precision.name,
        "weights_sha256": program.weights_sha256,
    }
    stored = json.loads(metadata[METADATA + "preprocessing"])
    assert Preprocessing.from_dict(stored) == program.preprocessing
    assert tuple(json.loads(metadata[METADATA + "labels"])) == program.labels
    assert spec.description.metadata.shortDescription
    image = spec.description.input[0].type.imageType
    assert (image.width, image.height) == (64, 64)
    system, version = ("iOS18", 9) if program.precision.name == "w4g32" else ("iOS17", 8)
    assert classifier.exported.details["deployment_target"] == system
    assert spec.specificationVersion == version


def test_audit_counts_what_torch_counts(classifier: Saved) -> None:
    """Oracles: torch's FLOP counter, the module's int8 layers, the sizes of its own weights."""
    module = classifier.program.module
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.from_numpy(classifier.image))
    flops: dict[Any, int] = counter.get_flop_counts()["Global"]
    total = sum(flops.values())
    attention = sum(count for operator, count in flops.items() if "bmm" in str(operator))
    audit = CLASSIFIER.audit(classifier.path)
    assert audit.total_macs == total // 2
    row = classifier.program.precision
    if row.quantized:
        if row.calibrated and not row.mixed:
            macs = layer_macs(module, torch.from_numpy(classifier.image))  # of what is float
            assert macs.keys() == {name for name in macs if name.endswith("local_conv")}
            assert audit.int8_macs == (total - attention) // 2 - sum(macs.values())
        demand = integer_demand(module, torch.from_numpy(classifier.image))
        assert demand.weight_bytes.keys() == {row.weights, "int8"}
        for dtype, size in demand.weight_bytes.items():
            assert audit.weight_bytes[dtype] == size
        assert audit.int8_macs == demand.int8_macs
        if row.weights == "int8":
            assert audit.int8_weight_fraction > (0.7 if row.mixed else 0.9)
    else:
        assert audit.int8_macs == 0
        wanted = "float16" if classifier.program.precision.name == "fp16" else "float32"
        weights = sum(p.numel() for p in module.parameters())
        assert audit.weight_bytes[wanted] >= weights * (2 if wanted == "float16" else 4)


def test_second_export_is_the_same_to_the_byte_and_quiet(
    small_program: SmallProgram, tensor: Saved, capfd: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the first export; `path.parent` holds the two packages and nothing else."""
    second = tensor.path.with_name("second")
    capfd.readouterr()
    exported = TENSOR.export(small_program("fp32"), second)
    assert capfd.readouterr() == ("", "")
    assert exported.reproducible
    assert _hashes(second) == _hashes(tensor.path)
    assert {item.name for item in second.parent.iterdir()} == {"temporary", "second"}


def test_changed_weight_is_noticed(tensor: Saved, tmp_path: Path, sqnr_db: Sqnr) -> None:
    """Oracle: the module; one blob of the saved package is overwritten."""
    broken = Path(shutil.copytree(tensor.path, tmp_path / "broken.mlpackage"))
    (weights,) = broken.rglob("weight.bin")
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    weights.write_bytes(bytes(content))
    logits = TENSOR.load(broken, threads=1)(tensor.image)
    assert sqnr_db(tensor.reference(tensor.image), torch.from_numpy(logits)) < 60


def test_image_package_refuses_what_is_no_image(classifier: Saved) -> None:
    """Oracle: a random tensor comes from no 8-bit image; nor do values beyond white."""
    run = CLASSIFIER.load(classifier.path, threads=1)
    for x in (np.random.default_rng(1).normal(size=classifier.image.shape), classifier.image * 3):
        with pytest.raises(InputError, match=r"takes images only.* --package tensor$"):
            run(x.astype(np.float32))


def test_layer_stored_in_another_type_is_a_failed_conversion(
    small_program: SmallProgram, tensor: Saved
) -> None:
    """Oracle: a float32 package cannot be what w8a8 or fp16 asked for."""
    target = CoreMlExporter(package="tensor")
    target._check_stored(small_program("fp32"), tensor.path)
    for precision in ("w8a8", "fp16"):
        with pytest.raises(ConversionError, match=precision):
            target._check_stored(small_program(precision), tensor.path)


class _Unconvertible(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        """Map (1, 3, S, S) to (1, 3) by an operator that Core ML does not have."""
        return torch.linalg.det(x)


def test_converter_failure_is_one_line_and_leaves_nothing(
    small_program: SmallProgram, tmp_path: Path
) -> None:
    """Oracle: Core ML has no determinant."""
    program = replace(small_program("fp32"), module=_Unconvertible())
    with pytest.raises(ConversionError, match="coreml cannot convert small at fp32") as caught:
        TENSOR.export(program, tmp_path / "model.mlpackage")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"text"])
def test_file_that_is_no_package_is_refused(tmp_path: Path, content: bytes | None) -> None:
    """Oracle: nothing, or a text file, where the package should be."""
    path = tmp_path / "model.mlpackage"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.mlpackage") as caught:
        CLASSIFIER.load(path, threads=1)
    assert "\n" not in str(caught.value)


def test_unsupported_precisions_and_options_are_refused() -> None:
    """Oracle: Core ML quantizes no activations at run time, and none at all before iOS17."""
    with pytest.raises(UnsupportedError, match="run time"):
        require_precision(CLASSIFIER, PRECISIONS["w8-dynamic"])
    require_precision(CLASSIFIER, PRECISIONS["w8a8"])
    with pytest.raises(UnsupportedError, match="iOS17"):
        require_precision(exporter("coreml", deployment_target="iOS16"), PRECISIONS["w8a8"])
    with pytest.raises(UnsupportedError, match="iOS17"):
        require_precision(exporter("coreml", deployment_target="iOS16"), PRECISIONS["w8a8-mixed"])
    require_precision(exporter("coreml", deployment_target="iOS17"), PRECISIONS["w4-lut"])
    with pytest.raises(UnsupportedError, match="iOS18"):
        require_precision(exporter("coreml", deployment_target="iOS17"), PRECISIONS["w4g32"])
    with pytest.raises(InputError, match=r"--deployment-target is 'iOS9'.*iOS15, iOS16"):
        exporter("coreml", deployment_target="iOS9")
    with pytest.raises(InputError, match=r"--package is 'image'.*classifier, tensor"):
        exporter("coreml", package="image")


def test_shared_labels_are_told_apart() -> None:
    """Oracle: a dictionary with one key a class; ImageNet has two cranes."""
    assert unique_labels(("crane", "tench", "crane")) == ("crane (0)", "tench", "crane (2)")


def test_classifier_protobuf_equals_coremltools_own() -> None:
    """Oracle: what coremltools writes for a MIL program with logits and ClassifierConfig."""

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 3))], opset_version=ct.target.iOS17)
    def program(image: Any) -> Any:
        logits = mb.tanh(x=image, name="logits")
        return logits, mb.softmax(x=logits, axis=-1, name="probabilities")

    def convert(**options: Any) -> Any:
        return ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
            **options,
        ).get_spec()

    labels = ("cat", "dog", "eel")
    with quiet_converter():
        mine = convert()
        config = ct.ClassifierConfig(list(labels), predicted_probabilities_output="probabilities")
        theirs = convert(classifier_config=config)
    _add_classifier(mine, labels)
    blocks = [
        model.mlProgram.functions["main"].block_specializations["CoreML7"]
        for model in (mine, theirs)
    ]
    for block in blocks:
        block.operations[-1].attributes["name"].Clear()
    assert blocks[0] == blocks[1]
    for model in (mine, theirs):
        model.description.ClearField("metadata")
    assert mine.description == theirs.description


@pytest.mark.slow
@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS18"])
@pytest.mark.parametrize("precision", LOWEST_SQNR)
def test_every_deployment_target(
    target: str, precision: str, small_program: SmallProgram, tmp_path: Path, sqnr_db: Sqnr
) -> None:
    """Oracle: the program's own module, eagerly in torch."""
    chosen = exporter("coreml", deployment_target=target)
    if precision in chosen.unsupported:
        pytest.skip(chosen.unsupported[precision])
    program = small_program(precision)
    saved = Saved(program, tmp_path / "p", chosen.export(program, tmp_path / "p"))
    logits = chosen.load(saved.path, threads=1)(saved.image)
    found = sqnr_db(saved.reference(saved.image), torch.from_numpy(logits))
    assert found >= LOWEST_SQNR[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWEST_SQNR)
def test_full_size(
    precision: str,
    randomise: Callable[..., Any],
    calibrated: Callable[..., Calibration],
    rounded: Callable[..., Any],
    tmp_path: Path,
    sqnr_db: Sqnr,
) -> None:
    """Oracle: the program's own module of a randomised tiny_vit_5m_224, on photo-like pixels."""
    model = randomise(TinyVitForImageClassification(config_for("tiny_vit_5m_224")))
    preprocessing = preset("microsoft", 224)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3), dtype=np.uint8)
    pixels = coarse.repeat(32, 1).repeat(32, 2)
    images = np.stack([normalise(image, preprocessing) for image in pixels])
    form, row = deployment_form(model), PRECISIONS[precision]
    ranges = calibrated(form, [torch.from_numpy(images)]) if row.calibrated else None
    coded = rounded(form, row, [torch.from_numpy(images)]) if row.coded else None
    program = Program(
        module=quantize(form, row, calibration=ranges, coded=coded),
        precision=row,
        preprocessing=preprocessing,
        labels=imagenet_labels(),
        model_name="tiny_vit_5m_224",
        weights_sha256="0" * 64,
    )
    path = tmp_path / CLASSIFIER.artifact
    saved = Saved(program, path, CLASSIFIER.export(program, path))
    assert saved.exported.details["labels_made_unique"] == 4
    logits = torch.from_numpy(CLASSIFIER.load(path, threads=1)(images[:1]))
    assert sqnr_db(saved.reference(images[:1]), logits) >= LOWEST_SQNR[precision]


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
def test_core_ml_itself_predicts_the_logits(classifier: Saved, sqnr_db: Sqnr) -> None:
    """Oracle: the program's own module; Core ML may use float16 units for a float32 program."""
    assert CLASSIFIER.evaluation == "predicted"
    logits = CLASSIFIER.load(classifier.path, threads=1)(classifier.image)
    found = sqnr_db(classifier.reference(classifier.image), torch.from_numpy(logits))
    assert found >= min(LOWEST_SQNR[classifier.program.precision.name], 35.0)
