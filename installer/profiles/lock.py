"""Make the locks: `python installer/profiles/lock.py [PROFILE]…` (needs uv; see README.md).

Pins that a lock already has stay unless `--upgrade` is given. Afterwards every lock is checked to have a wheel of each
package for every Python and platform: uv's own resolution does not notice a release that leaves a Python out.
"""

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

# Profile -> its direct requirements, and the lock whose pins it must share.
INPUTS = {
    "base": (REPOSITORY / "requirements.txt", None),
    "dev": (HERE / "dev.in", HERE / "base.lock"),
    "torch": (HERE / "torch.in", HERE / "base.lock"),
    "cuda": (HERE / "cuda.in", HERE / "base.lock"),
    "bfa": (HERE / "bfa.in", HERE / "torch.lock"),
}
COMPLETE = ["--universal", "--python-version", "3.10", "--generate-hashes", "--only-binary", ":all:"]
PLAIN = ["--no-annotate", "--no-header", "--quiet", "--no-python-downloads"]

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LINUX, LINUX_ARM, MACOS, WINDOWS = PLATFORMS = (
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
    "aarch64-apple-darwin",
    "x86_64-pc-windows-msvc",
)
_MACOS_TARGET = "14.0"  # the oldest that onnxruntime's and PyAV's wheels are for
# (profile, Python, platform) that nothing can be done about: README.md names them.
GAPS = {
    *((name, python, LINUX_ARM) for name in ("base", "dev") for python in ("3.10", "3.12")),
    *(("cuda", python, platform) for python in PYTHONS for platform in (LINUX_ARM, MACOS)),
    ("cuda", "3.10", WINDOWS),
    ("dev", "3.10", MACOS),
    ("dev", "3.11", MACOS),
}

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_ONLY_FOR_CUDA = re.compile(r"(nvidia-|cuda-|triton==)")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=f"default: {' '.join(INPUTS)}")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    names = arguments.profiles or list(INPUTS)
    for name in names:
        requirements, constraint = INPUTS[name]
        command = ["uv", "pip", "compile", *COMPLETE, *PLAIN, str(requirements), "-o", str(HERE / f"{name}.lock")]
        command += ["-c", str(constraint)] if constraint else []
        command += ["--upgrade"] if arguments.upgrade else []
        subprocess.run(command, check=True, cwd=REPOSITORY)
        if name == "torch":
            normal = (HERE / "torch.lock").read_text(encoding="utf-8")
            hashes = (HERE / "torch-cpu.sha256").read_text(encoding="utf-8")
            (HERE / "torch-cpu.lock").write_text(cpu_variant(normal, hashes), encoding="utf-8")
    new = [gap for name in names for gap in find_gaps(HERE / f"{name}.lock") if (name, *gap[:2]) not in GAPS]
    for python, platform, reason in new:
        print(f"no Python {python} on {platform}: {reason}", file=sys.stderr)
    return 1 if new else 0


def find_gaps(lock: Path) -> list[tuple[str, str, str]]:
    """(Python, platform, reason) for each on which some package of the lock has no wheel in the index."""
    found = []
    for python, platform in itertools.product(PYTHONS, PLATFORMS):
        with tempfile.TemporaryDirectory() as nowhere:
            install = ["uv", "pip", "install", "--dry-run", "--quiet", "--target", nowhere]
            where = ["--python-version", python, "--python-platform", platform]
            complete = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(lock)]
            env = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": _MACOS_TARGET}
            result = subprocess.run([*install, *where, *complete], env=env, capture_output=True, encoding="utf-8")
        if result.returncode:
            found.append((python, platform, " ".join(result.stderr.split())))
    return found


def cpu_variant(normal: str, hashes: str) -> str:
    """`normal` with PyTorch's own CPU wheels, whose hashes are given in sha256sum's format. Raises ValueError.

    They are named by address: a further index would be asked for every package, by each of the installers' many retries
    where it cannot be reached.
    """
    version = re.search(r"^torch==([\w.]+)", normal, re.MULTILINE)
    if version is None:
        raise ValueError("torch.lock has no torch")
    torch = []
    for digest, wheel in (line.split() for line in hashes.splitlines()):
        parts = re.fullmatch(r"torch-([\w.]+)\+cpu-cp3(\d+)-cp3\d+-manylinux_\d+_\d+_(\w+)\.whl", wheel)
        if parts is None or parts[1] != version[1]:
            raise ValueError(f"{wheel} is not of torch {version[1]}: bring that one's hashes, or pin torch to this one")
        marker = f"python_version == '3.{parts[2]}' and platform_machine == '{parts[3]}'"
        torch.append(f"torch @ {CPU_INDEX}/{quote(wheel)} ; {marker} \\\n    --hash=sha256:{digest}\n")
    entries = re.split(r"^(?=\S)", normal, flags=re.MULTILINE)
    entries = [entry for entry in entries if not _ONLY_FOR_CUDA.match(entry)]
    return "".join("".join(torch) if entry.startswith("torch==") else entry for entry in entries)


if __name__ == "__main__":
    sys.exit(main())
