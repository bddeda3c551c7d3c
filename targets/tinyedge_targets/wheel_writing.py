"""Writes wheels: the same files give the same bytes, whole or not at all."""

from __future__ import annotations

import base64
import errno
import hashlib
import re
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path

from tinyedge.errors import DiskSpaceError, OutputError

# The oldest time a zip file can hold: a wheel's content must not depend on when it was made.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


def write_wheel(path: Path, info: str, files: Mapping[str, bytes]) -> Path:
    """Writes `files` and their RECORD, which goes into the folder `info`, as the wheel `path`; the same files, the same bytes.

    Under a temporary name first, then renamed. Raises DiskSpaceError, OutputError.
    """
    record = f"{info}/RECORD"
    lines = [f"{_csv(name)},sha256={record_digest(content)},{len(content)}\n" for name, content in sorted(files.items())]
    contents = dict(files) | {record: "".join([*lines, f"{record},,\n"]).encode()}
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            # The package first and its metadata last, as the format's specification recommends.
            for name in sorted(contents, key=lambda name: (".dist-info/" in name, name)):
                entry = zipfile.ZipInfo(name, _ZIP_TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o100755 if name.endswith((".so", ".dylib")) else 0o100644) << 16
                archive.writestr(entry, contents[name])
        new.replace(path)
        return path
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskSpaceError(f"the disk of {path.parent} became full while {path.name} was written") from error
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error
    finally:
        new.unlink(missing_ok=True)


def _csv(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if re.search(r'[",\r\n]', name) else name


def record_digest(content: bytes) -> str:
    """The SHA-256 as RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
