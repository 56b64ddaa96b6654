"""A child process on the event loop; one interface over two files."""

import sys

if sys.platform == "win32":
    from sidecar.inference.child_windows import spawn
else:
    from sidecar.inference.child_posix import spawn

__all__ = ["spawn"]
