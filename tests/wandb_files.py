"""What a run left in its .wandb file: LevelDB's log format (32 KiB blocks) around wandb's protobuf
records.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

BLOCK, HEADER = (
    32768,
    7,
)  # LevelDB log: every record fragment has checksum (4), length (2), type (1)
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> Iterator[Record]:
    """All records, in order."""
    data = file.read_bytes()
    position, collected = HEADER, b""  # wandb's own header takes the first seven bytes
    while position + HEADER <= len(data):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + HEADER])
        collected += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(collected)
            collected = b""


def logged(file: Path) -> list[dict[str, Any]]:
    """What was logged, a row a call."""
    return [
        {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records(file)
        if record.HasField("history")
    ]
