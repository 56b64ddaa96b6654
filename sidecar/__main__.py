"""`python -m sidecar <role>`: every process of ours starts here, and a frozen bundle has only this entrance."""

import sys
from collections.abc import Sequence

from sidecar.errors import EXIT_BAD_CONFIG, ConfigError

EXIT_USAGE = 2
ROLES = "supervise | serve | run <model-id> | models <command> | status | stop | logs"


def main(argv: Sequence[str] | None = None) -> int:
    """Play the role named first; returns the exit code. A setting that cannot be obeyed is one line and code 78."""
    role, *rest = argv if argv is not None else sys.argv[1:] or [""]
    try:
        return _play(role, rest)
    except ConfigError as error:
        print(f"ml-sidecar: {error.message}", file=sys.stderr)
        return EXIT_BAD_CONFIG


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
            from sidecar.runner.worker import main as main_run

            return main_run(argv)
        case "models":
            from sidecar.catalogue.cli import main_models

            return main_models(argv)
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
