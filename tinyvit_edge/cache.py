"""What an earlier run found, kept by the content of all that it came from.

An entry has a name, such as ``onnx-w8a8.bundle``, and a key: a digest of everything that decides
what it holds. There is one entry a name, so a folder does not grow with the number of runs. An
entry with another key is as good as none; one that does not hold what was written is never used.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tinyvit_edge.files import atomic_file
from tinyvit_edge.host import cpu_name

if TYPE_CHECKING:
    from torch import Tensor

    from tinyvit_edge.checkpoint import Checkpoint

__all__ = ["Entry", "Store", "digest", "environment", "model_digest", "tensors_digest"]

_DIGEST_BYTES = hashlib.sha256().digest_size
_HEAD = "_head"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What was kept under a name."""

    value: Any
    """JSON values."""
    arrays: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Store:
    """A folder of entries; safe to use from several threads, for each name is one thread's."""

    def __init__(
        self,
        folder: Path,
        *,
        fresh: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Use a folder, which need not exist.

        Args:
            folder: where the entries are.
            fresh: find nothing that was kept before.
            say: is told of each entry that is damaged.
        """
        self._folder, self._fresh, self._say = folder, fresh, say

    def find(self, name: str, key: str) -> Entry | None:
        """What was kept under a name for the same key; None where that is nothing sound."""
        path = self._folder / name
        if self._fresh or not path.is_file():
            return None
        try:
            content = path.read_bytes()
            body = content[_DIGEST_BYTES:]
            if hashlib.sha256(body).digest() != content[:_DIGEST_BYTES]:
                raise ValueError("its digest is of other content")
            with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
                found = dict(arrays)
            head = json.loads(found.pop(_HEAD).tobytes())
        except (OSError, ValueError, LookupError) as error:
            self._say(f"{path}: damaged ({error}); what it held is made again")
            return None
        return Entry(value=head["value"], arrays=found) if head["key"] == key else None

    def keep(self, name: str, key: str, value: Any, **arrays: npt.NDArray[Any]) -> None:
        """Keep JSON values and arrays under a name, in place of what was there.

        Raises:
            InputError: the folder cannot be written, or its disk is full.
        """
        head = json.dumps({"key": key, "value": value}, allow_nan=False).encode()
        stream = io.BytesIO()
        named: dict[str, Any] = {_HEAD: np.frombuffer(head, np.uint8), **arrays}
        np.savez(stream, **named)
        body = stream.getvalue()
        with atomic_file(self._folder / name) as temporary:
            temporary.write_bytes(hashlib.sha256(body).digest() + body)


def digest(*values: Any) -> str:
    """Hexadecimal SHA-256 of JSON values and dataclasses of such."""
    text = json.dumps(values, sort_keys=True, default=_plain, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def environment() -> str:
    """Digest of what works here: this package's source, every installed distribution, the CPU.

    All distributions, because converters change with packages that nobody thinks of; all of the
    source, because which part of it shapes an artifact is a question with wrong answers.
    """
    installed = sorted({f"{one.name} {one.version}" for one in metadata.distributions()})
    host = [platform.python_version(), platform.system(), platform.machine(), cpu_name()]
    return digest(_source_digest(), installed, host)


def model_digest(checkpoint: Checkpoint) -> str:
    """Digest of a checkpoint as it was loaded: whatever file a difference came from, it counts."""
    return digest(
        checkpoint.labels,
        checkpoint.preprocessing,
        checkpoint.variant,
        checkpoint.format,
        checkpoint.sha256,
        checkpoint.model.config.to_dict(),
        tensors_digest(checkpoint.model.state_dict()),
    )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the names, types, shapes and values of some tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _source_digest() -> str:
    package = Path(__file__).parent
    # a checkout has two of the folders as links, which rglob does not follow by itself
    folders = [package, *(path for path in package.iterdir() if path.is_dir())]
    files = {file for folder in folders for file in folder.rglob("*.py")}
    found = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        found.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no digest")
