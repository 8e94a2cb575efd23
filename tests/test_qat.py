"""Quantization-aware training end to end, on digits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvit_edge.bundle import read_bundle
from tinyvit_edge.checkpoint import Checkpoint
from tinyvit_edge.console import QuietDisplay
from tinyvit_edge.data import load_batches, scan_folder
from tinyvit_edge.deployment import deployment_form
from tinyvit_edge.distill.augment import POLICIES
from tinyvit_edge.distill.teach import TeachRequest, teach
from tinyvit_edge.errors import DataError, InputError, StoreError
from tinyvit_edge.metrics import kl_divergence
from tinyvit_edge.precision import PRECISIONS
from tinyvit_edge.quantization.calibration import Calibration, CalibrationOptions, calibrate
from tinyvit_edge.quantization.ptq import quantize
from tinyvit_edge.quantization.qat import Score, run
from tinyvit_edge.quantization.qat_request import QatRequest, recipe
from tinyvit_edge.training.log import MetricsLog, read_run

W8A8 = PRECISIONS["w8a8"]


@pytest.fixture(scope="module")
def photos(digits_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of 20 images of each digit, as links."""
    folder = tmp_path_factory.mktemp("photos")
    for source in (digits_images / "train").iterdir():
        (folder / source.name).mkdir()
        for path in sorted(source.iterdir())[:20]:
            (folder / source.name / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def narrow(digits: Checkpoint, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranges that clip a lot, so that there is something to win: two thirds of what is seen."""
    form = deployment_form(digits.model)
    images = torch.from_numpy(
        next(load_batches(scan_folder(photos).subset(32), digits.preprocessing, 32))[0]
    )
    found = calibrate(form, [images], CalibrationOptions(method="min-max"))

    def shrunk(params: Any) -> Any:
        return replace(params, scale=params.scale / 1.5)

    layers = {
        name: replace(one, input=shrunk(one.input), output=shrunk(one.output))
        for name, one in found.layers.items()
    }
    path = tmp_path_factory.mktemp("ranges") / "narrow.json"
    replace(found, layers=layers).write(
        path, weights_sha256=digits.sha256, preprocessing=digits.preprocessing
    )
    return path


def request(photos: Path, out: Path, **values: Any) -> QatRequest:
    """A short training of the bundled digits in this process, a few fields changed."""
    base: dict[str, Any] = {
        "weights": "digits",
        "data": photos,
        "out": out,
        "hold_out": 4,
        "images": 64,
        "recipe": recipe(epochs=3, batch=8, lr=2e-4),
        "workers": 0,
    }
    return QatRequest(**{**base, **values})


@pytest.fixture(scope="module")
def trained(
    photos: Path, narrow: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A finished run, and what it returned."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, run(request(photos, out, calibration=narrow))


def test_it_beats_the_ranges_alone(
    trained: tuple[Path, dict[str, Any]], photos: Path, narrow: Path, digits: Checkpoint
) -> None:
    """Oracle: the logits of deployed programs, on the photos that nothing was trained on."""
    out, facts = trained
    assert facts["accepted"]
    everything = scan_folder(photos, digits.labels)
    held_out = replace(everything, samples=everything.samples[3::4])
    assert facts["held_out"] == len(held_out) == 50
    assert facts["trained_on"] == 64
    form = deployment_form(digits.model)
    images = torch.from_numpy(next(load_batches(held_out, digits.preprocessing, 50))[0])
    kl = {}
    with torch.inference_mode():
        exact = form(images).numpy()
        for name, path in (("before", narrow), ("after", out / "ranges.json")):
            found = Calibration.read(
                path, weights_sha256=digits.sha256, preprocessing=digits.preprocessing
            )
            logits = quantize(form, W8A8, calibration=found)(images).numpy()
            kl[name] = kl_divergence(exact, logits)
            assert facts[name]["kl"] == pytest.approx(kl[name], rel=1e-4)
    assert kl["after"] < 0.8 * kl["before"]


def test_what_it_logs_is_a_run_that_report_reads(trained: tuple[Path, dict[str, Any]]) -> None:
    """Oracle: one measurement an epoch, the best of which is what the facts say."""
    out, facts = trained
    measured = read_run(out).of("val")
    assert [line["step"] for line in measured] == [8, 16, 24]
    best = min(measured, key=lambda line: line["kl"])
    assert {key: best[key] for key in facts["after"]} == facts["after"]
    assert facts["steps"] == 24


def test_repeating_a_finished_run_changes_nothing(
    trained: tuple[Path, dict[str, Any]], photos: Path, narrow: Path, content: Any
) -> None:
    """Oracle: the folder's bytes, and the facts; no photo is looked at."""
    out, facts = trained
    before = content(out)
    assert run(request(photos, out, calibration=narrow)) == facts
    assert content(out) == before


class _Killed(Exception):
    """Stands for a kill."""


class _AtStep(QuietDisplay):
    """Kills the run after some steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def track(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(count: int) -> None:
            if name == "train":
                self.left -= count
                if self.left < 0:
                    raise _Killed

        yield advance


class _AtJudgement(QuietDisplay):
    """Kills the run when an epoch has been judged and nothing of it written."""

    def say(self, text: str) -> None:
        if text.startswith("epoch"):
            raise _Killed


@pytest.mark.parametrize(
    ("display", "epochs", "images"),
    [(_AtStep(4), 2, 24), (_AtJudgement(), 1, 16)],  # the second ends where a state is due
    ids=["step", "judgement"],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
    display: QuietDisplay, epochs: int, images: int, photos: Path, narrow: Path, tmp_path: Path
) -> None:
    """Oracle: a run that was not killed, bit for bit."""
    asked = {
        "calibration": narrow,
        "recipe": recipe(epochs=epochs, batch=8, lr=1e-4),
        "images": images,
        "save_steps": 2,
    }
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(request(photos, whole, **asked))
    with pytest.raises(_Killed):
        run(request(photos, killed, **asked), display=display)
    assert not (killed / "ranges.json").exists()
    found = run(request(photos, killed, **asked))
    assert {**found, "out": ""} == {**expected, "out": ""}
    for name in ("ranges.json", "ranges.tuned.safetensors"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    logs = [MetricsLog.lines(folder / "metrics.jsonl") for folder in (whole, killed)]
    assert logs[0] == logs[1]


def test_weights_that_are_no_numbers_any_more_are_rejected(
    digits: Checkpoint, photos: Path, narrow: Path, tmp_path: Path
) -> None:
    """Oracle: a rate that overflows the classifier, left in float; JSON has no infinity."""
    contract: Any = {"weights_sha256": digits.sha256, "preprocessing": digits.preprocessing}
    ranges, out = tmp_path / "ranges.json", tmp_path / "run"
    found = Calibration.read(narrow, **contract)
    replace(found, left_float={"classifier": "a test"}).write(ranges, **contract)
    ruinous = recipe(lr=1e37, epochs=2)
    asked = request(photos, out, calibration=ranges, recipe=ruinous, images=32)
    facts = run(replace(asked, precision="w8a8-mixed"))
    assert not facts["accepted"]
    assert facts["after"] == {"top1": 0.0, "kl": None, "sqnr_db": None}
    json.dumps(facts, allow_nan=False)
    assert json.loads((out / "ranges.json").read_text()) == json.loads(ranges.read_text())


def test_a_run_goes_on_from_trained_weights(
    trained: tuple[Path, dict[str, Any]], photos: Path, tmp_path: Path
) -> None:
    """Oracle: where the first run ended is where the second begins, and what it leaves if it
    ruins them.
    """
    said: list[str] = []

    class Listening(QuietDisplay):
        def say(self, text: str) -> None:
            said.append(text)

    first, facts = trained
    asked = {"calibration": first / "ranges.json", "recipe": recipe(lr=0.3), "images": 16}
    out = tmp_path / "run"
    again = run(request(photos, out, **asked), display=Listening())
    assert again["before"] == facts["after"]
    assert not again["accepted"]
    assert said[-1].endswith("holds what training began with")
    name = "ranges.tuned.safetensors"
    assert (out / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_line(
    workers: int, photos: Path, narrow: Path, tmp_path: Path
) -> None:
    """Oracle: the message names the image, also where a worker met it."""
    data = tmp_path / "data"
    (data / "3").mkdir(parents=True)
    for path in sorted((photos / "3").iterdir())[:12]:
        (data / "3" / path.name).write_bytes(path.read_bytes())
    victim = sorted((data / "3").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:40])
    asked = request(data, tmp_path / "run", calibration=narrow, images=None, workers=workers)
    with pytest.raises(DataError) as caught:
        run(asked)
    assert str(caught.value).startswith(str(victim))
    assert "\n" not in str(caught.value)


def test_what_does_not_gain_is_not_kept(photos: Path, narrow: Path, tmp_path: Path) -> None:
    """Oracle: a rate that ruins the weights: the ranges alone are written, and it is said."""
    said: list[str] = []

    class Listening(QuietDisplay):
        def say(self, text: str) -> None:
            said.append(text)

    out = tmp_path / "run"
    asked = request(photos, out, calibration=narrow, recipe=recipe(lr=0.3), images=16)
    facts = run(asked, display=Listening())
    assert not facts["accepted"]
    assert "did not beat" in said[-1]
    assert json.loads((out / "ranges.json").read_text()) == json.loads(narrow.read_text())
    assert not (out / "ranges.tuned.safetensors").exists()


def test_a_stored_teacher_is_replayed(photos: Path, narrow: Path, tmp_path: Path) -> None:
    """Oracle: the store is what is trained by: another teacher's words give other weights; other
    images are refused.
    """
    stores = []
    for seed in (0, 1):
        stores.append(tmp_path / f"store-{seed}")
        asked = TeachRequest(
            teacher="digits",
            data=photos,
            out=stores[-1],
            epochs=1,
            top_k=3,
            policy=POLICIES["light"],
            image_size=64,
            seed=seed,
            workers=0,
            amp="fp32",
        )
        teach(asked)
    taught = {
        "recipe": recipe(lr=1e-4, stored=True),
        "calibration": narrow,
        "images": 16,
    }
    states = []
    for store in stores:
        out = tmp_path / f"run-{store.name}"
        run(request(photos, out, store=store, **taught))
        states.append(torch.load(out / "state.pt", weights_only=True)["model"])
        assert json.loads((out / "run.json").read_text())["teacher"] == "digits"
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(StoreError, match="give the folder that it was made from"):
        run(request(photos / "3", tmp_path / "run", store=stores[0], **taught))


def test_another_run_in_the_folder_is_refused(
    trained: tuple[Path, dict[str, Any]], photos: Path, narrow: Path
) -> None:
    """Oracle: one line that names what differs, before any work."""
    out, _ = trained
    with pytest.raises(InputError, match="holds a run that differs in seed"):
        run(request(photos, out, calibration=narrow, seed=1))


def test_nothing_left_to_judge_by_is_refused(photos: Path, tmp_path: Path) -> None:
    """Oracle: more photos between two held out than there are."""
    with pytest.raises(InputError, match="--hold-out 1000 leaves 200 to train on and 0"):
        run(request(photos, tmp_path / "run", hold_out=1000))
    assert not (tmp_path / "run").exists()


def test_scores_are_compared_as_documented() -> None:
    """Oracle: by hand."""
    base = Score(top1=0.9, kl=0.1, sqnr_db=20.0)
    nearer, better = replace(base, kl=0.05), replace(base, top1=0.92, kl=0.2)
    worse = replace(base, top1=0.89, kl=0.05)
    assert [one.beats(base, stored=False) for one in (nearer, better, worse, base)] == [
        True, False, False, False,
    ]  # fmt: skip
    assert [one.beats(base, stored=True) for one in (nearer, better, worse, base)] == [
        True, True, False, False,
    ]  # fmt: skip


def test_what_beats_the_ranges_comes_before_what_is_more_accurate_alone() -> None:
    """Oracle: by hand: an early epoch with more hits that is further off shuts out no later one."""
    base = Score(top1=0.9, kl=0.1, sqnr_db=20.0)
    early, later = replace(base, top1=0.92, kl=0.2), replace(base, top1=0.91, kl=0.05)
    assert not later.beats(early, stored=False)
    assert later.better(early, base, stored=False)
    assert not early.better(later, base, stored=False)
    assert early.better(later, base, stored=True)
    worse = replace(base, top1=0.5, kl=0.01)
    assert not worse.better(later, base, stored=False)


def test_commands(
    cli: Any, trained: tuple[Path, dict[str, Any]], photos: Path, narrow: Path, tmp_path: Path
) -> None:
    """Oracle: the trained weights are in the bundle, which is judged by them."""
    code, out, error = cli(
        "quantize", "qat", "--weights", "digits", "--data", photos, "--calibration", narrow,
        "--images", 16, "--hold-out", 10, "--workers", 0, "--out", tmp_path / "run", "--json", "-",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(out)["steps"] == 1
    ranges = trained[0] / "ranges.json"
    code, _, error = cli(
        "export", "onnx", "--weights", "digits", "--precision", "w8a8", "--calibration", ranges,
        "--out", tmp_path / "bundles", "--json", "-",
    )  # fmt: skip
    assert code == 0, error
    root = tmp_path / "bundles" / "onnx-w8a8"
    kept = read_bundle(root).ranges()
    assert kept is not None
    assert kept.tuned
    code, _, error = cli("parity", root, "--weights", "digits", "--data", photos, "--limit", 20)
    assert code == 0, error
    (root / "tuned.safetensors").unlink()
    code, _, error = cli("parity", root, "--weights", "digits", "--data", photos, "--limit", 20)
    assert code == 2
    assert "tuned.safetensors" in error
