"""Put bundles into an app's folder, with an index that the app reads first.

``index.json`` beside the bundles: ``{"bundles": [{"name", "target", "precision", "file",
"bytes"}, ...]}``, sorted by name; `file` is the artifact in the folder `name`, `bytes` its size.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyvit_edge.bundle import NOT_SHIPPED, Bundle, read_bundle
from tinyvit_edge.errors import InputError, UnsupportedError
from tinyvit_edge.files import atomic_directory, size_of, write_json

__all__ = ["APPS", "INDEX", "App", "ship", "write_index"]

INDEX = "index.json"
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An app that runs bundles."""

    name: str
    targets: tuple[str, ...]
    """Those whose runtimes it has."""
    folder: str
    """Where it looks for bundles, from the root of a checkout."""


APPS: dict[str, App] = {
    app.name: app
    for app in (
        App(name="web", targets=("onnx", "tflite"), folder="apps/web/bundles"),
        App(
            name="android",
            targets=("onnx", "executorch", "tflite"),
            folder="apps/android/app/src/main/assets/bundles",
        ),
        App(name="ios", targets=("coreml",), folder="apps/ios/App/Bundles"),
        App(name="native", targets=("executorch",), folder="apps/native/bundles"),
    )
}


def ship(app_name: str, sources: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Copy bundles into an app's folder, each whole or not at all, and write the index anew.

    A bundle of the same name is replaced, others stay. Everything is checked before anything is
    copied.

    Args:
        app_name: a key of `APPS`.
        sources: bundles, or folders that ``deploy`` wrote: of these, all bundles that the app runs.
        out: the folder, if other than the app's own.

    Returns:
        ``{"app", "folder", "bundles"}``: the index's entries of what was copied.

    Raises:
        InputError: no such app, a source is no bundle, two have one name, a source lies in the
            folder already, or the folder cannot be written.
        UnsupportedError: the app cannot run a bundle's target.
    """
    if app_name not in APPS:
        raise InputError(f"unknown app {app_name!r}: choose {', '.join(APPS)}")
    app = APPS[app_name]
    folder = _own_folder(app) if out is None else out
    bundles = [bundle for source in sources for bundle in _bundles(source, app)]
    names: set[str] = set()
    for bundle in bundles:
        _check(bundle, app, folder)
        if _name(bundle) in names:
            raise InputError(
                f"{bundle.root}: another bundle is called {_name(bundle)}, too; rename one folder"
            )
        names.add(_name(bundle))
    for bundle in bundles:
        with atomic_directory(folder / _name(bundle)) as temporary:
            shutil.copytree(
                bundle.root,
                temporary,
                ignore=shutil.ignore_patterns(*NOT_SHIPPED),
                dirs_exist_ok=True,
            )
    index = write_index(folder)
    return {
        "app": app.name,
        "folder": str(folder),
        "bundles": [entry for entry in index["bundles"] if entry["name"] in names],
    }


def write_index(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Write ``index.json`` of the bundles in `folder`, and return it.

    Raises:
        InputError: a bundle there is damaged.
    """
    found = (read_bundle(path.parent) for path in sorted(folder.glob(f"*/{_MANIFEST}")))
    index = {"bundles": [_entry(bundle) for bundle in found]}
    write_json(folder / INDEX, index)
    return index


def _entry(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": _name(bundle),
        "target": bundle.target,
        "precision": bundle.precision,
        "file": bundle.artifact.name,
        "bytes": size_of(bundle.artifact),
    }


def _bundles(source: Path, app: App) -> list[Bundle]:
    """The bundle at `source`, or those in it that the app runs."""
    below = sorted(path.parent for path in source.glob(f"*/{_MANIFEST}"))
    if (source / _MANIFEST).exists() or not below:
        return [read_bundle(source)]
    bundles = [bundle for bundle in map(read_bundle, below) if bundle.target in app.targets]
    if not bundles:
        raise UnsupportedError(
            f"{source}: no bundle that the {app.name} app runs; deploy with --targets"
            f" {','.join(app.targets)}"
        )
    return bundles


def _check(bundle: Bundle, app: App, folder: Path) -> None:
    if bundle.target not in app.targets:
        raise UnsupportedError(
            f"{bundle.root}: the {app.name} app cannot run {bundle.target}; give a bundle of"
            f" {' or '.join(app.targets)}"
        )
    if (folder / _name(bundle)).resolve() == bundle.root.resolve():
        raise InputError(
            f"{bundle.root}: the bundle lies in the app's folder already; give where it was made"
        )


def _name(bundle: Bundle) -> str:
    return bundle.root.resolve().name  # of `.`, too


def _own_folder(app: App) -> Path:
    root = Path(__file__).resolve().parents[1]
    if not (root / "apps").is_dir():
        raise InputError(
            f"the {app.name} app is not beside this installation: give its folder with --out"
        )
    return root / app.folder
