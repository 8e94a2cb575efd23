"""What `train` is asked for, and what follows from it: the student, its images and its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tinyvit_edge.checkpoint import Checkpoint, load_checkpoint
from tinyvit_edge.data import ImageDataset, fingerprint, scan_folder
from tinyvit_edge.distill.store import Store
from tinyvit_edge.distill.teach import keys_of
from tinyvit_edge.errors import DataError, InputError
from tinyvit_edge.imagenet import imagenet_labels, imagenet_wnids
from tinyvit_edge.training.plan import Plan, held_out
from tinyvit_edge.training.recipe import Recipe
from tinyvit_edge.training.sources import LabelSource, Source, StoreSource
from tinyvit_edge.training.student import fresh_checkpoint, with_labels

__all__ = ["Setup", "TrainRequest", "prepare"]

HOLD_OUT_EVERY = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """What a run is made of.

    Attributes:
        recipe: how to train.
        data: ImageFolder to train on; one with ``train`` and ``val`` inside gives both.
        out: folder of the run: state, metrics, curves, and the model.
        weights: checkpoint to start from; None starts `variant` from random weights.
        variant: what to start without weights.
        image_size: the model's resolution, if other than the checkpoint's.
        store: a teacher's outputs, where the recipe's targets are stored.
        classes: "data" for the folders' classes, "teacher" for all that the store has.
        val: labelled images to measure on.
        hold_out: without `val`, every n-th image of `data` is measured on instead of trained on;
            0 measures nothing.
        seed: of the weights, the orders, the views and the dropout.
        workers: processes that decode and draw.
        threads: of PyTorch; None leaves its own choice.
        amp: "auto", "bf16", "fp16" or "fp32".
        save_steps: steps between two states; every epoch ends with one, too.
        half: the model is written in float16.
    """

    recipe: Recipe
    data: Path
    out: Path
    weights: str | None = None
    variant: str = "tiny_vit_5m_224"
    image_size: int | None = None
    store: Path | None = None
    classes: Literal["data", "teacher"] = "data"
    val: Path | None = None
    hold_out: int = HOLD_OUT_EVERY
    seed: int = 0
    workers: int = 2
    threads: int | None = None
    amp: str = "auto"
    save_steps: int = 200
    half: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that training needs, checked.

    Attributes:
        checkpoint: the student, with its classes.
        source: of views and targets.
        plan: of the steps.
        val: what is measured on; None where nothing is.
        run: what decides the result, in JSON form: a resumed run must have the same.
    """

    checkpoint: Checkpoint
    source: Source
    plan: Plan
    val: ImageDataset | None
    run: dict[str, Any]


def prepare(request: TrainRequest) -> Setup:
    """Load and check everything, before any work.

    Raises:
        InputError: what was asked for does not go together.
        StoreError: the store is not of these images.
        DataError: the folders do not fit the classes.
    """
    data, val_folder = _folders(request)
    store = _store(request)
    start = _start(request)
    if store is not None:
        labels, columns = _store_labels(request, data, store)
    else:
        labels, columns = _folder_labels(data, start), None
    if start is None:
        student = fresh_checkpoint(request.variant, labels, request.seed)
    else:
        student = with_labels(start, labels, request.seed)
    dataset = scan_folder(data, None if store is not None else labels)
    content = fingerprint(dataset)
    if store is not None:
        store.check_data(keys_of(dataset), content)
    trained, measured = held_out(len(dataset), 0 if val_folder else request.hold_out)
    plan = Plan(
        recipe=request.recipe,
        own_size=student.preprocessing.size,
        images=tuple(trained),
        seed=request.seed,
    )
    return Setup(
        checkpoint=student,
        source=_source(request, dataset, store, columns, len(labels)),
        plan=plan,
        val=_val(data, val_folder, measured, labels),
        run=_facts(request, student, content, len(trained), store),
    )


def _source(
    request: TrainRequest,
    dataset: ImageDataset,
    store: Store | None,
    columns: list[int] | None,
    classes: int,
) -> Source:
    """Where views and targets come from."""
    if store is not None:
        return StoreSource(store, [sample.path for sample in dataset.samples], columns)
    return LabelSource(
        dataset,
        policy=request.recipe.policy,
        seed=request.seed,
        classes=classes,
        smoothing=request.recipe.label_smoothing,
    )


def _facts(
    request: TrainRequest, student: Checkpoint, content: str, trained: int, store: Store | None
) -> dict[str, Any]:
    """What decides the result."""
    taught = None if store is None else store.manifest
    return {
        "recipe": asdict(request.recipe),
        "seed": request.seed,
        "weights": request.weights or request.variant,
        "weights_sha256": student.sha256,
        "image_size": student.preprocessing.size,
        "labels": list(student.labels),
        "data_sha256": content,
        "trained_on": trained,
        "teacher": None if taught is None else taught.teacher,
        "teacher_sha256": None if taught is None else taught.teacher_sha256,
        "store_seed": None if taught is None else taught.seed,
        "store_epochs": None if taught is None else taught.epochs,
        "amp": request.amp,
    }


def _folders(request: TrainRequest) -> tuple[Path, Path | None]:
    """Where to train and where to measure."""
    inside = request.data / "train"
    if request.val is None and inside.is_dir() and (request.data / "val").is_dir():
        return inside, request.data / "val"
    return request.data, request.val


def _store(request: TrainRequest) -> Store | None:
    if request.recipe.targets == "labels":
        if request.store is not None:
            raise InputError("--store: this preset trains on labels; choose distill, or leave it")
        return None
    if request.store is None:
        raise InputError("distillation needs --store, a folder that teach wrote")
    return Store(request.store)


def _start(request: TrainRequest) -> Checkpoint | None:
    if request.weights is not None:
        return load_checkpoint(request.weights, image_size=request.image_size)
    if request.recipe.needs_weights:
        raise InputError("this preset starts from trained weights: give --weights")
    if request.image_size is not None:
        raise InputError("--image-size resamples trained weights: give --weights, or a --variant")
    return None


def _store_labels(
    request: TrainRequest, data: Path, store: Store
) -> tuple[tuple[str, ...], list[int] | None]:
    """The student's classes, and which of the teacher's they are (None: all)."""
    labels = store.manifest.labels
    if request.classes == "teacher":
        return labels, None
    found = scan_folder(data, labels)
    if not found.labelled:
        raise DataError(f"{data}: no class folders: give --classes teacher to learn all of its")
    columns = sorted({sample.label for sample in found.samples if sample.label is not None})
    return tuple(labels[column] for column in columns), columns


def _folder_labels(data: Path, start: Checkpoint | None) -> tuple[str, ...]:
    """The classes that the folders name: the checkpoint's where they are all of them.

    Folders named by WordNet id get ImageNet's labels.
    """
    names = sorted({sample.path.parent.name for sample in scan_folder(data).samples})
    if scan_folder(data).samples[0].path.parent == data:
        raise DataError(f"{data}: no class folders; give one sub-folder a class")
    if start is not None and len(names) == len(start.labels):
        try:
            scan_folder(data, start.labels)
        except DataError:
            pass
        else:
            return start.labels
    wnids = imagenet_wnids()
    return tuple(imagenet_labels()[wnids.index(n)] if n in wnids else n for n in names)


def _val(
    data: Path, folder: Path | None, measured: Sequence[int], labels: tuple[str, ...]
) -> ImageDataset | None:
    if folder is not None:
        found = scan_folder(folder, labels)
        if not found.labelled:
            raise DataError(f"{folder}: no class folders, so no accuracy")
        return found
    if not measured:
        return None
    try:
        whole = scan_folder(data, labels)
    except DataError:
        return None  # unlabelled images teach, but do not measure
    if not whole.labelled:
        return None
    picked = tuple(whole.samples[index] for index in measured)
    return ImageDataset(root=whole.root, samples=picked)
