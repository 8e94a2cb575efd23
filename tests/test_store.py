"""Teacher outputs on disk: what is written is read, a kill costs nothing, the rest is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tinyvit_edge.data import fingerprint, scan_folder
from tinyvit_edge.distill import augment
from tinyvit_edge.distill.augment import POLICIES
from tinyvit_edge.distill.store import Manifest, Store, StoreWriter, record_dtype
from tinyvit_edge.distill.targets import dense, hard, soft_cross_entropy
from tinyvit_edge.distill.teach import TeachRequest, check, keys_of, teach
from tinyvit_edge.distill.teachers import load_teacher, prepare
from tinyvit_edge.errors import CheckpointError, GateError, StoreError

KEYS = [f"a/{number}.png" for number in range(21)]


def manifest(**values) -> Manifest:
    """A store of 21 images, 2 epochs and 3 of 12 classes, a few fields changed."""
    base = Manifest(
        teacher="t",
        teacher_sha256="0",
        teacher_input={},
        amp="fp32",
        labels=tuple(map(str, range(12))),
        top_k=3,
        samples=len(KEYS),
        epochs=2,
        batch=2,
        seed=0,
        image_size=64,
        policy=POLICIES["light"],
        augmentation_version=augment.VERSION,
        data_sha256="d",
    )
    return replace(base, **values)


def outputs(epoch: int, indices: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seeds, class indices and probabilities that tell every record from every other."""
    rows = np.array(indices)
    seeds = (1000 * epoch + rows).astype(np.int32)
    classes = (rows[:, None] + np.arange(3)) % 12
    return seeds, classes, (0.5 / (1 + np.arange(3)) + rows[:, None] / 1000 + epoch / 500)


def fill(writer: StoreWriter, *, stop_after: int | None = None) -> None:
    """Write what is missing; `stop_after` batches it stops, as a kill would."""
    written = 0
    for shard in writer.missing():
        with writer.open(shard) as file:
            for start in range(file.start, shard.stop, writer.manifest.batch):
                if written == stop_after:
                    raise InterruptedError
                indices = list(range(start, min(start + writer.manifest.batch, shard.stop)))
                file.append(*outputs(shard.epoch, indices))
                written += 1


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A whole one."""
    fill(StoreWriter(tmp_path / "store", manifest(), KEYS))
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("top_k", "classes", "size"),
    [(100, 1000, 404), (10, 1000, 44), (100, 21_841, 404), (100, 65_536, 404), (10, 65_537, 64)],
)
def test_record_sizes(top_k, classes, size):
    """Oracle: the original's 404 and 44 bytes; indices of four bytes where two are too few."""
    assert record_dtype(top_k, classes).itemsize == size


def test_indices_beyond_int16_are_kept(tmp_path):
    """The original's int16 ends at 32,767."""
    record = np.zeros(1, record_dtype(2, 60_000))
    record["index"] = [59_999, 40_000]
    assert record["index"].tolist() == [[59_999, 40_000]]


def test_what_is_written_is_read(store):
    """Oracle: the arrays that were written, in float16."""
    opened = Store(store)
    for epoch in (0, 1):
        indices = [20, 3, 3, 0]
        seeds, classes, probabilities = outputs(epoch, indices)
        records = opened.records(epoch, indices)
        assert records["seed"].tolist() == seeds.tolist()
        assert records["index"].tolist() == classes.tolist()
        assert np.array_equal(records["probability"], probabilities.astype(np.float16))
        assert opened.seeds(epoch).tolist() == outputs(epoch, list(range(21)))[0].tolist()
    assert opened.records(5, [7])["seed"] == outputs(1, [7])[0]  # epochs begin again


def test_size_is_the_formulas(store):
    """Oracle: epochs * samples * (4 + 3 * (2 + 2)) bytes, on disk too."""
    formula = 2 * 21 * 16
    assert Store(store).size == formula
    assert sum(path.stat().st_size for path in store.rglob("*.bin")) == formula


def test_truncated_part_goes_on(tmp_path, content):
    """Cut at every byte of a shard's part, the store ends as one that was never stopped."""
    fill(StoreWriter(tmp_path / "whole", manifest(), KEYS))
    whole = content(tmp_path / "whole")
    root = tmp_path / "killed"
    with pytest.raises(InterruptedError):
        fill(StoreWriter(root, manifest(), KEYS), stop_after=3)
    (part,) = root.rglob("*.part")
    name = str(part.relative_to(root).with_suffix(".bin"))
    for length in range(len(whole[name]) + 1):
        cut = tmp_path / f"cut{length}"
        shutil.copytree(root, cut)
        (cut / part.relative_to(root)).write_bytes(whole[name][:length])
        fill(StoreWriter(cut, manifest(), KEYS))
        assert content(cut) == whole


def test_more_epochs_extend(store, content):
    """What is there stays; the manifest tells of the new."""
    before = content(store)
    fill(StoreWriter(store, manifest(epochs=3), KEYS))
    after = content(store)
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert Store(store).manifest.epochs == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"teacher_sha256": "1"},
        {"seed": 1},
        {"policy": POLICIES["strong"]},
        {"top_k": 4},
        {"data_sha256": "e"},
        {"augmentation_version": augment.VERSION + 1},
    ],
)
def test_other_store_is_not_continued(store, changed, content):
    """The field that differs is named, and nothing is touched."""
    before = content(store)
    with pytest.raises(StoreError, match=next(iter(changed))):
        StoreWriter(store, manifest(**changed), KEYS)
    assert content(store) == before


def test_folder_of_something_else_is_left_alone(tmp_path):
    """A store is not written among other files."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a store"):
        StoreWriter(tmp_path, manifest(), KEYS)


def test_changed_augmentation_is_refused(store):
    """Another version would replay other pixels."""
    values = json.loads((store / "manifest.json").read_text())
    values["augmentation_version"] += 1
    (store / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(StoreError, match="other pixels"):
        Store(store)


def test_damage_is_refused(store):
    """A shard cut short, then gone; then no manifest."""
    shard = sorted(store.rglob("*.bin"))[3]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match="truncated"):
        Store(store)
    shard.unlink()
    with pytest.raises(StoreError, match="unfinished"):
        Store(store)
    (store / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="not a readable manifest"):
        Store(store)


def test_other_images_and_teachers_are_refused(store):
    """The first image that is missing or new is named."""
    opened = Store(store)
    opened.check_data(KEYS, "d")
    opened.check_teacher("0")
    with pytest.raises(StoreError, match=r"a/20.png is missing"):
        opened.check_data(KEYS[:-1], "d")
    with pytest.raises(StoreError, match=r"b.png is not in the store"):
        opened.check_data([*KEYS, "b.png"], "d")
    with pytest.raises(StoreError, match="other contents"):
        opened.check_data(KEYS, "e")
    with pytest.raises(StoreError, match="another teacher"):
        opened.check_teacher("1")


def test_dense_targets():
    """Oracle: a loop over classes; stored mass in place, the rest spread over the others."""
    records = np.zeros(2, record_dtype(3, 10))
    records["index"] = [[4, 1, 7], [0, 9, 2]]
    records["probability"] = [[0.5, 0.25, 0.125], [0.9, 0.05, 0.05]]
    targets = dense(records, 10)
    for record, row in zip(records, targets, strict=True):
        stored = dict(zip(record["index"].tolist(), record["probability"].tolist(), strict=True))
        rest = max(0.0, 1 - sum(stored.values())) / 7
        expected = torch.tensor([stored.get(number, rest) for number in range(10)])
        torch.testing.assert_close(row, expected / expected.sum())
    columns = [7, 4, 3]
    narrowed = dense(records, 10, columns)
    torch.testing.assert_close(
        narrowed[0], targets[0, columns] / targets[0, columns].sum(), atol=1e-6, rtol=1e-5
    )
    torch.testing.assert_close(narrowed.sum(1), torch.ones(2))


def test_losses():
    """Oracle: PyTorch's cross-entropy, with probabilities and with smoothed labels."""
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 7, generator=torch.Generator().manual_seed(1)).softmax(1)
    torch.testing.assert_close(
        soft_cross_entropy(logits, targets), F.cross_entropy(logits, targets)
    )
    labels = [0, 6, 3, 3, 1]
    torch.testing.assert_close(
        soft_cross_entropy(logits, hard(labels, 7, 0.1)),
        F.cross_entropy(logits, torch.tensor(labels), label_smoothing=0.1),
    )


def lesson(photos: Path, out: Path, **values) -> TeachRequest:
    """The bundled model teaches views of digits."""
    base = {
        "teacher": "digits",
        "data": photos,
        "out": out,
        "top_k": 4,
        "policy": POLICIES["strong"],
        "image_size": 48,
        "batch": 5,
        "workers": 0,
        "amp": "fp32",
    }
    return TeachRequest(**{**base, **values})


@pytest.fixture(scope="module")
def photos(digits_images: Path, tmp_path_factory) -> Path:
    """A flat folder of 12 digits."""
    folder = tmp_path_factory.mktemp("photos")
    for path in sorted((digits_images / "heldout").rglob("*.png"))[::50][:12]:
        shutil.copy(path, folder)
    return folder


def test_store_has_what_the_teacher_says(photos, tmp_path):
    """Oracle: views drawn and mixed by hand, and the teacher run on all of them at once."""
    from tinyvit_edge.distill.draws import sample_seed
    from tinyvit_edge.distill.views import partners
    from tinyvit_edge.preprocessing import decode

    teach(lesson(photos, tmp_path / "store", epochs=2))
    store, teacher = Store(tmp_path / "store"), load_teacher("digits")
    paths = [sample.path for sample in scan_folder(photos).samples]
    seeds = [sample_seed(0, 1, index) for index in range(len(paths))]
    rendered = []
    for path, seed in zip(paths, seeds, strict=True):
        image = decode(path)
        view = augment.draw(POLICIES["strong"], seed, image.width, image.height)
        rendered.append(augment.render(image, view, 48))
    pairing, views = partners(len(paths), 0, 1), []
    for index, pixels in enumerate(rendered):
        other = int(pairing[index])
        how = augment.draw_mix(POLICIES["strong"], seeds[index], seeds[other])
        views.append(pixels if how is None else augment.mix(pixels, rendered[other], how))
    batch = torch.from_numpy(np.stack(views))
    with torch.inference_mode():
        expected = teacher.module(prepare(batch, teacher.preprocessing)).softmax(1)
    records = store.records(1, list(range(len(paths))))
    assert records["seed"].tolist() == seeds
    top = expected.topk(4)
    assert records["index"].tolist() == top.indices.tolist()
    np.testing.assert_allclose(records["probability"], top.values.numpy(), atol=1e-3)


def test_check_finds_altered_probabilities_and_images(photos, tmp_path):
    """Passes on what was written; not on other numbers, and not on another image."""
    root = tmp_path / "store"
    data = shutil.copytree(photos, tmp_path / "data")
    teach(lesson(data, root))
    facts = check(root, data, workers=0)
    assert facts["mean_error"] < 1e-3
    assert facts["index_mismatch"] == 0
    shard = sorted(root.rglob("*.bin"))[0]
    records = np.fromfile(shard, Store(root).manifest.dtype)
    records["probability"] *= 0.5
    records.tofile(shard)
    with pytest.raises(GateError, match="differ from the stored"):
        check(root, data, workers=0)
    victim = sorted(data.iterdir())[0]
    shutil.copy(sorted(data.iterdir())[5], victim)
    assert fingerprint(scan_folder(data)) != Store(root).manifest.data_sha256
    with pytest.raises(StoreError, match="other contents"):
        Store(root).check_data(keys_of(scan_folder(data)), fingerprint(scan_folder(data)))


def test_unknown_teacher_is_one_line():
    """The ways to name a teacher are in the message."""
    with pytest.raises(CheckpointError, match="efficientnet-lite2, timm:NAME, hf:NAME"):
        load_teacher("nobody")


def test_teacher_of_hugging_face_is_the_same_model(digits, tmp_path):
    """A saved TinyViT by way of transformers' Auto classes; oracle: the checkpoint itself."""
    from tinyvit_edge.checkpoint import save_checkpoint

    save_checkpoint(digits, tmp_path / "saved")
    views = torch.randint(0, 256, (2, 40, 40, 3), generator=torch.Generator().manual_seed(0))
    batch = views.to(torch.uint8)
    ours, theirs = load_teacher("digits"), load_teacher(f"hf:{tmp_path / 'saved'}")
    assert theirs.labels == ours.labels
    with torch.inference_mode():
        torch.testing.assert_close(theirs.logits(batch), ours.logits(batch))


def test_lite_teacher_is_folded_exactly(monkeypatch):
    """Oracle: the network as its package builds it."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from tinyvit_edge.distill import teachers
    from tinyvit_edge.imagenet import imagenet_labels

    views = torch.randint(0, 256, (1, 224, 224, 3), generator=torch.Generator().manual_seed(0))
    folded = load_teacher("efficientnet-lite2")
    monkeypatch.setattr(teachers, "_lighten", lambda module: None)
    plain = load_teacher("efficientnet-lite2")
    assert folded.sha256 == plain.sha256
    assert folded.labels == imagenet_labels()
    with torch.inference_mode():
        batch = views.to(torch.uint8)
        torch.testing.assert_close(folded.logits(batch), plain.logits(batch), atol=1e-4, rtol=1e-4)
