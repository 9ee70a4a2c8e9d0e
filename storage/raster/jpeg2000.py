"""Whether a JPEG 2000 file is whole: GDAL decodes the tiles that are there and says nothing.

References
----------
ISO/IEC 15444-1, annex I (boxes of a JP2 file) and annex A (markers of a codestream).
"""

import os
from pathlib import Path

from storage.errors import SceneError

_START, _END = b"\xff\x4f", b"\xff\xd9"
"""The markers at the ends of a codestream."""


def check_whole(path: Path) -> None:
    """Refuse a file that ends before its last box, or whose codestream has no end.

    Raises
    ------
    SceneError
        The file is truncated.
    """
    size_bytes, end = path.stat().st_size, 0
    with path.open("rb") as file:
        while end < size_bytes:
            file.seek(end)
            header = file.read(16)
            length = int.from_bytes(header[:4], "big")
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            if length == 0 or header.startswith(_START):  # to the end of the file
                file.seek(-2, os.SEEK_END)
                end = size_bytes if file.read() == _END else size_bytes + 1
            else:
                end += max(length, 8)
    if end > size_bytes:
        raise SceneError(f"{path} is truncated: it has {size_bytes:,} bytes; copy it again")
