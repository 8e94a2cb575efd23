"""Checkpoints in and out: Microsoft's, timm's and Hugging Face's, with labels and preprocessing."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tinyvit_edge import keymaps
from tinyvit_edge.architecture import infer_config, resample_biases, resized, variant_name
from tinyvit_edge.checkpoint_source import (
    CONFIG_NAME,
    PROCESSOR_NAME,
    WEIGHT_NAMES,
    CheckpointFiles,
    bundled_names,
    locate,
    read_json,
    read_state,
)
from tinyvit_edge.configuration import TinyVitConfig
from tinyvit_edge.errors import CheckpointError, InputError
from tinyvit_edge.files import atomic_directory, atomic_file, sha256_of, write_json
from tinyvit_edge.imagenet import imagenet_labels
from tinyvit_edge.keymaps import Format
from tinyvit_edge.modeling import TinyVitForImageClassification
from tinyvit_edge.preprocessing import Preprocessing, preset

__all__ = [
    "Checkpoint",
    "bundled_names",
    "export_state_dict",
    "load_checkpoint",
    "save_checkpoint",
    "save_weights",
]

PresetName = Literal["microsoft", "timm"]

_PRESET_OF: dict[Format, PresetName] = {
    "microsoft": "microsoft",
    "timm": "timm",
    "huggingface": "microsoft",
}
# timm's pretrained_cfg: fields that Preprocessing has under the same name; its crop modes and ours.
_TIMM_FIELDS = ("crop_pct", "interpolation", "mean", "std")
_TIMM_MODES = {"center": "crop", "squash": "squash"}
_PLACEHOLDER_LABEL = re.compile(r"LABEL_\d+")  # what transformers writes where there are none
_PROCESSOR_KEY, _PROCESSOR = "image_processor_type", "TinyVitImageProcessor"
_SAVED = {CONFIG_NAME, WEIGHT_NAMES[0], PROCESSOR_NAME}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A TinyViT classifier with what is needed to use it.

    Attributes:
        model: in eval mode, float32.
        labels: one per class, in class order.
        preprocessing: from photo to input tensor.
        variant: a name in `VARIANTS`, or "custom".
        format: "microsoft", "timm" or "huggingface", whose names the weights came under.
        sha256: of the weight file.
        source: as it was asked for.
    """

    model: TinyVitForImageClassification
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    variant: str
    format: Format
    sha256: str
    source: str


def load_checkpoint(
    source: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    preprocessing: PresetName | None = None,
    num_classes: int | None = None,
) -> Checkpoint:
    """Load a TinyViT of any format and shape, strictly.

    Args:
        source: a file, a folder of Hugging Face's or timm's, a name out of `bundled_names()`, or a
            hub id "org/name".
        image_size: side in pixels to use the model at; where that changes the windows, the
            attention biases are resampled, and preprocessing that is a preset's becomes that
            preset's for the new size. None: the checkpoint's own.
        preprocessing: a preset to use in place of the checkpoint's own preprocessing.
        num_classes: the number of classes that the checkpoint must have.

    Raises:
        CheckpointError: not found, damaged, not a TinyViT, or not what was asked for.
    """
    name = os.fspath(source)
    files = locate(source)
    extras = {} if files.config is None else read_json(files.config)
    form, state = _read(files.weights)
    config = _config(files, extras, form, state)
    if num_classes not in (None, config.num_labels):
        raise CheckpointError(f"{name}: has {config.num_labels} classes, not {num_classes}")
    _check_strictly(files.weights, state, config, form)
    if image_size not in (None, config.image_size):
        config = _at_image_size(config, image_size)
        state = resample_biases(state, config.window_sizes)
    labels = _labels(config, extras)
    contract = _preprocessing(files, extras, form, preprocessing, config, image_size)
    return Checkpoint(
        model=_build(config, labels, state),
        labels=labels,
        preprocessing=contract,
        variant=variant_name(config),
        format=form,
        sha256=sha256_of(files.weights),
        source=name,
    )


def save_checkpoint(
    checkpoint: Checkpoint,
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a Hugging Face folder: configuration, safetensors and image processor.

    `dtype` is what the weights are stored in; they are loaded as float32 whatever it is.

    The folder appears whole or not at all; one that an earlier call wrote is replaced.

    Raises:
        InputError: `directory` holds something else, or cannot be written.
    """
    target = Path(directory).expanduser()
    if target.exists() and not _is_replaceable(target):
        raise InputError(f"{target}: exists and is not a saved checkpoint; name another folder")
    with atomic_directory(target) as folder:
        config = checkpoint.model.config
        config.architectures = [type(checkpoint.model).__name__]
        config.save_pretrained(folder)
        state = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in export_state_dict(checkpoint.model, "huggingface").items()
        }
        # save_file would make a file that its owner alone can read
        (folder / WEIGHT_NAMES[0]).write_bytes(to_safetensors(state, metadata={"format": "pt"}))
        processor = {_PROCESSOR_KEY: _PROCESSOR} | checkpoint.preprocessing.to_dict()
        write_json(folder / PROCESSOR_NAME, processor)


def save_weights(checkpoint: Checkpoint, path: str | os.PathLike[str], format: str) -> None:
    """Write the weights alone: timm's names as ``.safetensors``, Microsoft's as ``.pth``.

    Raises:
        InputError: unknown format, another file ending, or `path` cannot be written.
    """
    endings = {"timm": ".safetensors", "microsoft": ".pth"}
    target = Path(path).expanduser()
    if format not in endings:
        raise InputError(f"unknown format {format!r}: choose huggingface, {', '.join(endings)}")
    if target.suffix != endings[format]:
        raise InputError(f"{target}: weights in {format}'s format end in {endings[format]}")
    with atomic_file(target) as temporary:
        if format == "timm":
            temporary.write_bytes(to_safetensors(export_state_dict(checkpoint.model, "timm")))
        else:
            torch.save({"model": export_state_dict(checkpoint.model, "microsoft")}, temporary)


def export_state_dict(model: TinyVitForImageClassification, format: Format) -> dict[str, Tensor]:
    """The model's state dict under the names of `format`, detached and on the CPU.

    Raises:
        InputError: unknown format.
    """
    if format not in keymaps.FORMATS:
        raise InputError(f"unknown format {format!r}; known: {', '.join(keymaps.FORMATS)}")
    return keymaps.to_native(
        {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}, format
    )


def _is_replaceable(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    present = {path.name for path in folder.iterdir()}
    return not present or (
        present == _SAVED
        and read_json(folder / CONFIG_NAME).get("model_type") == TinyVitConfig.model_type
    )


def _read(weights: Path) -> tuple[Format, dict[str, Tensor]]:
    """The format of a weight file, and its tensors under our names."""
    state = read_state(weights)
    form = keymaps.recognise(state)
    if form is None:
        raise CheckpointError(
            f"{weights}: not a TinyViT (its first key is {next(iter(state), 'missing')!r});"
            " weights under Microsoft's, timm's or Hugging Face's names are needed"
        )
    return form, keymaps.from_native(state, form)


def _config(
    files: CheckpointFiles, extras: Mapping[str, Any], form: Format, state: Mapping[str, Tensor]
) -> TinyVitConfig:
    """The configuration from config.json where it is Hugging Face's, else from the shapes."""
    try:
        if form == "huggingface" and extras.get("model_type") == TinyVitConfig.model_type:
            config: TinyVitConfig = TinyVitConfig.from_dict(dict(extras))
            return config
        return infer_config(state, _timm_settings(extras).get("input_size", (None,))[-1])
    except KeyError as error:
        key = keymaps.to_native_key(error.args[0], form)
        raise CheckpointError(
            f"{files.weights}: not a whole classifier, {key} is missing"
        ) from None
    except (InputError, TypeError, ValueError) as error:
        where = files.config or files.weights
        raise CheckpointError(f"{where}: no valid TinyViT configuration ({error})") from error


def _check_strictly(
    weights: Path, state: Mapping[str, Tensor], config: TinyVitConfig, form: Format
) -> None:
    """Compare names and shapes with those of the model; the first difference is the message."""
    with torch.device("meta"):
        expected = TinyVitForImageClassification(config).state_dict()
    for key, tensor in expected.items():
        name = keymaps.to_native_key(key, form)
        if key not in state:
            raise CheckpointError(f"{weights}: {name} is missing")
        if state[key].shape != tensor.shape:
            raise CheckpointError(
                f"{weights}: {name} has shape {tuple(state[key].shape)},"
                f" the model needs {tuple(tensor.shape)}"
            )
    for key in state:
        if key not in expected:
            raise CheckpointError(
                f"{weights}: {keymaps.to_native_key(key, form)} is not part of the model"
            )


def _at_image_size(config: TinyVitConfig, image_size: int) -> TinyVitConfig:
    try:
        return resized(config, image_size)
    except InputError as error:
        raise CheckpointError(f"--image-size {image_size}: {error}") from error


def _build(
    config: TinyVitConfig, labels: tuple[str, ...], state: Mapping[str, Tensor]
) -> TinyVitForImageClassification:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    with torch.random.fork_rng(devices=[]):  # what the weights replace uses up no random numbers
        model = TinyVitForImageClassification(config)
    model.load_state_dict(state)
    model.eval()
    return model


def _labels(config: TinyVitConfig, extras: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels out of the configuration, ImageNet's for 1000 classes, or "class 0", ..."""
    count = config.num_labels
    given = [str(config.id2label.get(index, f"LABEL_{index}")) for index in range(count)]
    if not all(map(_PLACEHOLDER_LABEL.fullmatch, given)):
        return tuple(given)
    timm_names = extras.get("label_names")
    if isinstance(timm_names, list) and len(timm_names) == count:
        return tuple(map(str, timm_names))
    if count == len(imagenet_labels()):
        return imagenet_labels()
    return tuple(f"class {index}" for index in range(count))


def _preprocessing(
    files: CheckpointFiles,
    extras: Mapping[str, Any],
    form: Format,
    wanted: PresetName | None,
    config: TinyVitConfig,
    image_size: int | None,
) -> Preprocessing:
    """As asked for, else as the checkpoint's folder says, else as its format's authors do it."""
    if wanted is not None:
        return preset(wanted, config.image_size)
    try:
        contract = _saved_preprocessing(files, extras)
    except InputError as error:
        raise CheckpointError(f"{files.processor or files.config}: {error}") from error
    if contract is None:
        return preset(_PRESET_OF[form], config.image_size)
    if image_size is not None:
        return _at_size(contract, config.image_size, first=_PRESET_OF[form])
    if contract.size != config.image_size:
        raise CheckpointError(
            f"{files.processor or files.config}: prepares {contract.size} px images for a model of"
            f" {config.image_size} px; make the two agree, or give --image-size"
        )
    return contract


def _at_size(contract: Preprocessing, size: int, *, first: PresetName) -> Preprocessing:
    """`contract` for another size; what follows a preset, `first` before others, follows it on."""
    for name in sorted(get_args(PresetName), key=first.__ne__):
        if contract == preset(name, contract.size):
            return preset(name, size)
    return dataclasses.replace(contract, size=size)


def _saved_preprocessing(files: CheckpointFiles, extras: Mapping[str, Any]) -> Preprocessing | None:
    saved = {} if files.processor is None else read_json(files.processor)
    if saved.pop(_PROCESSOR_KEY, None) == _PROCESSOR:
        saved.pop("processor_class", None)
        return Preprocessing.from_dict(saved)
    timm = _timm_settings(extras)
    if not timm:
        return None
    values = {name: timm[name] for name in _TIMM_FIELDS if name in timm}
    values["size"] = timm["input_size"][-1]
    values["mode"] = _TIMM_MODES.get(timm.get("crop_mode", "center"), timm.get("crop_mode"))
    return Preprocessing.from_dict(values)


def _timm_settings(extras: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of timm's config.json on the input, or nothing where it is not timm's."""
    settings = extras.get("pretrained_cfg")
    return settings if isinstance(settings, Mapping) and "input_size" in settings else {}
