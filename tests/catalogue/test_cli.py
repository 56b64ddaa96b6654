"""`python -m sidecar models …` as people and hosts run it."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.catalogue.conftest import Terminal, random_bytes
from tests.hub import Fault, Hub
from tests.product import until

FILES = 'files = [{ path = "model.onnx" }, { path = "config.json" }]'


@pytest.fixture
def tiny(terminal: Terminal, publish: Callable[..., str]) -> str:
    """A published model that the user's catalogue knows as `tiny`; its commit."""
    terminal.add("acme/tiny", more=FILES)
    return publish()


def test_pull_list_verify_and_rm(terminal: Terminal, tiny: str) -> None:
    before = {row["id"]: row for row in json.loads(terminal.run("list", "--json").stdout)}
    assert before["tiny"]["state"] == "absent" and not before["tiny"]["usable"]
    assert before["minilm"]["usable"] and before["minilm"]["state"] == "complete"
    pulled = terminal.run("pull", "tiny")
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip().removeprefix("tiny: "))
    assert folder.name == tiny and "tiny: downloading 100% 0.3 MB of 0.3 MB" in pulled.stderr
    after = {row["id"]: row for row in json.loads(terminal.run("list", "--json").stdout)}
    assert after["tiny"]["state"] == "complete" and after["tiny"]["usable"] and after["tiny"]["size"] == 300_008
    table = terminal.run("list").stdout.splitlines()
    assert table[0].split()[:2] == ["ID", "CAPABILITIES"]
    assert any(line.startswith("tiny ") and " yes " in line for line in table)
    assert terminal.run("verify", "tiny").stdout == "tiny: whole\n"
    (folder / "model.onnx").write_bytes(random_bytes(300_000, 9))
    damaged = terminal.run("verify")
    assert damaged.returncode == 1
    assert "tiny: model.onnx: its content has changed" in damaged.stdout and "`models pull tiny`" in damaged.stdout
    assert "minilm: whole" in damaged.stdout
    assert not (folder / "model.onnx").exists(), "what is wrong is not left to be loaded"
    assert terminal.run("pull", "tiny").returncode == 0
    removed = terminal.run("rm", "tiny")
    assert removed.stdout == "tiny: 0.3 MB freed\n" and not folder.exists()


def test_entries_that_were_left_out_are_told(terminal: Terminal, tiny: str) -> None:
    folder = terminal.home / "catalogue"
    (folder / "tiny2.toml").write_text((folder / "tiny.toml").read_text())
    (folder / "typo.toml").write_text(
        (folder / "tiny.toml").read_text().replace("emotion", "emotoin").replace('"tiny"', '"typo"')
    )
    for words in (["list"], ["list", "--json"]):
        listed = terminal.run(*words)
        assert listed.returncode == 0 and "minilm" in listed.stdout
        assert f"{folder}/tiny2.toml: id: 'tiny' is that of {folder}/tiny.toml" in listed.stderr
        assert f"{folder}/typo.toml: capabilities: 'emotoin' is none of align, " in listed.stderr
    why = terminal.run("why", "tiny")
    assert why.returncode == 0 and "tiny2.toml" in why.stderr and "typo.toml" not in why.stderr


@pytest.mark.parametrize("model", ["gpt2", "smollm2-135m-instruct", "wav2vec-vm", "nla-qwen2.5-7b-l20-av"])
def test_nobody_is_offered_to_fetch_what_nothing_could_run(terminal: Terminal, model: str) -> None:
    rows = {row["id"]: row for row in json.loads(terminal.run("list", "--json").stdout)}
    [obstacle] = rows[model]["obstacles"]
    assert obstacle["kind"] == "runtime" and "no runtime for it in this version" in obstacle["reason"]
    assert not obstacle["cure"] and not rows[model]["usable"]
    assert "pull" not in terminal.run("why", model).stdout
    [line] = [line for line in terminal.run("list").stdout.splitlines() if line.startswith(f"{model} ")]
    assert "  no runtime  " in line
    pulled = terminal.run("pull", model)
    assert pulled.returncode == 1 and "no runtime for it in this version" in pulled.stderr


def test_why_tells_what_stands_in_the_way(terminal: Terminal, tiny: str) -> None:
    missing = terminal.run("why", "tiny").stdout
    assert "cannot answer (files): its files are not downloaded; cure: python3 launcher.py models pull tiny" in missing
    assert "emotion: minilm (preference 10) answers; without the obstacles above it would be this one" in missing
    terminal.run("pull", "tiny")
    assert "emotion: it answers; of 2 usable it has the highest preference (100)" in terminal.run("why", "tiny").stdout
    assert "emotion: tiny (preference 100) answers" in terminal.run("why", "minilm").stdout
    blocked = terminal.run("why", "distilroberta-emotion").stdout
    for part in ("(profile): the profile 'torch' (", "--accept-licence --allow-pickle"):
        assert part in blocked
    assert (
        "(runtime): there is no runtime for it in this version (fish)" in terminal.run("why", "fish-speech-1.5").stdout
    )
    unknown = terminal.run("why", "nothing")
    assert unknown.returncode == 1 and "no model 'nothing'" in unknown.stderr


def test_events_for_programs(terminal: Terminal, tiny: str, hub: Hub) -> None:
    hub.bytes_per_s = 400_000
    lines = [json.loads(line) for line in terminal.run("pull", "tiny", "--events").stdout.splitlines()]
    assert {line["event"] for line in lines} == {"progress"}
    assert set(lines[-1]) == {"event", "item", "done", "total", "rate", "eta_s", "state", "received"}
    assert lines[-1]["done"] == lines[-1]["total"] == 300_008


def test_a_killed_pull_goes_on_where_it_ended(terminal: Terminal, tiny: str, hub: Hub) -> None:
    hub.choose = lambda asked: Fault("stall", 150_000, 30.0) if asked.path.endswith(".onnx") else None
    process = terminal.start("pull", "tiny")
    part = terminal.home / "cache" / "models" / "tiny" / tiny / "model.onnx.part"
    until(lambda: part.exists() and part.stat().st_size == 150_000, "half of the file")
    process.kill()
    process.communicate()
    hub.choose = None
    assert terminal.run("pull", "tiny").returncode == 0
    assert hub.sent["model.onnx"] == 300_000, "no byte came twice"


def test_ctrl_c_ends_a_pull_and_keeps_the_part(terminal: Terminal, tiny: str, hub: Hub) -> None:
    hub.bytes_per_s = 30_000
    process = terminal.start("pull", "tiny")
    part = terminal.home / "cache" / "models" / "tiny" / tiny / "model.onnx.part"
    until(lambda: part.exists() and part.stat().st_size > 20_000, "some bytes")
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "model 'tiny': cancelled; what has arrived is kept" in message
    assert part.stat().st_size > 20_000


def test_two_processes_share_one_download(terminal: Terminal, tiny: str, hub: Hub) -> None:
    hub.bytes_per_s = 300_000
    processes = [terminal.start("pull", "tiny") for _ in range(2)]
    outputs = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert hub.sent["model.onnx"] == 300_000


def test_export_and_import_without_the_network(terminal: Terminal, tiny: str, hub: Hub, tmp_path: Path) -> None:
    assert terminal.run("export", "tiny", "--to", str(tmp_path / "usb")).returncode == 1, "it is not here yet"
    terminal.run("pull", "tiny")
    assert terminal.run("export", "tiny", "--to", str(tmp_path / "usb")).returncode == 0
    other = Terminal(tmp_path / "other home", hub)
    other.add("acme/tiny", more=FILES)
    asked = len(hub.asked)
    done = other.run("import", str(tmp_path / "usb"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"tiny: {other.home / 'cache' / 'models' / 'tiny' / tiny}"
    assert other.run("verify", "tiny").stdout == "tiny: whole\n" and len(hub.asked) == asked
    assert "it answers" in other.run("why", "tiny").stdout
    shutil.rmtree(other.home / "cache")
    (tmp_path / "usb" / "tiny" / "model.onnx").write_bytes(random_bytes(300_000, 3))
    wrong = other.run("import", str(tmp_path / "usb"))
    assert wrong.returncode == 1 and "is not the expected file" in wrong.stderr
    assert not list((other.home / "cache").rglob("model.onnx*"))


def test_a_plain_folder_is_imported_under_the_id_it_is_given(terminal: Terminal, tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert "it has no sidecar-model.json" in terminal.run("import", str(folder)).stderr
    assert "model.onnx is missing" in terminal.run("import", str(folder), "--id", "tiny").stderr
    (folder / "model.onnx").write_bytes(b"weights")
    assert terminal.run("import", str(folder), "--id", "tiny").returncode == 0
    assert terminal.run("verify", "tiny").stdout == "tiny: whole\n"


def test_a_folder_of_another_hub_client_is_imported_by_the_patterns(
    terminal: Terminal, hub: Hub, tmp_path: Path
) -> None:
    hub.add("acme/tiny", {"model.onnx": b"x"})
    more = 'files = [{ path = "model.onnx" }]'
    terminal.add("acme/tiny", source='include = ["*.json", "voices/*"]', more=more)
    folder = tmp_path / "plain"
    names = ("model.onnx", "config.json", "voices/a.txt", "README.md", ".cache/huggingface/download/config.json")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    done = terminal.run("import", str(folder), "--id", "tiny", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    here = Path(done.stdout.strip().removeprefix("tiny: "))
    assert {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()} == set(names[:3])
    assert terminal.run("verify", "tiny").stdout == "tiny: whole\n" and not hub.asked
    (folder / "config.json").unlink()
    (folder / "voices" / "a.txt").unlink()
    terminal.run("rm", "tiny", "--forget")
    empty = terminal.run("import", str(folder), "--id", "tiny")
    assert empty.returncode == 1 and f"{folder} has no file like *.json, voices/*" in empty.stderr
    nowhere = terminal.run("import", str(tmp_path / "nowhere"), "--id", "tiny")
    assert nowhere.returncode == 1 and "nowhere is no folder" in nowhere.stderr


def test_what_nothing_could_run_is_not_imported(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "plain" / name).write_text("{}")
    refused = terminal.run("import", str(tmp_path / "plain"), "--id", "gpt2")
    assert refused.returncode == 1 and "no runtime for it in this version" in refused.stderr
    assert not (terminal.home / "cache").exists()


def test_a_typing_error_in_an_entry_costs_no_weights(terminal: Terminal, tiny: str) -> None:
    terminal.run("pull", "tiny")
    entry = terminal.home / "catalogue" / "tiny.toml"
    text = entry.read_text()
    entry.write_text(text.replace("emotion", "emotoin"))
    assert terminal.run("rm", "--unused").stdout == "0.0 MB freed\n"
    entry.write_text(text)
    assert terminal.run("verify", "tiny").stdout == "tiny: whole\n"
    entry.unlink()
    assert "0.3 MB freed" in terminal.run("rm", "--unused").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_ctrl_c_ends_what_reads_large_files(terminal: Terminal, tiny: str) -> None:
    folder = Path(terminal.run("pull", "tiny").stdout.strip().removeprefix("tiny: "))
    os.truncate(folder / "model.onnx", 60_000_000_000)
    process = terminal.start("verify", "tiny")
    assert process.stderr is not None
    assert process.stderr.readline().startswith("tiny: verifying")
    process.send_signal(signal.SIGINT)
    try:
        _, message = process.communicate(timeout=20)
    finally:
        process.kill()  # it would read for minutes, beside all other tests
    assert process.returncode == 130 and message.endswith("ml-sidecar: stopped\n")
    assert (folder / "model.onnx").exists()


@pytest.mark.parametrize(
    ("source", "environment", "named"),
    [
        (f'revision = "{"0" * 40}"', {}, ["acme/tiny", "no such revision", "correct `source`"]),
        ("", {"HF_HUB_OFFLINE": "1"}, ["offline mode is on", "unset HF_HUB_OFFLINE", "models import"]),
        ("", {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["no connection", "check the connection", "models import"]),
        ("", {"HTTP_PROXY": "http://127.0.0.1:9"}, ["no connection", "proxies"]),
        ("", {"HF_ENDPOINT": "hub.example"}, ["HF_ENDPOINT is no http", "unset it"]),
        ("", {"HF_ENDPOINT": ""}, ["HF_ENDPOINT is no http", "unset it"]),
    ],
)
def test_a_failed_pull_says_model_cause_and_cure_in_one_line(
    source: str, environment: dict[str, str], named: list[str], terminal: Terminal, tiny: str
) -> None:
    terminal.add("acme/tiny", source=source, more=FILES)
    failed = terminal.run("pull", "tiny", **environment)
    message = failed.stderr.splitlines()[-1]
    assert failed.returncode == 1 and message.startswith("ml-sidecar: model 'tiny': ")
    for part in named:
        assert part in message
    assert "it answers" in terminal.run("why", "minilm", **environment).stdout


def test_a_proxy_is_used(terminal: Terminal, tiny: str, hub: Hub) -> None:
    pulled = terminal.run("pull", "tiny", HF_ENDPOINT="http://hub.invalid", HTTP_PROXY=hub.url)
    assert pulled.returncode == 0, pulled.stderr
    assert "hub.invalid" in {asked.host for asked in hub.asked}


def test_certificates_are_those_of_the_system(terminal: Terminal, tmp_path: Path) -> None:
    certificate, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout {key} -out {certificate} -subj /CN=hub"
    names = "subjectAltName=IP:127.0.0.1,DNS:localhost"
    subprocess.run([*make.split(), "-addext", names], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    terminal.add("acme/tiny", more='files = [{ path = "model.onnx" }]')
    with Hub(tls=context) as hub:
        hub.add("acme/tiny", {"model.onnx": random_bytes(3_000_000)})
        hub.faults = [Fault("cut", 1_000_000)]
        strange = terminal.run("pull", "tiny", HF_ENDPOINT=hub.url)
        assert strange.returncode == 1 and "CERTIFICATE_VERIFY_FAILED" in strange.stderr
        trusted = terminal.run("pull", "tiny", HF_ENDPOINT=hub.url, SSL_CERT_FILE=certificate)
        assert trusted.returncode == 0, trusted.stderr
        assert hub.total_sent() == 3_000_000 and not hub.faults


def test_a_wrong_hash_is_reported(terminal: Terminal, publish: Callable[..., str]) -> None:
    publish()
    terminal.add("acme/tiny", more=f'files = [{{ path = "model.onnx", sha256 = "{"0" * 64}" }}]')
    failed = terminal.run("pull", "tiny")
    assert failed.returncode == 1
    assert "model 'tiny': model.onnx of acme/tiny@" in failed.stderr and "nothing was fetched" in failed.stderr


def mounted(terminal: Terminal, options: str, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script with the home on a tmpfs of its own."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f"mkdir -p $SIDECAR_HOME/cache && mount -t tmpfs -o {options} tmpfs $SIDECAR_HOME/cache && {script}"
    python = {"MODELS": f"{sys.executable} -m sidecar models"}
    command = ["unshare", *own, "--mount", "sh", "-c", mount]
    return subprocess.run(command, env=terminal.environment | python, capture_output=True, text=True, timeout=60)


def needs_mounts() -> None:
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    test = ["unshare", *own, "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if sys.platform != "linux" or subprocess.run(test, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs Linux with user namespaces")


def test_a_disk_too_small_is_noticed_before_a_byte_is_fetched(
    terminal: Terminal, hub: Hub, publish: Callable[..., str]
) -> None:
    needs_mounts()
    publish(model_onnx=random_bytes(20_000_000))
    terminal.add("acme/tiny", more='files = [{ path = "model.onnx" }]')
    done = mounted(terminal, "size=16m", "$MODELS pull tiny; $MODELS why minilm")
    assert (
        "model 'tiny': no room on the volume of" in done.stderr
        and "needs 20 MB more and 17 MB to spare, 17 MB free" in done.stderr
    )
    assert "free some space there" in done.stderr
    assert hub.total_sent() == 0
    assert "it answers" in done.stdout, "the embedded model goes on answering"


def test_a_disk_that_fills_up_on_the_way_keeps_what_has_arrived(
    terminal: Terminal, hub: Hub, publish: Callable[..., str]
) -> None:
    needs_mounts()
    publish(model_onnx=random_bytes(20_000_000))
    hub.bytes_per_s = 20_000_000
    terminal.add("acme/tiny", more='files = [{ path = "model.onnx" }]')
    script = (
        "part=$SIDECAR_HOME/cache/models/tiny/*/model.onnx.part; "
        "(until [ -e $part ]; do sleep 0.02; done; dd if=/dev/zero of=$SIDECAR_HOME/cache/other bs=1M) 2>/dev/null & "
        "$MODELS pull tiny; echo code $?; wait; ls $part; rm $SIDECAR_HOME/cache/other; $MODELS pull tiny"
    )
    done = mounted(terminal, "size=40m", script)
    assert "code 1" in done.stdout and "model 'tiny': no room on the volume" in done.stderr, done.stderr
    assert "model.onnx.part\n" in done.stdout
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("tiny: ")
    assert hub.total_sent() < 22_000_000, "the second pull went on"


def test_a_cache_that_cannot_be_written_is_named(terminal: Terminal, tiny: str, hub: Hub) -> None:
    needs_mounts()
    done = mounted(terminal, "ro", "$MODELS pull tiny; $MODELS list")
    assert "model 'tiny': the cache folder" in done.stderr and "cannot be written" in done.stderr
    assert "SIDECAR_HOME" in done.stderr and hub.total_sent() == 0
    assert "minilm" in done.stdout


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_ENDPOINT": "http://alice:hush@127.0.0.1:9"},
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HTTP_PROXY": "foo://alice:hush@127.0.0.1:9"},
        {"S3_ENDPOINT_URL": "http://alice:hush@127.0.0.1:9", "SIDECAR_BACKCHANNEL_MODEL": "s3://bucket/x"},
        {"S3_ENDPOINT_URL": "alice:hush@127.0.0.1:9", "SIDECAR_BACKCHANNEL_MODEL": "s3://bucket/x"},
        {"SIDECAR_BACKCHANNEL_MODEL": "http://alice:hush@127.0.0.1:9"},
    ],
)
def test_no_error_shows_whom_an_address_logs_in(terminal: Terminal, tiny: str, environment: dict[str, str]) -> None:
    model = "distilbert-onnx" if "SIDECAR_BACKCHANNEL_MODEL" in environment else "tiny"
    refused = terminal.run("pull", model, **environment)
    said = refused.stdout + refused.stderr
    assert refused.returncode == 1 and "Traceback" not in said and "ml-sidecar: " in said
    assert "hush" not in said and "alice:" not in said
