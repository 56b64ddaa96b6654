"""The log file and the reading of a server's pipes."""

import os
import threading
from pathlib import Path

import pytest

from sidecar.supervisor.logs import LINE_LIMIT_BYTES, RotatingLog, mask, read_blocks

SECRET = b"5ec2e7" * 10 + b"abcd"


def through_pipe(chunks: list[bytes], secret: bytes | None = SECRET) -> list[bytes]:
    """What `read_blocks` makes of these writes."""
    reader, writer = os.pipe()
    blocks = read_blocks(reader, secret)
    got: list[bytes] = []
    for chunk in chunks:
        os.write(writer, chunk)
    os.close(writer)
    got += blocks
    os.close(reader)
    return got


def files_of(log: RotatingLog) -> list[str]:
    return sorted(path.name for path in log.path.parent.iterdir())


def test_rotation_keeps_the_newest_files_and_every_line_once(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "sidecar.log", max_bytes=1000, files=3)
    for number in range(200):
        log.write(b"line %04d %s\n" % (number, b"." * 30))
    log.close()
    assert files_of(log) == ["sidecar.log", "sidecar.log.1", "sidecar.log.2", "sidecar.log.3"]
    kept = b"".join((tmp_path / f"sidecar.log{end}").read_bytes() for end in (".3", ".2", ".1", "")).splitlines()
    numbers = [int(line.split()[1]) for line in kept]
    assert numbers == list(range(numbers[0], 200))
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())


def test_a_restarted_supervisor_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for text in ("one", "two"):
        log = RotatingLog(tmp_path / "new" / "sidecar.log", max_bytes=10_000, files=2)
        log.note(text)
        log.close()
    lines = (tmp_path / "new" / "sidecar.log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["one", "two"]
    assert lines[0].startswith("20") and lines[0].split()[0].endswith("Z")
    assert (tmp_path / "new" / "sidecar.log").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux's device that is always full")
def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.log"
    path.symlink_to("/dev/full")
    log = RotatingLog(path, max_bytes=10_000, files=2)
    log.write(b"lost\n")
    log.write(b"lost too\n")
    path.unlink()
    log.close()  # space again: here, by another file
    log.write(b"kept\n")
    assert path.read_bytes() == b"[14 bytes of log were lost: the disk was full]\nkept\n"
    log.close()


def test_a_log_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    log = RotatingLog(tmp_path / "logs" / "sidecar.log", max_bytes=10_000, files=2)
    log.note("nowhere")
    log.close()


def test_rotation_that_fails_goes_on_in_the_same_file(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "sidecar.log", max_bytes=20, files=1)
    (tmp_path / "sidecar.log.1").mkdir()
    (tmp_path / "sidecar.log.1" / "in the way").touch()
    for _ in range(4):
        log.write(b"fifteen bytes.\n")
    log.close()
    assert (tmp_path / "sidecar.log").read_bytes() == b"fifteen bytes.\n" * 4


def test_whole_lines_and_a_last_one_without_an_end() -> None:
    blocks = through_pipe([b"one\ntw", b"o\nthr", b"ee"])
    assert b"".join(blocks) == b"one\ntwo\nthree\n"
    assert all(block.endswith(b"\n") for block in blocks)


def test_any_bytes_pass() -> None:
    assert b"".join(through_pipe([b"\x00\xff\xfe\r\n\x1b[31m\n"])) == b"\x00\xff\xfe\r\n\x1b[31m\n"


@pytest.mark.parametrize("cut", [1, 7, 32, 63])
def test_the_secret_is_masked_even_across_reads(cut: int) -> None:
    blocks = through_pipe([b"the token is " + SECRET[:cut], SECRET[cut:] + b", so there\n"])
    assert b"".join(blocks) == b"the token is [token], so there\n"


def test_a_line_without_end_is_cut_but_never_in_the_secret() -> None:
    reader, writer = os.pipe()
    line = b"x" * (LINE_LIMIT_BYTES - 30) + SECRET + b"y" * LINE_LIMIT_BYTES + SECRET[:-1]

    def write() -> None:  # more than a pipe holds
        os.write(writer, line)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    text = b"".join(read_blocks(reader, SECRET))
    thread.join()
    os.close(reader)
    assert SECRET not in text.replace(b"\n", b"")
    assert text.replace(b"\n", b"") == mask(line, SECRET)
    assert len(text.splitlines()) > 1


def test_credentials_of_addresses_are_masked_in_log_and_tail(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.write(b"no proxy http://alice:hush@proxy:3128 \xff\nhalf a line ftp://alice:hu")
        pipe.write(b"sh@host")
    assert b"".join(read_blocks(reading, None)) == b"no proxy http://***@proxy:3128 \xff\nhalf a line ftp://***@host\n"
    os.close(reading)
    log = RotatingLog(tmp_path / "x.log", max_bytes=10_000, files=1)
    log.note("cannot reach http://alice:hush@host")
    log.close()
    assert "hush" not in (tmp_path / "x.log").read_text()
