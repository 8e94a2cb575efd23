"""The iOS app, as far as a machine without Xcode can check it.

Swift files are parsed and what has to agree between files is compared. Where there is a Swift
toolchain, `TinyViTKit` is built and its tests run; the app itself needs Xcode.
"""

from __future__ import annotations

import os
import plistlib
import re
from pathlib import Path
from typing import Any

import pytest

from mobile_samples import (
    APPS,
    documented_bounds,
    git_ignores,
    run,
    sources,
    syntax_errors,
    tool,
    write_goldens,
)
from tinyvit_edge._version import __version__

IOS = APPS / "ios"
APP = IOS / "App"
KIT = IOS / "Sources" / "TinyViTKit"


def property_list(name: str) -> dict[str, Any]:
    values: dict[str, Any] = plistlib.loads((APP / name).read_bytes())
    return values


def project() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    values: dict[str, Any] = yaml.safe_load((IOS / "project.yml").read_text())
    return values


def test_every_swift_file_is_swift() -> None:
    """Oracle: tree-sitter's grammar."""
    files = sources(IOS, ".swift")
    assert len(files) > 20
    assert syntax_errors("swift", files) == []


@pytest.mark.slow
def test_the_kit_reproduces_the_golden_vectors(tmp_path: Path) -> None:
    """Oracle: Pillow, NumPy and a real bundle, by way of the XCTests of TinyViTKit."""
    swift = tool("swift", "a Swift toolchain, https://www.swift.org/install")
    goldens = write_goldens(tmp_path / "goldens")
    build = tmp_path / "build"
    done = run(
        *(swift, "test", "--package-path", IOS, "--scratch-path", build),
        env=os.environ | {"TINYVIT_GOLDENS": str(goldens)},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_app_says_why_it_wants_the_camera() -> None:
    """Oracle: without this key iOS ends an app that asks for the camera."""
    assert "on this device" in property_list("Info.plist")["NSCameraUsageDescription"]


def test_photos_are_chosen_without_access_to_the_library() -> None:
    """Oracle: the system's picker runs in another process and needs no permission."""
    assert not [key for key in property_list("Info.plist") if "PhotoLibrary" in key]
    code = "".join(path.read_text() for path in sources(APP, ".swift"))
    assert "PhotosPicker(" in code
    assert "PHPhotoLibrary" not in code


def test_nothing_is_sent() -> None:
    """Oracle: by hand, the ways to the network that Apple's frameworks have; none is used."""
    code = "".join(path.read_text() for path in sources(IOS, ".swift"))
    ways = "URLSession|URLRequest|NWConnection|CFSocket|import Network|WKWebView|AsyncImage"
    assert re.findall(ways, code) == []
    privacy = property_list("PrivacyInfo.xcprivacy")
    assert privacy["NSPrivacyTracking"] is False
    assert privacy["NSPrivacyCollectedDataTypes"] == []


def test_versions_agree() -> None:
    """Oracle: the package's version, and one lowest iOS for package and project."""
    base = project()["settings"]["base"]
    assert base["MARKETING_VERSION"] == __version__
    lowest = project()["options"]["deploymentTarget"]["iOS"]
    assert f".iOS(.v{lowest.removesuffix('.0')})" in (IOS / "Package.swift").read_text()


def test_the_project_names_files_that_exist() -> None:
    """Oracle: the file system."""
    target = project()["targets"]["TinyViT"]
    assert (IOS / target["settings"]["base"]["INFOPLIST_FILE"]).is_file()
    assert {package["path"] for package in project()["packages"].values()} == {"."}
    folders = {source["path"]: source for source in target["sources"]}
    assert (IOS / "App").is_dir()
    assert "Bundles" in folders["App"]["excludes"]
    assert folders["App/Bundles"]["type"] == "folder"


def test_bundles_are_where_the_app_looks_and_not_in_git() -> None:
    """Oracle: git's own answer."""
    assert git_ignores(APP / "Bundles" / "index.json")
    code = (APP / "ClassifierModel.swift").read_text()
    assert 'Bundle.main.bundleURL.appending(path: "Bundles")' in code


def test_the_bounds_are_those_of_the_documentation() -> None:
    """Oracle: docs/bundle.md."""
    code = (KIT / "ParityCheck.swift").read_text()
    bounds = {name.upper(): float(db) for name, db in re.findall(r"case \.(\w+): (\d+)\n", code)}
    assert bounds == documented_bounds()


def test_both_apps_write_the_same_report() -> None:
    """Oracle: the keys that the Android app writes, which its own tests read back."""
    kotlin = APPS / "android/core/src/main/kotlin/dev/tinyvit/edge/core/Report.kt"
    android = set(re.findall(r'\.put\(\s*"(\w+)"', kotlin.read_text()))
    report, latency = (KIT / "Report.swift").read_text(), (KIT / "Latency.swift").read_text()
    encoded = [
        *re.findall(r"struct \w+: Encodable[^{]*\{(.*?)\n    \}", report, re.DOTALL),
        *re.findall(r"struct \w+: [\w, ]*Encodable[^{]*\{(.*?)\n\}", report, re.DOTALL),
        *re.findall(r"struct Latency: [^{]*\{(.*?)\n\}", latency, re.DOTALL),
    ]
    names = {
        name for body in encoded for name in re.findall(r"^ +(?:public )?let (\w+)", body, re.M)
    }
    assert {re.sub(r"([A-Z])", r"_\1", name).lower() for name in names} == android
