"""What a process of ours arranges with the system about itself; one interface over two files."""

import sys

if sys.platform == "win32":
    from sidecar.process_windows import (
        ENVIRONMENT_PYTHON,
        die_with_parent,
        end_tree,
        leave_ending_to_parent,
        limit_memory,
        raise_file_limit,
        readable_by_child,
        usable_cores,
        yield_to_host,
    )
else:
    from sidecar.process_posix import (
        ENVIRONMENT_PYTHON,
        die_with_parent,
        end_tree,
        leave_ending_to_parent,
        limit_memory,
        raise_file_limit,
        readable_by_child,
        usable_cores,
        yield_to_host,
    )

__all__ = [
    "ENVIRONMENT_PYTHON",
    "die_with_parent",
    "end_tree",
    "leave_ending_to_parent",
    "limit_memory",
    "raise_file_limit",
    "readable_by_child",
    "usable_cores",
    "yield_to_host",
]
