"""The handshake object, its schema and its file."""

import dataclasses
import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sidecar.supervisor.handshake import (
    PHASES,
    Handshake,
    HandshakeFile,
    LastExit,
    Process,
    Progress,
    Restarts,
)
from tests.supervisor.harness import run_python

SCHEMA: dict[str, Any] = json.loads(
    (Path(__file__).resolve().parents[2] / "clients" / "handshake.schema.json").read_text(encoding="utf-8")
)


def make(**changes: Any) -> Handshake:
    base = Handshake(
        app_version="0.1.0",
        instance_id="ab" * 16,
        phase="ready",
        supervisor=Process(1, 2.5),
        host="127.0.0.1",
        port=4321,
        base_url="http://127.0.0.1:4321",
        token="cd" * 32,
        restarts=Restarts(0, 600.0),
        log_dir="/tmp/späße",
        updated_at=3.5,
    )
    return dataclasses.replace(base, **changes)


FULL = make(
    server=Process(3, 4.0),
    progress=Progress("minilm", 1, None, "bytes", 2.5, 4.0),
    last_exit=LastExit(None, "SIGKILL", 1.0, 'tail "\n'),
    device="cpu",
    device_reason="no GPU",
)


def test_schema_is_valid_and_names_exactly_our_members() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    names = [field.name for field in dataclasses.fields(Handshake)]
    running, before = (SCHEMA["$defs"][name]["properties"] for name in ("running", "before_supervisor"))
    assert {*SCHEMA["properties"], *running} == {*names, "error", "notice"}
    assert set(before) - {"phase"} == set(running)
    assert SCHEMA["required"] == names
    assert set(SCHEMA["properties"]["phase"]["enum"]) == PHASES


@pytest.mark.parametrize("handshake", [make(), FULL, make(token=None), make(host="::1", base_url="http://[::1]:80")])
def test_round_trip_and_schema(handshake: Handshake) -> None:
    Draft202012Validator(SCHEMA).validate(json.loads(handshake.to_json()))
    assert Handshake.from_json(handshake.to_json()) == handshake
    assert "\n" not in handshake.to_json()


@pytest.mark.parametrize("phase", sorted(PHASES))
def test_every_phase_fits_the_schema(phase: str) -> None:
    Draft202012Validator(SCHEMA).validate(json.loads(make(phase=phase).to_json()))


@pytest.mark.parametrize(
    "changes", [{"phase": "asleep"}, {"port": 0}, {"token": "short"}, {"schema": 2}, {"host": "0.0.0.0"}]
)
def test_schema_refuses(changes: dict[str, Any]) -> None:
    assert not Draft202012Validator(SCHEMA).is_valid(json.loads(make(**changes).to_json()))


def test_members_of_a_later_version_are_ignored() -> None:
    later = {**json.loads(FULL.to_json()), "colour": "blue"}
    assert Handshake.from_json(json.dumps(later)) == FULL


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"schema": 1}', '{"supervisor": 5}', "\xff"])
def test_what_is_no_handshake(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Handshake.from_json(text)
    (tmp_path / "sidecar.json").write_text(text)
    assert HandshakeFile(tmp_path / "sidecar.json").read() is None


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        ({"item": "m", "done": 1, "total": 2, "unit": "B"}, Progress("m", 1, 2, "B")),
        ({"item": "m", "done": 1.5, "unit": "B"}, Progress("m", 1.5, None, "B")),
        ({"item": "m", "done": "1", "total": 2, "unit": "B"}, None),
        (None, None),
        ("half", None),
    ],
)
def test_progress_of_a_server_is_checked(raw: object, parsed: Progress | None) -> None:
    assert Progress.parse(raw) == parsed


def test_file_is_private_and_leaves_no_temporary(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    before = os.umask(0)
    try:
        assert file.write(make())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["sidecar.json"]
    assert file.read() == make()


def test_a_home_whose_name_is_no_text_can_be_told(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    assert file.write(make(log_dir=os.fsdecode(b"/home/caf\xe9/logs")))
    told = file.read()
    assert told is not None and told.log_dir == "/home/caf?/logs"


def test_a_leftover_temporary_of_the_same_pid_is_no_obstacle(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    file.path.with_name(f"sidecar.json.{os.getpid()}.tmp").write_text("half")
    assert file.write(make())
    assert file.read() == make()


def test_token_stays_out_of_a_file_that_others_can_read(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json", holds_private=lambda fd: False)
    assert not file.write(make())
    assert file.read() == make(token=None)
    assert file.write(make(token=None)), "nothing to keep private"


def test_only_our_own_file_is_removed(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    file.write(make())
    file.remove("ef" * 16)
    assert file.path.exists()
    file.remove("ab" * 16)
    assert not file.path.exists()
    file.remove("ab" * 16)


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    file.write(make())
    done = threading.Event()
    bad: list[str] = []

    def read() -> None:
        while not done.is_set():
            if file.read() is None:
                bad.append("half")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        file.write(make(updated_at=float(number), log_dir="/x" * (number * 50)))
    done.set()
    reader.join()
    assert not bad


def test_liveness_is_pid_and_start_time() -> None:
    me = Process.of(os.getpid())
    assert me is not None
    assert me.is_alive()
    assert Process(me.pid, me.start_time + 0.9).is_alive(), "other tools round the start time"
    assert not Process(me.pid, me.start_time - 60).is_alive(), "the pid of another process"
    child = run_python("")
    gone = Process.of(child.pid) or Process(child.pid, 0.0)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not gone.is_alive(), "dead but not reaped"
    child.wait()
    assert not gone.is_alive()


def test_read_live(tmp_path: Path) -> None:
    file = HandshakeFile(tmp_path / "sidecar.json")
    assert file.read_live() is None
    assert file.signature() is None
    file.write(make(supervisor=Process(os.getpid(), 1.0)))
    assert file.read_live() is None
    before = file.signature()
    me = Process.of(os.getpid())
    file.write(make(supervisor=me))
    assert file.read_live() is not None
    assert file.signature() != before
