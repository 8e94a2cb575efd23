"""The Android app, as far as a machine without the Android SDK can check it.

`:core`, which holds everything that decides what the user sees, is compiled and run. The rest is
parsed, its resources are linked, and what has to agree between files is compared.
"""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from mobile_samples import (
    APPS,
    REPOSITORY,
    documented_bounds,
    file_of,
    git_ignores,
    run,
    sources,
    syntax_errors,
    tool,
    write_goldens,
)
from tinyvit_edge._version import __version__
from tinyvit_edge.device_report import read_device_report

ANDROID = APPS / "android"
CORE = ANDROID / "core" / "src"
APP = ANDROID / "app" / "src" / "main"
TESTS = [f"dev.tinyvit.edge.core.{path.stem}" for path in sorted(CORE.rglob("*Test.kt"))]
NS = "{http://schemas.android.com/apk/res/android}"
TOOLS = "{http://schemas.android.com/tools}"


def java_jars() -> list[Path]:
    return [
        file_of("/usr/share/java/com.android.json.jar", "libandroid-json-java"),
        file_of("/usr/share/java/junit4.jar", "junit4"),
        file_of("/usr/share/java/hamcrest.jar", "libhamcrest-java"),
    ]


@pytest.fixture(scope="module")
def compiler() -> Path:
    """The folder of the pinned compiler's jars; fetched once, by npm."""
    tools = ANDROID / "tools"
    package = tools / "node_modules" / "kotlin-compiler"
    pinned = json.loads((tools / "package.json").read_text())["devDependencies"]["kotlin-compiler"]
    about = package / "package.json"
    if not about.exists() or json.loads(about.read_text())["version"] != pinned:
        done = run(tool("npm", "Node.js"), "ci", "--ignore-scripts", cwd=tools)
        assert done.returncode == 0, done.stderr
    return package / "lib"


@pytest.fixture(scope="module")
def core(compiler: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Class path of `:core` and its tests, compiled with warnings as errors."""
    java, jars = tool("java", "Debian: default-jre-headless"), java_jars()
    library = [compiler / "kotlin-stdlib.jar", *jars]
    classes = tmp_path_factory.mktemp("core")
    done = run(
        java,
        "-cp",
        f"{compiler}/*",
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler",
        *("-no-stdlib", "-no-reflect", "-jvm-target", "17", "-Werror", "-Wextra"),
        *("-cp", ":".join(map(str, library)), "-d", classes),
        *sorted(CORE.rglob("*.kt")),
    )
    assert done.returncode == 0, done.stderr
    return [classes, *library]


@pytest.fixture(scope="module")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_goldens(tmp_path_factory.mktemp("goldens") / "out")


def junit(core: list[Path], goldens: Path, *options: str) -> tuple[int, str]:
    """Exit code and output of JUnit on all tests of `:core`."""
    done = run(
        "java",
        *(f"-Dtinyvit.goldens={goldens}", *options),
        *("-cp", ":".join(map(str, core)), "org.junit.runner.JUnitCore", *TESTS),
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_core_reproduces_the_golden_vectors(
    core: list[Path], goldens: Path, tmp_path: Path
) -> None:
    """Oracle: Pillow, NumPy and a real bundle, by way of JUnit; for the report, its schema."""
    report = tmp_path / "report.json"
    code, output = junit(core, goldens, f"-Dtinyvit.report={report}")
    assert code == 0, output
    read_device_report(report)
    count = re.search(r"OK \((\d+) tests\)", output)
    assert count, output
    written = sum(path.read_text().count("@Test\n") for path in CORE.rglob("*Test.kt"))
    assert int(count[1]) == written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "test"),
    [
        ("cases/7.resized.bin", "resized bytes are Pillow's"),
        ("cases/7.tensor.bin", "resized bytes are Pillow's"),
        ("bundles/onnx-fp32/golden/1.resized.bin", "the bundle as it was written passes"),
        ("bundles/onnx-fp32/golden/0.tensor.bin", "the bundle as it was written passes"),
    ],
)
def test_a_spoilt_golden_vector_fails_the_tests_of_core(
    core: list[Path], goldens: Path, tmp_path: Path, file: str, test: str
) -> None:
    """Oracle: one byte turned over in what Python wrote."""
    spoilt = tmp_path / "spoilt"
    shutil.copytree(goldens, spoilt)
    content = bytearray((spoilt / file).read_bytes())
    content[7] ^= 0x40  # of a float32, its exponent
    (spoilt / file).write_bytes(content)
    code, output = junit(core, spoilt)
    assert code == 1, output
    assert f") {test}" in output


def test_every_kotlin_file_is_kotlin() -> None:
    """Oracle: tree-sitter's grammar."""
    files = sources(ANDROID, ".kt", ".kts")
    assert len(files) > 20
    assert syntax_errors("kotlin", files) == []


def test_imports_from_core_exist() -> None:
    """Oracle: the declarations in the files of `:core`; other modules cannot be compiled here."""
    declared = {
        name
        for path in (CORE / "main").rglob("*.kt")
        for name in re.findall(
            r"^(?:(?:data|sealed|enum|fun|private|internal|inline) )*"
            r"(?:class|interface|object|fun|val|const val) (?:\w+\.)?(\w+)",
            path.read_text(),
            re.MULTILINE,
        )
    }
    imported = {
        name
        for path in sources(ANDROID, ".kt")
        if not path.is_relative_to(CORE)
        for name in re.findall(r"^import dev\.tinyvit\.edge\.core\.(\w+)", path.read_text(), re.M)
    }
    assert len(imported) > 15
    assert imported <= declared


def test_strings_are_those_that_the_screen_uses() -> None:
    """Oracle: `R.string` in the code, `@string` in the manifest."""
    names = {node.get("name") for node in ET.parse(APP / "res/values/strings.xml").iter("string")}
    text = "".join(path.read_text() for path in sources(APP, ".kt", ".xml"))
    assert names == set(re.findall(r"(?:R\.string\.|@string/)(\w+)", text))


def manifest_after_merging() -> ET.Element:
    """The manifest without what `tools:node="remove"` takes out of it and of those merged in."""
    root = ET.parse(APP / "AndroidManifest.xml").getroot()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.get(f"{TOOLS}node") == "remove":
                parent.remove(child)
    return root


def test_images_cannot_leave_the_device() -> None:
    """Oracle: without INTERNET an app opens no socket; a library's is taken out, too."""
    before = ET.parse(APP / "AndroidManifest.xml").getroot()
    removed = [
        node.get(f"{NS}name")
        for node in before.iter("uses-permission")
        if node.get(f"{TOOLS}node") == "remove"
    ]
    assert removed == ["android.permission.INTERNET"]
    asked = [node.get(f"{NS}name") for node in manifest_after_merging().iter("uses-permission")]
    assert asked == ["android.permission.CAMERA"]
    provider = before.find("application/provider")
    assert provider is not None
    assert provider.get(f"{NS}exported") == "false"
    application = before.find("application")
    assert application is not None
    assert application.get(f"{NS}allowBackup") == "false"


def test_the_app_says_why_it_wants_the_camera_and_runs_without() -> None:
    """Oracle: by hand; the reason is shown where the permission is refused."""
    features = list(manifest_after_merging().iter("uses-feature"))
    assert [node.get(f"{NS}required") for node in features] == ["false"]
    strings = ET.parse(APP / "res/values/strings.xml")
    reason = next(n.text for n in strings.iter("string") if n.get("name") == "camera_reason")
    assert reason is not None
    assert "on this device" in reason
    pane = (APP / "kotlin/dev/tinyvit/edge/app/CameraPane.kt").read_text()
    assert "if (refused) Text(stringResource(R.string.camera_reason))" in pane


def test_the_report_is_shared_through_the_declared_provider() -> None:
    """Oracle: authority and folder in the manifest's resources, against those in the code."""
    provider = manifest_after_merging().find("application/provider")
    assert provider is not None
    assert provider.get(f"{NS}authorities") == "${applicationId}.reports"
    code = "".join(path.read_text() for path in sources(APP, ".kt"))
    assert '"$packageName.reports"' in code
    path = ET.parse(APP / "res/xml/report_paths.xml").find("cache-path")
    assert path is not None
    assert f'cacheDir.resolve("{path.get("path", "").rstrip("/")}")' in code


@pytest.mark.slow
def test_resources_link(tmp_path: Path) -> None:
    """Oracle: aapt2 with the framework of Android 10, and the permissions that it reads back."""
    aapt2 = tool("aapt2", "Debian: aapt")
    framework = file_of(
        "/usr/share/android-framework-res/framework-res.apk", "android-framework-res"
    )
    root = manifest_after_merging()
    root.set("package", "dev.tinyvit.edge.app")
    application = root.find("application")
    assert application is not None
    for newer in list(application.iter("uses-native-library")):  # of API 31; aapt2 here is of 29
        application.remove(newer)
    ET.register_namespace("android", NS.strip("{}"))
    manifest = tmp_path / "AndroidManifest.xml"
    ET.ElementTree(root).write(manifest)

    compiled, linked = tmp_path / "resources.zip", tmp_path / "app.apk"
    done = run(aapt2, "compile", "--dir", APP / "res", "-o", compiled)
    assert done.returncode == 0, done.stderr
    options = ("--manifest", manifest, "--min-sdk-version", "26", "--target-sdk-version", "29")
    done = run(aapt2, "link", "-I", framework, *options, "-o", linked, compiled)
    assert done.returncode == 0, done.stderr
    permissions = run(aapt2, "dump", "permissions", linked).stdout
    assert re.findall(r"uses-permission: name='([^']+)'", permissions) == [
        "android.permission.CAMERA"
    ]


def catalog() -> dict[str, dict[str, Any]]:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ANDROID / "gradle/libs.versions.toml").read_text())


def test_versions_agree() -> None:
    """Oracle: the exporter's pins; a runtime promises to read what its own release wrote."""
    versions = catalog()["versions"]
    pins = dict(
        re.findall(r"^([\w-]+)==([\w.]+)", (REPOSITORY / "constraints.txt").read_text(), re.M)
    )
    assert versions["executorch"] == pins["executorch"]
    assert versions["litert"] == pins["ai-edge-litert"]
    tools = json.loads((ANDROID / "tools/package.json").read_text())
    lock = json.loads((ANDROID / "tools/package-lock.json").read_text())
    pinned = tools["devDependencies"]["kotlin-compiler"]
    assert versions["kotlin"] == pinned
    assert lock["packages"]["node_modules/kotlin-compiler"]["version"] == pinned
    build = (ANDROID / "app/build.gradle.kts").read_text()
    assert f'versionName = "{__version__}"' in build


def test_build_files_use_all_of_the_catalog_and_nothing_else() -> None:
    """Oracle: the catalog's entries under the names that Gradle gives them."""
    entries = catalog()
    declared = {
        f"{prefix}{name.replace('-', '.')}"
        for key, prefix in (("libraries", ""), ("plugins", "plugins."))
        for name in entries[key]
    } | {f"versions.{n.replace('-', '.')}" for n in ("compile-sdk", "min-sdk", "target-sdk")}
    files = sources(ANDROID, ".kts")
    used = {
        name.removesuffix(".get")
        for path in files
        for name in re.findall(r"\blibs\.([\w.]+)", path.read_text())
    }
    assert used == declared
    modules = re.findall(r'":([\w-]+)"', (ANDROID / "settings.gradle.kts").read_text())
    built = {path.parent.name for path in files if path.name == "build.gradle.kts"}
    assert built - {"android"} == set(modules)


def test_bundles_are_where_the_app_looks_and_not_in_git() -> None:
    """Oracle: git's own answer."""
    folder = APP / "assets" / "bundles"
    assert git_ignores(folder / "index.json")
    assert git_ignores(folder / "onnx-fp32" / "model.onnx")
    code = (APP / "kotlin/dev/tinyvit/edge/app/AssetBundles.kt").read_text()
    assert f'FOLDER = "{folder.name}"' in code


def test_the_bounds_are_those_of_the_documentation() -> None:
    """Oracle: docs/bundle.md."""
    code = (CORE / "main/kotlin/dev/tinyvit/edge/core/ParityCheck.kt").read_text()
    bounds = {name: float(db) for name, db in re.findall(r"(\w+)\((\d+\.\d+), \w+\)", code)}
    assert bounds == documented_bounds()
