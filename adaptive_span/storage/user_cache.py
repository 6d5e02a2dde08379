"""Where this user's machine keeps what it can make again: compiled kernels, measurements of the machine."""

import os
from pathlib import Path


def user_cache() -> Path:
    """Return the folder, by the XDG Base Directory Specification. It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adaptive_span"
