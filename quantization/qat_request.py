"""What quantization-aware training is asked for, and what follows from it before any work."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyvit_edge.data import SAMPLE_SIZE, ImageDataset, fingerprint, scan_folder
from tinyvit_edge.distill.store import Store
from tinyvit_edge.distill.teach import keys_of
from tinyvit_edge.errors import InputError
from tinyvit_edge.files import sha256_of
from tinyvit_edge.precision import MAX_DROP, Precision
from tinyvit_edge.quantization.calibration import Calibration, CalibrationOptions
from tinyvit_edge.quantization.choose import ChooseRequest, choose
from tinyvit_edge.quantization.ptq import calibrated_precision
from tinyvit_edge.training.plan import Plan, held_out
from tinyvit_edge.training.recipe import Recipe, Stage
from tinyvit_edge.training.sources import LabelSource, Source, StoreSource

if TYPE_CHECKING:
    from tinyvit_edge.checkpoint import Checkpoint
    from tinyvit_edge.console import QuietDisplay

__all__ = ["QatRequest", "Setup", "prepare", "recipe", "starting_ranges"]

PTQ = "ptq.json"


def recipe(*, epochs: int = 1, batch: int = 16, lr: float = 2e-6, stored: bool = False) -> Recipe:
    """How the weights are trained: gently, for they are good already.

    Args:
        epochs: times that every image is seen.
        batch: images a step.
        lr: peak of the learning rate.
        stored: whether targets come from a store.
    """
    return Recipe(
        targets="store" if stored else "labels",
        stages=(Stage(size=None, epochs=epochs),),
        batch=batch,
        lr=lr,
        warmup=0.1,
        weight_decay=0.0,
        clip=1.0,
        ema=0.99,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class QatRequest:
    """What `run` is asked for."""

    weights: str
    data: Path
    """Photos to train on; all but every `hold_out`-th."""
    out: Path
    """Folder of the run: ranges, trained weights, state and metrics."""
    precision: str = "w8a8"
    calibration: Path | None = None
    """Ranges to start from; None chooses them on `data`."""
    calib_images: int = SAMPLE_SIZE
    options: CalibrationOptions = field(default_factory=CalibrationOptions)
    max_drop: float = MAX_DROP
    """Budget of a ``-mixed`` row, as in `tinyvit_edge.quantization.choose`."""
    store: Path | None = None
    """A teacher's outputs on `data`; None: the float32 model teaches."""
    recipe: Recipe = field(default_factory=recipe)
    images: int | None = None
    """Evenly spaced images to train on; None: all."""
    hold_out: int = 20
    seed: int = 0
    workers: int = 2
    threads: int | None = None
    save_steps: int = 100
    image_size: int | None = None
    preprocessing: Literal["microsoft", "timm"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """All that training needs, checked."""

    checkpoint: Checkpoint
    precision: Precision
    source: Source
    plan: Plan
    held_out: ImageDataset
    facts: dict[str, Any]
    """What decides the result, as JSON values."""


def prepare(request: QatRequest) -> Setup:
    """Load and check everything.

    Raises:
        InputError: bad weights or images, or a precision without calibrated ranges.
        StoreError: the store is not of these images.
    """
    from tinyvit_edge.checkpoint import load_checkpoint

    precision = calibrated_precision(request.precision)
    checkpoint = load_checkpoint(
        request.weights, image_size=request.image_size, preprocessing=request.preprocessing
    )
    photos = scan_folder(request.data, checkpoint.labels)
    content = fingerprint(photos)
    store = None if request.store is None else Store(request.store)
    if store is not None:
        store.check_data(keys_of(photos), content)
    trained, measured = held_out(len(photos), request.hold_out)
    if not trained or not measured:
        raise InputError(
            f"{request.data}: {len(photos)} photos, of which --hold-out {request.hold_out} leaves"
            f" {len(trained)} to train on and {len(measured)} to judge by: give both some"
        )
    count = min(request.images or len(trained), len(trained))
    plan = Plan(
        recipe=request.recipe,
        own_size=checkpoint.preprocessing.size,
        images=tuple(trained[i * len(trained) // count] for i in range(count)),
        seed=request.seed,
    )
    return Setup(
        checkpoint=checkpoint,
        precision=precision,
        source=_source(request, checkpoint, photos, store),
        plan=plan,
        held_out=replace(photos, samples=tuple(photos.samples[i] for i in measured)),
        facts=_facts(request, checkpoint, content, count, store),
    )


def _source(
    request: QatRequest, checkpoint: Checkpoint, photos: ImageDataset, store: Store | None
) -> Source:
    if store is None:
        return LabelSource(
            photos,
            policy=request.recipe.policy,
            seed=request.seed,
            classes=len(checkpoint.labels),
            smoothing=0.0,
        )
    columns = _columns(store, checkpoint.labels)
    return StoreSource(store, [sample.path for sample in photos.samples], columns)


def _columns(store: Store, labels: tuple[str, ...]) -> list[int] | None:
    """Which of the teacher's classes the model has; None where they are the same."""
    known = store.manifest.labels
    if labels == known:
        return None
    for label in labels:
        if known.count(label) != 1:  # ImageNet has two cranes
            problem = "more than one class" if label in known else "no class"
            raise InputError(
                f"{store.root}: its teacher has {problem} {label!r}: give a store of a teacher"
                " that knows the model's classes, or none"
            )
    return [known.index(label) for label in labels]


def _facts(
    request: QatRequest, checkpoint: Checkpoint, content: str, trained: int, store: Store | None
) -> dict[str, Any]:
    taught = None if store is None else store.manifest
    facts = {
        "recipe": asdict(request.recipe),
        "precision": request.precision,
        "calibration_sha256": request.calibration and sha256_of(request.calibration),
        "calib_images": request.calib_images,
        "options": asdict(request.options),
        "max_drop": request.max_drop,
        "seed": request.seed,
        "weights": request.weights,
        "weights_sha256": checkpoint.sha256,
        "preprocessing": checkpoint.preprocessing.to_dict(),
        "image_size": checkpoint.preprocessing.size,
        "labels": list(checkpoint.labels),
        "data_sha256": content,
        "trained_on": trained,
        "hold_out": request.hold_out,
        "teacher": "the float32 model" if taught is None else taught.teacher,
        "teacher_sha256": None if taught is None else taught.teacher_sha256,
        "store_seed": None if taught is None else taught.seed,
        "store_epochs": None if taught is None else taught.epochs,
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))  # tuples become lists, as in the file
    return plain


def starting_ranges(request: QatRequest, setup: Setup, display: QuietDisplay) -> Calibration:
    """The ranges to start from; kept in `out`, so that going on does not choose again."""
    checkpoint, kept = setup.checkpoint, request.out / PTQ
    same = {"weights_sha256": checkpoint.sha256, "preprocessing": checkpoint.preprocessing}
    given = kept if kept.exists() else request.calibration
    if given is not None:
        found = Calibration.read(given, **same)  # type: ignore[arg-type]
    else:
        asked = ChooseRequest(
            photos=request.data,
            images=request.calib_images,
            options=request.options,
            mixed=setup.precision if setup.precision.mixed else None,
            max_drop=request.max_drop,
        )
        found = choose(checkpoint, asked, display)
    if given is not kept:
        found.write(kept, **same)  # type: ignore[arg-type]
    return found
