"""What a process of ours arranges with the system about itself; one interface over two files."""

import sys

if sys.platform == "win32":
    from sidecar.process_windows import (
        die_with_parent,
        leave_ending_to_parent,
        raise_file_limit,
        usable_cores,
        yield_to_host,
    )
else:
    from sidecar.process_posix import (
        die_with_parent,
        leave_ending_to_parent,
        raise_file_limit,
        usable_cores,
        yield_to_host,
    )

__all__ = ["die_with_parent", "leave_ending_to_parent", "raise_file_limit", "usable_cores", "yield_to_host"]
