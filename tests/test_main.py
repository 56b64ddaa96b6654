"""`python -m sidecar`: role dispatch."""

import pytest

from sidecar.__main__ import EXIT_USAGE, main
from sidecar.errors import EXIT_PART_MISSING


@pytest.mark.parametrize("argv", [["dance"], [""], ["--help"]])
def test_an_unknown_role_is_answered_with_the_roles(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == EXIT_USAGE
    assert "supervise | serve | run" in capsys.readouterr().err


def test_a_bad_setting_is_one_line_and_code_78(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDECAR_PROBE_INTERVAL", "often")
    assert main(["supervise"]) == 78
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "SIDECAR_PROBE_INTERVAL='often'" in message


@pytest.mark.parametrize("role", ["supervise", "serve", "models", "doctor"])
def test_a_package_that_is_gone_is_one_line_with_the_cure(
    role: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_it(*_: object) -> int:
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    monkeypatch.setattr("sidecar.__main__._play", import_it)
    assert main([role]) == EXIT_PART_MISSING
    message = capsys.readouterr().err
    assert "No module named 'uvicorn'" in message and "launcher.py install --repair" in message
    assert message.count("\n") == 1


def test_a_module_of_ours_that_cannot_be_imported_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_it(*_: object) -> int:
        raise ImportError("cannot import name 'x'", name="sidecar.settings")

    monkeypatch.setattr("sidecar.__main__._play", import_it)
    with pytest.raises(ImportError):
        main(["serve"])


def test_role_and_flags_reach_the_role(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SIDECAR_HOME", str(tmp_path))
    assert main(["status", "--json"]) == 3
