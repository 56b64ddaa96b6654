"""Make the locks: `python installer/profiles/lock.py [PROFILE]…` (needs uv; see README.md).

Pins that a lock already has stay unless `--upgrade` is given.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

# Profile -> its direct requirements, and the lock whose pins it must share.
INPUTS = {
    "base": (REPOSITORY / "requirements.txt", None),
    "dev": (HERE / "dev.in", HERE / "base.lock"),
}
COMPLETE = ["--universal", "--python-version", "3.10", "--generate-hashes", "--only-binary", ":all:"]
PLAIN = ["--no-annotate", "--no-header", "--quiet"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help=f"default: {' '.join(INPUTS)}")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    arguments = parser.parse_args()
    for name in arguments.profiles or INPUTS:
        requirements, constraint = INPUTS[name]
        command = ["uv", "pip", "compile", *COMPLETE, *PLAIN, str(requirements), "-o", str(HERE / f"{name}.lock")]
        command += ["-c", str(constraint)] if constraint else []
        command += ["--upgrade"] if arguments.upgrade else []
        subprocess.run(command, check=True, cwd=REPOSITORY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
