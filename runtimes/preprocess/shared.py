"""Objects of the caller that several items or threads may share: opened files, and pictures that are not decoded yet.

They are read under a lock, and left as they were found.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from isoform.errors import InputError

_LOCKS = tuple(Lock() for _ in range(64))


def lock_of(source: Any) -> Lock:
    """The lock for an object; unlike objects may share one."""
    return _LOCKS[hash(id(source) >> 4) % len(_LOCKS)]


def is_file(source: Any) -> bool:
    """Whether this is an opened file of bytes, which has `read`."""
    return callable(getattr(source, "read", None)) and not hasattr(source, "encoding")


def content_of(source: Any, name: str) -> bytes:
    """All bytes of an opened file, which is then wound to where it stood. InputError when it gives none."""
    with lock_of(source):
        try:
            winds = source.seekable()
            place = source.tell() if winds else 0
            if winds:
                source.seek(0)
            content = source.read()
            if winds:
                source.seek(place)
        except (AttributeError, OSError, ValueError) as error:
            raise InputError(f"{name} is an opened file that cannot be read ({error}); give its path") from None
    if not isinstance(content, bytes) or not content:
        raise InputError(f"{name} is an opened file without bytes; open it with mode 'rb', or give its path")
    return content
