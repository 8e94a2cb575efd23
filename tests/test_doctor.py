"""What `doctor` says of an environment that lacks something."""

from __future__ import annotations

from pathlib import Path

from tinyvit_edge import doctor


def test_doctor_names_the_python_that_a_target_needs(monkeypatch):
    """Oracle: pyproject.toml; then a package that no Python of today is new enough for."""
    oldest = doctor._OLDEST_PYTHON
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert oldest == {"onnxruntime": (3, 11)}
    assert "onnxruntime>=1.24; python_version >= '3.11'" in project
    monkeypatch.setitem(oldest, "onnxruntime", (3, 99))
    monkeypatch.setattr(
        doctor, "missing_packages", lambda target: {"onnxruntime"} & set(target.requires)
    )
    found = {item["target"]: item for item in doctor.diagnose()["targets"]}
    assert "onnxruntime has no wheel for Python 3." in found["onnx"]["reason"]
    assert found["onnx"]["remedy"] == "use Python 3.99 or newer"
    assert found["tflite"]["available"]
