"""Core ML: an ML program in an ``.mlpackage``, by way of ``torch.export`` and coremltools.

On macOS a package runs in Core ML itself; elsewhere its saved file runs in the reference
evaluator (`tinyvit_edge.exporters._mlprogram`), and results say so.

``fp16`` computes in float16, which is what the Neural Engine has, and so does everything around
the int8 layers of ``w8a8``. In float32 those packages equal their torch module but for ties of
rounding, yet a float32 program stays off the Neural Engine. In float16 single values fall to the
next int8 step: the package is then about as far from its module as the module is from the float
model, and no farther from the float model itself. Scales rounded to float16 are not the cause:
scales that float16 represents exactly give the same distance.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from tinyvit_edge.errors import ConversionError, InputError
from tinyvit_edge.exporters import Audit, Evaluation, Exported, Runner
from tinyvit_edge.exporters._quiet import first_line, quiet_converter

if TYPE_CHECKING:
    from tinyvit_edge.deployment import FormOptions
    from tinyvit_edge.program import Program
    from tinyvit_edge.types import FloatArray

__all__ = ["CoreMlExporter"]

Package = Literal["classifier", "tensor"]
DeploymentTarget = Literal["iOS15", "iOS16", "iOS17", "iOS18"]
Layout = Literal["rows", "ane"]

_DYNAMIC = "Core ML has no operator that quantizes activations at run time"
_FLOAT_LAYOUT = "--layout ane is for layers in floating point, not for quantized ones"
_SYSTEMS: tuple[str, ...] = get_args(DeploymentTarget)
_USUAL = "iOS17"
# precision -> the first system that runs it, and what that brings
_NEEDS = {
    "w8a8": ("iOS17", "Core ML quantizes activations"),
    "w8a8-mixed": ("iOS17", "Core ML quantizes activations"),
    "w8": ("iOS17", "coremltools writes PyTorch's int8 weights"),
    "w6-lut": ("iOS17", "coremltools writes PyTorch's int8 attention biases"),
    "w4-lut": ("iOS17", "coremltools writes PyTorch's int8 attention biases"),
    "w4g32": ("iOS18", "Core ML takes int4 weights"),
}
_PIXEL_TOLERANCE = 1e-2
"""Largest distance from a whole pixel value, in 0..255, that float32 rounding explains amply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreMlExporter:
    """Core ML packages of one kind for one deployment target.

    Raises:
        InputError: an option has a value that does not exist.
    """

    package: Package = "classifier"
    """``classifier``: takes an RGB image, normalises it itself, gives the label, a dictionary of
    probabilities and the logits. ``tensor``: takes the normalised tensor, gives the logits."""
    deployment_target: DeploymentTarget | None = None
    """Lowest system that runs the package; None: iOS17, or iOS18 where the precision needs it."""

    layout: Layout = "rows"
    """``rows``: the deployment form as it is. ``ane``: channels first, as the Neural Engine likes
    tensors (`tinyvit_edge.deployment_ane`); at ``fp32`` and ``fp16`` only."""

    name: ClassVar[str] = "coreml"
    artifact: ClassVar[str] = "model.mlpackage"
    requires: ClassVar[tuple[str, ...]] = ("coremltools",)
    rounding: ClassVar[float] = 1e-3

    def __post_init__(self) -> None:
        for field, choices in (
            ("package", get_args(Package)),
            ("deployment_target", (*_SYSTEMS, None)),
            ("layout", get_args(Layout)),
        ):
            if getattr(self, field) not in choices:
                option = f"--{field.replace('_', '-')}"
                raise InputError(
                    f"coreml: {option} is {getattr(self, field)!r}; choose from "
                    f"{', '.join(filter(None, choices))}"
                )

    @property
    def form(self) -> FormOptions:
        """The default form: Core ML has an operator for each of its parts."""
        from tinyvit_edge.deployment import FormOptions

        return FormOptions(half_biases="int8 strip")

    @property
    def unsupported(self) -> Mapping[str, str]:
        """Precision name -> reason."""
        from tinyvit_edge.precision import PRECISIONS

        refused = {"w8-dynamic": _DYNAMIC}
        if self.layout == "ane":
            refused |= {row.name: _FLOAT_LAYOUT for row in PRECISIONS.values() if row.quantized}
        if self.deployment_target is None:
            return refused
        given = _SYSTEMS.index(self.deployment_target)
        too_old = {
            name: f"{reason} from --deployment-target {needed} on"
            for name, (needed, reason) in _NEEDS.items()
            if given < _SYSTEMS.index(needed)
        }
        return too_old | refused

    @property
    def evaluation(self) -> Evaluation:
        """``predicted`` by Core ML on macOS, ``reference-evaluated`` elsewhere."""
        return "predicted" if self.timed else "reference-evaluated"

    @property
    def timed(self) -> bool:
        """Whether Core ML itself runs here."""
        return sys.platform == "darwin"

    def export(self, program: Program, path: Path) -> Exported:
        """Write the package, and check in the saved file that weights have the asked type.

        Raises:
            ConversionError: coremltools fails, or stores or computes a layer in another type.
        """
        from tinyvit_edge.deployment import DeploymentForm
        from tinyvit_edge.deployment_ane import channels_first
        from tinyvit_edge.exporters._coreml_convert import convert, unique_labels
        from tinyvit_edge.exporters._mlprogram_package import read_spec

        classifier = self.package == "classifier"
        needed, _ = _NEEDS.get(program.precision.name, (_USUAL, ""))
        system: str = self.deployment_target or max(needed, _USUAL, key=_SYSTEMS.index)
        converted = program
        if self.layout == "ane":
            assert isinstance(program.module, DeploymentForm)
            converted = replace(program, module=channels_first(program.module))
        convert(converted, path, classifier=classifier, target=system)
        self._check_stored(program, path)
        half = program.precision.name != "fp32"
        renamed = len(set(unique_labels(program.labels)) - set(program.labels))
        return Exported(
            details={
                "package": self.package,
                "deployment_target": system,
                "layout": self.layout,
                "compute_precision": "float16" if half else "float32",
                **({"labels_made_unique": renamed} if classifier and renamed else {}),
            },
            input="image" if classifier else "tensor",
            outputs=tuple(output.name for output in read_spec(path).description.output),
        )

    def load(self, path: Path, *, threads: int) -> Runner:
        """Load a package of either kind.

        Args:
            path: the package.
            threads: threads of the evaluator; Core ML chooses its own.

        Raises:
            InputError: not a readable package, or one that the evaluator cannot take. Running
                it raises the same for a tensor that is no normalised image, where the package
                takes images.
        """
        from tinyvit_edge.exporters._mlprogram_package import read_spec

        description = read_spec(path).description
        takes_image = description.input[0].type.WhichOneof("Type") == "imageType"
        pixels = _pixel_reader(path, description.metadata.userDefined) if takes_image else None
        # the logits come last in both kinds of package
        names = description.input[0].name, description.output[-1].name
        predict = (
            _core_ml(path, *names, image=takes_image)
            if self.timed
            else _evaluator(path, *names, threads)
        )

        def run(image: FloatArray) -> FloatArray:
            return predict(image if pixels is None else pixels(image))

        return run

    def audit(self, path: Path) -> Audit:
        """Read back from the saved file what is stored and computed in which type.

        Zero points count with their scales, in the scales' type: int8 bytes are those of weights.
        """
        from tinyvit_edge.exporters._mlprogram_audit import audit
        from tinyvit_edge.exporters._mlprogram_reader import load_program

        return audit(load_program(path))

    def _check_stored(self, program: Program, path: Path) -> None:
        from tinyvit_edge.exporters._mlprogram_audit import products
        from tinyvit_edge.exporters._mlprogram_reader import load_program
        from tinyvit_edge.quantization.coded import CodedLayer
        from tinyvit_edge.quantization.qdq import StaticLayer, WeightOnlyLayer

        precision, kinds = program.precision, (CodedLayer, StaticLayer, WeightOnlyLayer)
        quantized = sum(isinstance(layer, kinds) for layer in program.module.modules())
        layers = [item for item in products(load_program(path)) if item.type in ("conv", "linear")]
        integer = [
            layer
            for layer in layers
            if layer.weight_dtype == precision.weights
            and (layer.int8 or precision.activations != "static")
        ]
        saved = len(integer) if precision.quantized else 0
        rest = "float32" if precision.name == "fp32" else "float16"
        wrong = [
            layer.name for layer in layers if layer not in integer and layer.weight_dtype != rest
        ]
        if saved != quantized or wrong:
            raise ConversionError(
                f"coreml at {precision.name}: the saved package has {saved} layers of "
                f"{precision.weights} where {quantized} are due, and {len(wrong)} others not in "
                f"{rest}; check coremltools' version, or give --deployment-target iOS17: for iOS18 "
                "it narrows int8 weights that are all zero"
            )


def _pixel_reader(path: Path, metadata: Mapping[str, str]) -> Callable[[FloatArray], FloatArray]:
    """A function from the normalised tensor back to the pixels 0..255 that it came from."""
    from tinyvit_edge.exporters._mlprogram_package import METADATA
    from tinyvit_edge.preprocessing import Preprocessing

    try:
        preprocessing = Preprocessing.from_dict(json.loads(metadata[METADATA + "preprocessing"]))
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{path}: an image package without this tool's preprocessing metadata; export it again"
        ) from error
    mean, std = (
        np.array(values, np.float64).reshape(1, 3, 1, 1)
        for values in (preprocessing.mean, preprocessing.std)
    )

    def pixels(tensor: FloatArray) -> FloatArray:
        values = (tensor * std + mean) * 255  # (1, 3, S, S)
        whole = np.rint(values)
        if np.abs(values - whole).max() > _PIXEL_TOLERANCE or whole.min() < 0 or whole.max() > 255:
            raise InputError(
                f"{path}: a classifier package takes images only, and this tensor is no "
                "normalised 8-bit image; export with --package tensor"
            )
        return whole.astype(np.float32)

    return pixels


def _evaluator(
    path: Path, input_name: str, output_name: str, threads: int
) -> Callable[[FloatArray], FloatArray]:
    import torch

    from tinyvit_edge.exporters._mlprogram_reader import load_program

    program = load_program(path)

    def predict(tensor: FloatArray) -> FloatArray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            logits: FloatArray = program({input_name: tensor})[output_name].astype(np.float32)
        finally:
            torch.set_num_threads(before)
        return logits

    return predict


def _core_ml(
    path: Path, input_name: str, output_name: str, *, image: bool
) -> Callable[[FloatArray], FloatArray]:
    from PIL import Image

    if path.suffix != ".mlpackage":
        raise InputError(f"{path}: Core ML loads a folder whose name ends in .mlpackage; rename it")
    with quiet_converter():
        from coremltools.models import MLModel
    try:
        model = MLModel(str(path))
    except Exception as error:  # Core ML's own compiler reports through several types
        reason = first_line(error)
        raise InputError(f"{path}: Core ML cannot load it: {reason}; export it again") from error

    def predict(tensor: FloatArray) -> FloatArray:
        value: Any = tensor
        if image:
            value = Image.fromarray(tensor[0].transpose(1, 2, 0).astype(np.uint8))  # (S, S, 3)
        logits: FloatArray = model.predict({input_name: value})[output_name].astype(np.float32)
        return logits

    return predict
