from pathlib import Path

import pytest

from sidecar.errors import ConfigError
from sidecar.settings import ROOT, Settings, environment_names, runner_environment, settings_table


def test_defaults_need_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        for variable in environment_names(name):
            monkeypatch.delenv(variable, raising=False)
    settings = Settings.load()
    assert (settings.host, settings.port, settings.auth) == ("127.0.0.1", 0, "on")
    assert settings.restart_delays_s == (0.0, 1.0, 5.0, 15.0)


def test_common_variables_of_other_programs_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "3000")
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.delenv("SIDECAR_HOME", raising=False)
    settings = Settings.load()
    assert settings.port == 0 and settings.host == "127.0.0.1" and settings.home is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIDECAR_PORT", "77777"),
        ("SIDECAR_PORT", "http"),
        ("SIDECAR_HOST", "0.0.0.0"),
        ("SIDECAR_AUTH", "maybe"),
        ("ALLOWED_ORIGINS", "http://a.example,null"),
        ("ALLOWED_ORIGINS", "*"),
        ("SIDECAR_RESTART_DELAYS", "0,soon"),
        ("SIDECAR_KEEP_ALIVE", "5x"),
        ("SIDECAR_KEEP_ALIVE", "nan"),
    ],
)
def test_a_bad_value_is_named_with_its_variable(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable):
        Settings.load()


NUMBERS = [name for name, field in Settings.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "restart_delays_s"])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "-1", "1e300", "9" * 30, "1e999", "five", "9" * 5000])
def test_a_number_that_does_not_fit_is_refused_with_what_does(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = environment_names(name)[0]
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    message = caught.value.message
    assert f"setting {variable}='{value[:70]}" in message and len(message) < 400
    assert "; it takes " in message and "number" in message and " to " in message.partition("; it takes ")[2]


def test_what_a_number_may_be_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUEST_TIMEOUT", "inf")
    with pytest.raises(ConfigError, match=r"REQUEST_TIMEOUT='inf': .*finite.*; it takes a number over 0 to 604800$"):
        Settings.load()
    monkeypatch.setenv("REQUEST_TIMEOUT", "300")
    monkeypatch.setenv("SIDECAR_RESTART_DELAYS", "0,1,nan")
    with pytest.raises(ConfigError, match=r"SIDECAR_RESTART_DELAYS=.*each from 0 to 604800$"):
        Settings.load()
    monkeypatch.setenv("SIDECAR_RESTART_DELAYS", "0,1")
    monkeypatch.setenv("SIDECAR_KEEP_ALIVE", "inf")
    with pytest.raises(ConfigError, match="SIDECAR_KEEP_ALIVE"):
        Settings.load()


def test_flags_beat_the_environment_and_reach_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDECAR_PORT", "4000")
    settings = Settings.load(port=5000, auth=None, allowed_origins="app://one, app://two")
    assert settings.port == 5000
    environment = settings.as_environment()
    assert environment["SIDECAR_PORT"] == "5000"
    assert environment["ALLOWED_ORIGINS"] == "app://one,app://two"


def test_home_moves_everything(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path / "häuschen")
    for folder in (settings.data_dir, settings.cache_dir, settings.log_dir, settings.run_dir):
        assert folder.is_relative_to(tmp_path / "häuschen")


def test_a_runner_sees_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIDECAR_LAUNCH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "S3_SECRET_ACCESS_KEY", "API_KEY"):
        monkeypatch.setenv(name, "secret")
    assert "secret" not in runner_environment().values()
    assert "PATH" in runner_environment()


def test_the_readme_has_the_table_of_settings() -> None:
    assert settings_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_an_endpoint_with_credentials_is_not_shown() -> None:
    settings = Settings.load(s3_endpoint="http://alice:hush@host")
    assert "hush" not in repr(settings) and settings.as_environment()["S3_ENDPOINT_URL"] == "http://alice:hush@host"
