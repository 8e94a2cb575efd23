"""The ``.mlpackage`` folder: reading its protobuf, writing it reproducibly, importing quietly."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import shutil
import sys
import uuid
from pathlib import Path
from typing import Any

from tinyvit_edge.errors import InputError, MissingDependencyError

__all__ = ["METADATA", "model_folder", "proto", "read_spec", "write_package"]

METADATA = "tinyvit_edge."
"""Prefix of this tool's keys in a package's user-defined metadata."""

_PROTO_ALIAS = "_tinyvit_edge_coreml_proto"
_APPLE = "com.apple.CoreML"
_MODEL = "model.mlmodel"


def proto(module: str) -> Any:
    """Return one of coremltools' generated protobuf modules without importing coremltools.

    Importing coremltools takes seconds and logs warnings wherever its native library is absent.
    The protobuf modules need protobuf only, so they are imported as a package of another name;
    protobuf's own registry makes the message classes the same objects either way.

    Args:
        module: ``Model_pb2`` or ``MIL_pb2``.

    Raises:
        MissingDependencyError: coremltools is not installed.
    """
    if _PROTO_ALIAS not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or found.origin is None:
            raise MissingDependencyError(
                "a Core ML package needs coremltools: pip install 'tinyvit-edge[coreml]'"
            )
        folder = Path(found.origin).parent / "proto"
        spec = importlib.util.spec_from_file_location(
            _PROTO_ALIAS, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        # made but not executed: the package's __init__ only imports modules of the folder
        sys.modules[_PROTO_ALIAS] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_PROTO_ALIAS}.{module}")


def read_spec(path: Path) -> Any:
    """Read the ``Model_pb2.Model`` of a package.

    Raises:
        InputError: not a readable package of an ML program with a main function.
        MissingDependencyError: coremltools is not installed.
    """
    from google.protobuf.message import DecodeError

    model = proto("Model_pb2").Model()
    try:
        model.ParseFromString((model_folder(path) / _MODEL).read_bytes())
    except (OSError, LookupError, TypeError, ValueError, DecodeError) as error:
        raise InputError(
            f"{path}: not a readable Core ML package ({type(error).__name__}); export it again"
        ) from error
    if model.WhichOneof("Type") != "mlProgram" or "main" not in model.mlProgram.functions:
        raise InputError(
            f"{path}: a Core ML model without an ML program's main function; export it again"
        )
    return model


def model_folder(path: Path) -> Path:
    """Folder that a package's ``model.mlmodel`` lies in and that its weights are named from.

    Raises:
        OSError, LookupError, TypeError, ValueError: the manifest is missing or malformed.
    """
    manifest = json.loads((path / "Manifest.json").read_text(encoding="utf-8"))
    root = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]
    model: Path = path / "Data" / root["path"]
    return model.parent


def write_package(spec: Any, weights: Path, path: Path) -> None:
    """Write a package whose bytes depend on its content only.

    coremltools names the manifest's two entries by random UUIDs; here each is derived from the
    SHA-256 of what it stands for.

    Args:
        spec: ``Model_pb2.Model``.
        weights: the folder that holds ``weight.bin``.
        path: folder to make; its name may have any suffix.
    """
    folder = path / "Data" / _APPLE
    folder.mkdir(parents=True)
    model = spec.SerializeToString(deterministic=True)
    (folder / _MODEL).write_bytes(model)
    shutil.copytree(weights, folder / "weights")
    blobs = (folder / "weights" / "weight.bin").read_bytes()
    root, data = _identifier(model), _identifier(blobs)
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            root: _entry("CoreML Model Specification", _MODEL),
            data: _entry("CoreML Model Weights", "weights"),
        },
        "rootModelIdentifier": root,
    }
    text = json.dumps(manifest, indent=4)
    (path / "Manifest.json").write_text(text + "\n", encoding="utf-8")


def _identifier(content: bytes) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(content).hexdigest())).upper()


def _entry(description: str, name: str) -> dict[str, str]:
    return {
        "author": _APPLE,
        "description": description,
        "name": name,
        "path": f"{_APPLE}/{name}",
    }
