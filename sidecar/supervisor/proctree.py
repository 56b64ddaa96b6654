"""The process tree of this operating system. `proctree_posix` and `proctree_windows` have one interface."""

import sys

if sys.platform == "win32":
    from sidecar.supervisor.proctree_windows import (
        HANGUP_SIGNALS,
        MAX_WAIT_S,
        STOP_SIGNALS,
        Tree,
        exit_evidence,
        holds_private,
        prepare_listener,
    )
else:
    from sidecar.supervisor.proctree_posix import (
        HANGUP_SIGNALS,
        MAX_WAIT_S,
        STOP_SIGNALS,
        Tree,
        exit_evidence,
        holds_private,
        prepare_listener,
    )

__all__ = [
    "HANGUP_SIGNALS",
    "MAX_WAIT_S",
    "STOP_SIGNALS",
    "Tree",
    "exit_evidence",
    "holds_private",
    "prepare_listener",
]
