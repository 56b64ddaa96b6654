"""`python -m sidecar <role>`: every process of ours starts here, and a frozen bundle has only this entrance."""

import os
import sys
from collections.abc import Sequence

from sidecar.errors import EXIT_BAD_CONFIG, EXIT_PART_MISSING, ConfigError

EXIT_USAGE = 2
# What a shell says of a program that wrote into a pipe which nobody reads any more.
EXIT_PIPE = 128 + 13
# Roles whose output is for whoever asks; that of the others is a protocol.
TOLD = ("doctor", "models", "status", "stop", "logs")
ROLES = "supervise | serve | run <model-id> | doctor | models <command> | status | stop | logs"


def main(argv: Sequence[str] | None = None) -> int:
    """Play the role named first; returns the exit code. A setting that cannot be obeyed is one line and code 78."""
    role, *rest = argv if argv is not None else sys.argv[1:] or [""]
    try:
        code = _play(role, rest)
        print(end="", flush=True)  # what is left to say may meet a closed pipe, too
        return code
    except ConfigError as error:
        print(f"ml-sidecar: {error.message}", file=sys.stderr)
        return EXIT_BAD_CONFIG
    except ImportError as error:
        # A runner tells the server, which knows the profile. What is ours is there: a bug, not a part that got lost.
        if role == "run" or error.name is None or error.name.partition(".")[0] == "sidecar":
            raise
        print(f"ml-sidecar: {error}: python3 launcher.py install --repair mends {sys.prefix}", file=sys.stderr)
        return EXIT_PART_MISSING
    except BrokenPipeError:
        if role not in TOLD:
            raise
        # `| head` has seen enough. The interpreter will flush once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def _play(role: str, argv: list[str]) -> int:
    # Imported by role: the supervisor loads no web framework, the runner no server.
    match role:
        case "supervise":
            from sidecar.supervisor.cli import main_supervise

            return main_supervise(argv)
        case "serve":
            from sidecar.server.app import main as main_serve

            return main_serve(argv)
        case "run":
            from sidecar import process

            process.yield_to_host()  # at once: the imports are most of what loading a small model costs
            from sidecar.runner.worker import main as main_run

            return main_run(argv)
        case "doctor":
            from sidecar.doctor.command import main_doctor

            return main_doctor(argv)
        case "models":
            from sidecar.catalogue.cli import main_models
            from sidecar.optimise.command import COMMAND

            return main_models(argv, [COMMAND])
        case "optimise":  # the part of `models optimise` that needs the torch profile
            from sidecar.optimise.worker import main as main_optimise

            return main_optimise(argv)
        case "status":
            from sidecar.supervisor.cli import main_status

            return main_status(argv)
        case "stop":
            from sidecar.supervisor.cli import main_stop

            return main_stop(argv)
        case "logs":
            from sidecar.supervisor.cli import main_logs

            return main_logs(argv)
    print(f"usage: python -m sidecar {ROLES}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
