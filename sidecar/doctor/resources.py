"""What it uses, what there is, and what is missing."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from sidecar import process
from sidecar.catalogue.catalogue import BUILT_IN, Catalogue
from sidecar.catalogue.profiles import Profiles, cure
from sidecar.doctor.client import Client
from sidecar.doctor.finding import Finding, Level
from sidecar.settings import Settings

LOW_DISK_BYTES = 2_000_000_000
NO_DISK_BYTES = 200_000_000
LOW_MEMORY_BYTES = 500_000_000


def resources(client: Client, settings: Settings) -> Iterator[Finding]:
    """Memory, disk, cores, graphics, profiles and models."""
    yield _own_memory(client)
    yield _memory()
    yield from (_disk(folder) for folder in dict.fromkeys([settings.data_dir, settings.cache_dir]))
    cores = process.usable_cores()
    yield Finding("ok", "cores", f"{cores} usable of {psutil.cpu_count()}", "", {"usable": cores})
    yield _graphics(client)
    yield from _profiles(settings)
    yield from _models(client, settings)


def _own_memory(client: Client) -> Finding:
    sizes: dict[str, int] = {}
    try:
        top = psutil.Process(client.handshake.supervisor.pid)
        for one in (top, *top.children(recursive=True)):
            sizes[f"{_role(one)} {one.pid}"] = one.memory_info().rss
    except psutil.Error as error:
        return Finding("warn", "memory of ours", f"cannot be read: {error}")
    parts = ", ".join(f"{name.rsplit(' ', 1)[0]} {size / 1e6:,.0f} MB" for name, size in sizes.items())
    return Finding("ok", "memory of ours", f"{sum(sizes.values()) / 1e6:,.0f} MB: {parts}", "", {"rss_bytes": sizes})


def _role(one: psutil.Process) -> str:
    """supervise, serve, or run with its model."""
    try:
        words = one.cmdline()
    except psutil.Error:
        return "process"
    after = words[words.index("sidecar") + 1 :] if "sidecar" in words else words[1:]
    return " ".join(after[:2]) if after[:1] == ["run"] else (after or ["process"])[0]


def _memory() -> Finding:
    free, total = psutil.virtual_memory().available, psutil.virtual_memory().total
    low = free < LOW_MEMORY_BYTES
    cure = "end other programs, or lower SIDECAR_MEMORY_BUDGET" if low else ""
    detail = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    return Finding("warn" if low else "ok", "memory", detail, cure, {"free_bytes": free, "total_bytes": total})


def _disk(folder: Path) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    level: Level = "fail" if free < NO_DISK_BYTES else "warn" if free < LOW_DISK_BYTES else "ok"
    cure = "" if level == "ok" else "`models rm --unused`, or point SIDECAR_HOME to a larger volume"
    return Finding(level, "disk", f"{free / 1e9:.1f} GB free for {folder}", cure, {"free_bytes": free})


def _graphics(client: Client) -> Finding:
    body = client.call("GET", "/health").json() or {}
    if body.get("gpu_available"):
        return Finding("ok", "graphics", f"{body.get('gpu_name')}; models run on {body.get('device')}")
    return Finding("info", "graphics", f"none is used: {body.get('device_reason')}")


def _profiles(settings: Settings) -> Iterator[Finding]:
    profiles = Profiles.of(settings)
    states = {profile.name: profiles.state(profile.name) for profile in profiles.known()}
    installed = sorted(name for name, state in states.items() if state == "installed")
    yield Finding("ok", "profiles installed", ", ".join(installed), "", {"installed": installed})
    for name, state in states.items():
        if state != "installed":
            level: Level = "info" if state == "absent" else "warn"
            yield Finding(level, f"profile {name}", profiles.reason(name), cure(name))


def _models(client: Client, settings: Settings) -> Iterator[Finding]:
    catalogue = Catalogue.of(settings)
    for fault in catalogue.faults:
        yield Finding("warn", "catalogue", fault.reason)
    rows: list[dict[str, Any]] = (client.call("GET", "/models").json() or {}).get("models", [])
    usable = [row["id"] for row in rows if not row["missing"]]
    yield Finding("ok" if usable else "fail", "models that can answer", ", ".join(usable) or "none")
    for row in rows:
        if row["error"]:
            yield Finding("warn", f"model {row['id']}", row["error"])
        if row["missing"]:
            yield _unusable(row)


def _unusable(row: dict[str, Any]) -> Finding:
    told = "; ".join(missing["reason"] for missing in row["missing"])
    cures = [missing["cure"] for missing in row["missing"]]
    # A download or an entry of the user's own shows that somebody wants the model; the others are only an offer. Where
    # one of the obstacles has no cure, the others' would be in vain.
    curable = all(cures)
    wanted = row["revision"] is not None or not (BUILT_IN / f"{row['id']}.toml").exists()
    level: Level = "warn" if curable and wanted and row["state"] != "absent" else "info"
    return Finding(level, f"model {row['id']}", told, ", then ".join(cures) if curable else "")
