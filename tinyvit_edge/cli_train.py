"""The commands that make weights: teach writes a teacher's outputs, train makes a student."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tinyvit_edge.cli_common import JsonOption, QuietOption, SizeOption, emit
from tinyvit_edge.cli_measure import show_facts

__all__ = ["register"]

WorkersOption = Annotated[
    int, typer.Option(min=0, help="Processes that decode and augment; 0 does it in this one.")
]
TorchThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of PyTorch; default: its own choice."),
]
AmpOption = Annotated[
    str,
    typer.Option(
        help="bf16, fp16 (GPU) or fp32; auto is bf16 where the processor multiplies it natively."
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="What all that is random follows from.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(teach)
    app.command()(train)


def teach(
    data: Annotated[Path, typer.Option(help="Folder of images; labels are not needed.")],
    out: Annotated[Path, typer.Option("--out", help="Store to make or to continue.")],
    teacher: Annotated[
        str,
        typer.Option(
            help="efficientnet-lite2, timm:NAME, hf:NAME, or any TinyViT that --weights takes."
        ),
    ] = "efficientnet-lite2",
    epochs: Annotated[int, typer.Option(min=1, help="Views of every image.")] = 1,
    top_k: Annotated[int, typer.Option(min=1, help="Probabilities kept a view.")] = 100,
    augment: Annotated[str, typer.Option(help="distill, light, strong or crop.")] = "distill",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the views in pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Views that the teacher sees at a time.")] = 64,
    seed: SeedOption = 0,
    workers: WorkersOption = 2,
    threads: TorchThreadsOption = None,
    amp: AmpOption = "auto",
    check: Annotated[
        bool, typer.Option("--check", help="Run the teacher on a sample of --out, and compare.")
    ] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Run a teacher once over augmented images, and store its top probabilities.

    A run that was stopped goes on where it was; more epochs extend a store. Under torchrun the
    processes share the work.
    """
    from tinyvit_edge.console import make_display
    from tinyvit_edge.distill import teach as module
    from tinyvit_edge.distill.augment import policy_for

    display = make_display(quiet=quiet)
    if check:
        facts = module.check(out, data, workers=workers, display=display)
    else:
        request = module.TeachRequest(
            teacher=teacher,
            data=data,
            out=out,
            epochs=epochs,
            top_k=top_k,
            policy=policy_for(augment),
            image_size=image_size,
            seed=seed,
            batch=batch,
            workers=workers,
            amp=amp,
            threads=threads,
        )
        facts = module.teach(request, display=display)
    _finish(facts, json)


def train(
    preset: Annotated[
        str,
        typer.Argument(
            help="distill, distill-small, distill-classes, finetune, linear-probe or scratch."
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="ImageFolder; one with train and val inside gives both.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the run, made or continued.")],
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint to start from, of any format.")
    ] = None,
    variant: Annotated[
        str, typer.Option(help="What to train from nothing, without --weights.")
    ] = "tiny_vit_5m_224",
    store: Annotated[Path | None, typer.Option(help="What teach wrote, for distill.")] = None,
    classes: Annotated[
        str, typer.Option(help="distill: the folders' classes (data) or all the teacher's.")
    ] = "data",
    val: Annotated[Path | None, typer.Option(help="Labelled images to measure on.")] = None,
    hold_out: Annotated[
        int, typer.Option(min=0, help="Without --val: measure on every n-th image; 0 on none.")
    ] = 10,
    stages: Annotated[
        str | None, typer.Option(help="Epochs, or SIZE:EPOCHS,... for a rising resolution.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images a step, all processes.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(min=1, help="Parts that a batch is computed in.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Epochs of warm-up.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of the average; 0 is off.")] = None,
    augment: Annotated[
        str | None, typer.Option(help="distill, light, strong or crop; a store has its own.")
    ] = None,
    mirror: Annotated[bool | None, typer.Option(help="Mirror half of the views once more.")] = None,
    cutmix: Annotated[
        float | None, typer.Option(help="Share of the batches that CutMix mixes.")
    ] = None,
    image_size: SizeOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 2,
    threads: TorchThreadsOption = None,
    amp: AmpOption = "auto",
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between two states.")] = 200,
    half: Annotated[bool, typer.Option("--half", help="Write the model in float16.")] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train a model, or go on where a run in --out was stopped.

    Fine-tuning to a folder of your own: tinyvit-edge train finetune --weights W --data DIR --out
    RUN; RUN/model is then what --weights of every other command takes.
    """
    from tinyvit_edge.console import make_display
    from tinyvit_edge.distill.augment import policy_for
    from tinyvit_edge.training.recipe import parse_stages, recipe_for
    from tinyvit_edge.training.request import TrainRequest
    from tinyvit_edge.training.train import train as run

    recipe = recipe_for(preset).changed(
        stages=None if stages is None else parse_stages(stages),
        batch=batch,
        accumulate=accumulate,
        lr=lr,
        warmup=warmup,
        ema=ema,
        mirror=mirror,
        cutmix=cutmix,
        policy=None if augment is None else policy_for(augment),
    )
    request = TrainRequest(
        recipe=recipe,
        data=data,
        out=out,
        weights=weights,
        variant=variant,
        image_size=image_size,
        store=store,
        classes=_classes(classes),
        val=val,
        hold_out=hold_out,
        seed=seed,
        workers=workers,
        threads=threads,
        amp=amp,
        save_steps=save_steps,
        half=half,
    )
    _finish(run(request, display=make_display(quiet=quiet)), json)


def _classes(text: str) -> Any:
    from tinyvit_edge.errors import InputError

    if text not in ("data", "teacher"):
        raise InputError(f"unknown --classes {text!r}: choose data or teacher")
    return text


def _finish(facts: dict[str, Any], json: str | None) -> None:
    from tinyvit_edge.distributed import is_first

    if is_first() and emit(facts, json):
        show_facts(facts)
