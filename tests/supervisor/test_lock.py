"""One instance per run folder."""

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from sidecar.errors import ConfigError
from sidecar.supervisor import lock_windows
from sidecar.supervisor.lock import InstanceLock
from tests.supervisor.harness import run_python, until

HOLD = (
    "import sys, time; from pathlib import Path; from sidecar.supervisor.lock import InstanceLock;"
    "lock = InstanceLock(Path(sys.argv[1])); print(lock.take(), flush=True); time.sleep(60)"
)


def test_another_process_holds_it_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "run" / "sidecar.lock"
    holder = run_python(HOLD, str(path), stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"True\n"
    lock = InstanceLock(path)
    assert not lock.take()
    holder.send_signal(signal.SIGKILL)
    until(lock.take)
    holder.wait()
    holder.stdout.close()
    lock.release()
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_run_folder_open_to_others_is_closed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o755)
    InstanceLock(tmp_path / "run" / "sidecar.lock").release()
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700


def test_an_unusable_run_folder_is_one_line_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match="SIDECAR_HOME"):
        InstanceLock(tmp_path / "run" / "sidecar.lock")


def test_windows_twin() -> None:
    calls: list[tuple[int, int, int]] = []

    def busy(*_: object) -> NoReturn:
        raise PermissionError

    free = SimpleNamespace(LK_NBLCK=2, locking=lambda *call: calls.append(call))
    assert lock_windows.try_lock(7, free)
    assert calls == [(7, 2, 1)]
    assert not lock_windows.try_lock(7, SimpleNamespace(LK_NBLCK=2, locking=busy))
