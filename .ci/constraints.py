"""Print the constraints file of the environment that this runs in: `make lock`.

One line a distribution, at the version installed here. A version that is too new for a supported
Python gets a marker, so that pip chooses freely there. What is below `BY_HAND` in the file given
as argument is kept as it is.
"""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.specifiers import SpecifierSet

HEAD = """\
# The versions that the tests ran with, for pip's -c: the same install every time, found at once.
# Not requirements: those are in pyproject.toml. Renew with `make lock`, then `make test-all`.
# torch is not here: the Makefile installs it first, in the build that the index has for this host.
# A line with a marker: that version asks for a newer Python than the oldest supported one.
"""
BY_HAND = "# By hand: not in the dev extra. `make lock` keeps what is below this line.\n"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The project, what a venv starts with, and what comes with torch's own choice of build.
SKIP = re.compile(r"tinyvit-edge|pip|setuptools|wheel|torch|triton|nvidia-.*|cuda-.*")


def marker(requires_python: str | None) -> str:
    """`; python_version >= ...` where some of `PYTHONS` cannot have the distribution, else ''."""
    # a patch release stands for its minor version: the last is the most that can be asked for
    accepted = [v for v in PYTHONS if f"{v}.99" in SpecifierSet(requires_python or "")]
    if not accepted:
        raise SystemExit(f"none of Python {', '.join(PYTHONS)} satisfies {requires_python}")
    low = f'python_version >= "{accepted[0]}"' if accepted[0] != PYTHONS[0] else ""
    high = f'python_version <= "{accepted[-1]}"' if accepted[-1] != PYTHONS[-1] else ""
    condition = " and ".join(part for part in (low, high) if part)
    return f" ; {condition}" if condition else ""


def lines() -> list[str]:
    """The pins, sorted by name. A local version suffix (`+cpu`) names a build, and is dropped."""
    pins = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if not SKIP.fullmatch(name):
            version = distribution.version.partition("+")[0]
            requires_python = distribution.metadata["Requires-Python"]
            pins[name] = f"{name}=={version}{marker(requires_python)}\n"
    return [pins[name] for name in sorted(pins)]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    by_hand = path.read_text().partition(BY_HAND)[2]
    path.write_text(HEAD + "".join(lines()) + BY_HAND + by_hand)
