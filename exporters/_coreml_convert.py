"""From a program to a Core ML package, through ``torch.export`` and coremltools."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tinyvit_edge._version import __version__
from tinyvit_edge.errors import ConversionError
from tinyvit_edge.exporters._coreml_coded import register_coded_weights
from tinyvit_edge.exporters._mlprogram_package import METADATA, proto, write_package
from tinyvit_edge.exporters._quiet import first_line, quiet_converter
from tinyvit_edge.program import INPUT_NAME, OUTPUT_NAME

if TYPE_CHECKING:
    from tinyvit_edge.preprocessing import Preprocessing
    from tinyvit_edge.program import Program

__all__ = ["convert", "unique_labels"]

_PROBABILITIES = "probabilities"
_LABEL = "classLabel"
_LABEL_PROBABILITIES = "classLabel_probs"
_OUTPUTS = {
    OUTPUT_NAME: "scores before the softmax (1, classes)",
    _LABEL: "most likely class",
    _LABEL_PROBABILITIES: "probability of every class",
}
_CONVERSION_DATE = "com.github.apple.coremltools.conversion_date"


def convert(program: Program, path: Path, *, classifier: bool, target: str) -> None:
    """Convert a program and write its package.

    Args:
        program: what to convert.
        path: the package's folder, which does not exist yet.
        classifier: an image classifier with labels; otherwise tensor to logits.
        target: lowest system that runs it, a member of ``coremltools.target``.

    Raises:
        ConversionError: coremltools cannot convert the program.
    """
    with tempfile.TemporaryDirectory(prefix=".coreml-", dir=path.parent) as scratch:
        try:
            with quiet_converter():
                model = _convert(program, Path(scratch), classifier=classifier, target=target)
        except Exception as error:  # coremltools raises nearly anything
            reason = first_line(error)
            raise ConversionError(
                f"coreml cannot convert {program.model_name} at {program.precision.name}: "
                f"{reason}; compare the package versions with tinyvit-edge doctor"
            ) from error
        spec = model.get_spec()
        if classifier:
            _add_classifier(spec, unique_labels(program.labels))
        _describe(spec, program, classifier=classifier)
        write_package(spec, Path(model.weights_dir), path)


def unique_labels(labels: tuple[str, ...]) -> tuple[str, ...]:
    """Labels by which a dictionary can tell all classes apart.

    A label that several classes share (ImageNet has two such pairs) gets the class index
    appended in each of them.
    """
    counts = Counter(labels)
    return tuple(
        f"{label} ({index})" if counts[label] > 1 else label for index, label in enumerate(labels)
    )


class _ImageClassifier(nn.Module):
    """A deployment form that takes ``pixel / 255 - mean`` and gives logits and probabilities."""

    inverse_std: Tensor | None

    def __init__(self, module: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.module = deepcopy(module)
        inverse = torch.tensor([1.0 / s for s in preprocessing.std], dtype=torch.float64)
        inverse = inverse.reshape(1, 3, 1, 1)
        stem: Any = self.module.get_submodule("stem.convs.0")
        self.register_buffer("inverse_std", None)
        if isinstance(stem, nn.Conv2d):
            # exact: the mean is subtracted before the convolution pads with zeros
            stem.weight.data = (stem.weight.double() * inverse).float()
        else:
            # int8 inputs are those of the normalised image, and scales are per output channel
            self.inverse_std = inverse.float()

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map (1, 3, S, S) to logits (1, classes) and probabilities (1, classes)."""
        if self.inverse_std is not None:
            image = image * self.inverse_std
        logits: Tensor = self.module(image)
        return logits, logits.softmax(-1)


def _convert(program: Program, scratch: Path, *, classifier: bool, target: str) -> Any:
    import coremltools as ct
    import numpy as np

    preprocessing = program.preprocessing
    shape = (1, 3, preprocessing.size, preprocessing.size)
    outputs = [ct.TensorType(name=OUTPUT_NAME, dtype=np.float32)]
    if classifier:
        image = ct.ImageType(
            name=INPUT_NAME,
            shape=shape,
            scale=1 / 255,
            bias=[-mean for mean in preprocessing.mean],
            color_layout=ct.colorlayout.RGB,
        )
        outputs.append(ct.TensorType(name=_PROBABILITIES, dtype=np.float32))
        module = _ImageClassifier(program.module, preprocessing).eval()
        with torch.no_grad():
            exported = torch.export.export(module, (program.example_input(),), strict=False)
    else:
        image = ct.TensorType(name=INPUT_NAME, shape=shape, dtype=np.float32)
        exported = program.exported()
    if program.precision.coded:
        register_coded_weights()
    half = program.precision.name != "fp32"
    return ct.convert(
        exported.run_decompositions({}),
        convert_to="mlprogram",
        inputs=[image],
        outputs=outputs,
        minimum_deployment_target=ct.target[target],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
        package_dir=str(scratch / "converted.mlpackage"),
    )


def _add_classifier(spec: Any, labels: tuple[str, ...]) -> None:
    """Turn the output of probabilities into a label and a dictionary, and keep the logits.

    What ``ct.ClassifierConfig`` does; coremltools 9.0 fails on it (IndexError) for a PyTorch
    model with a second output. `spec` is a ``Model_pb2.Model``.
    """
    mil = proto("MIL_pb2")
    function = spec.mlProgram.functions["main"]
    block = function.block_specializations[function.opset]
    operation = block.operations.add(type="classify")
    operation.inputs["probabilities"].arguments.add(name=_PROBABILITIES)
    classes = operation.inputs["classes"].arguments.add().value
    string = mil.ValueType(tensorType=mil.TensorType(dataType=mil.STRING))
    classes.type.listType.type.CopyFrom(string)
    classes.type.listType.length.constant.size = len(labels)
    for label in labels:
        classes.immediateValue.list.values.append(_string(mil, label))
    operation.outputs.add(name=_LABEL, type=string)
    table = operation.outputs.add(name=_LABEL_PROBABILITIES).type.dictionaryType
    table.keyType.CopyFrom(string)
    table.valueType.tensorType.dataType = mil.FLOAT64
    operation.attributes["name"].CopyFrom(_string(mil, "classify"))
    block.outputs[:] = [_LABEL, _LABEL_PROBABILITIES, OUTPUT_NAME]

    described = {output.name: output for output in spec.description.output}
    features = [type(described[OUTPUT_NAME])(name=name) for name in block.outputs]
    features[0].type.stringType.SetInParent()
    features[1].type.dictionaryType.stringKeyType.SetInParent()
    features[2].CopyFrom(described[OUTPUT_NAME])
    del spec.description.output[:]
    spec.description.output.extend(features)
    spec.description.predictedFeatureName = _LABEL
    spec.description.predictedProbabilitiesName = _LABEL_PROBABILITIES


def _string(mil: Any, text: str) -> Any:
    value = mil.Value()
    value.type.tensorType.dataType = mil.STRING
    value.immediateValue.tensor.strings.values.append(text)
    return value


def _describe(spec: Any, program: Program, *, classifier: bool) -> None:
    """Write what the package is, and how images reach it, into the package."""
    size = program.preprocessing.size
    description = spec.description
    description.input[0].shortDescription = (
        f"RGB image of {size} x {size} pixels"
        if classifier
        else f"normalised RGB image (1, 3, {size}, {size}), see the metadata's preprocessing"
    )
    for output in description.output:
        output.shortDescription = _OUTPUTS[output.name]
    metadata = description.metadata
    metadata.author = "tinyvit-edge"
    metadata.versionString = __version__
    metadata.shortDescription = (
        f"{program.model_name}: image classification into {len(program.labels)} classes, "
        f"{program.precision.name}"
    )
    facts = {
        "model": program.model_name,
        "precision": program.precision.name,
        "weights_sha256": program.weights_sha256,
        "preprocessing": json.dumps(program.preprocessing.to_dict()),
        "labels": json.dumps(program.labels, ensure_ascii=False),
    }
    for key, text in facts.items():
        metadata.userDefined[METADATA + key] = text
    # the only thing in the package that depends on the day
    metadata.userDefined.pop(_CONVERSION_DATE, None)
