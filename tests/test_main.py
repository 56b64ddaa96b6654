"""`python -m sidecar`: role dispatch."""

import pytest

from sidecar.__main__ import EXIT_USAGE, main


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


def test_role_and_flags_reach_the_role(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("SIDECAR_HOME", str(tmp_path))
    assert main(["status", "--json"]) == 3
