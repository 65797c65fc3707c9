"""The compressed file: a header in JSON, blocks of range-coded tokens with a check each, and a digest of the whole.

    magic "pgtext1\\n" | u32 length of the header | header, UTF-8 JSON
    per block: u32 pieces | u32 bytes of their text | u32 CRC-32 of their text | u32 length of the code | code
    SHA-256 of everything before it

Integers are little-endian. The header names the model by the hash of its weights, the tokenizer by the hash of its
file, the settings, the text by length and hash, and the machine; `docs/FORMAT.md` lists its fields. A changed bit
anywhere is refused by the digest before anything is decoded; another model by its hash; a machine that computes
differently by the first block whose text has another check.
"""

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pgolf.errors import PgolfError

MAGIC = b"pgtext1\n"
SUFFIX = ".pgt"
_MAX_HEADER = 1 << 20
_BLOCK = struct.Struct("<IIII")


@dataclass(frozen=True)
class Block:
    pieces: int
    text_bytes: int
    check: int
    """CRC-32 of the text."""
    code: bytes

    @property
    def encoded(self) -> bytes:
        return _BLOCK.pack(self.pieces, self.text_bytes, self.check, len(self.code)) + self.code


def block_of(texts: list[bytes], code: bytes) -> Block:
    whole = b"".join(texts)
    return Block(len(texts), len(whole), zlib.crc32(whole), code)


def write(header: dict[str, Any], blocks: list[Block]) -> bytes:
    """The whole file."""
    text = json.dumps(header, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    body = MAGIC + struct.pack("<I", len(text)) + text + b"".join(block.encoded for block in blocks)
    return body + hashlib.sha256(body).digest()


def read(data: bytes, name: str) -> tuple[dict[str, Any], list[Block]]:
    """Header and blocks of a file; name: for messages. Raises PgolfError for any other file and for a changed one."""
    if not data.startswith(MAGIC):
        raise PgolfError(f"{name} was not written by pgolf compress or prove; name a {SUFFIX} file")
    body, digest = data[:-32], data[-32:]
    if len(data) < len(MAGIC) + 4 + 32 or hashlib.sha256(body).digest() != digest:
        raise PgolfError(
            f"{name} was changed or truncated: its SHA-256 differs from the one at its end; compress the text again"
        )
    (length,) = struct.unpack_from("<I", body, len(MAGIC))
    start = len(MAGIC) + 4
    if length > _MAX_HEADER or start + length > len(body):
        raise PgolfError(f"{name} declares a header of {length:,} bytes: it is damaged")
    try:
        header = json.loads(body[start : start + length])
    except (ValueError, RecursionError) as error:
        raise PgolfError(f"{name} has a damaged header ({error})") from error
    if not isinstance(header, dict) or header.get("format") != 1:
        raise PgolfError(f"{name} has another format than 1; use the version of pgolf that wrote it")
    return header, list(_blocks(body, start + length, name))


def _blocks(body: bytes, at: int, name: str) -> Iterator[Block]:
    while at < len(body):
        if at + _BLOCK.size > len(body):
            raise PgolfError(f"{name} ends inside the head of a block")
        pieces, text_bytes, check, length = _BLOCK.unpack_from(body, at)
        at += _BLOCK.size
        if at + length > len(body):
            raise PgolfError(f"{name} ends inside the code of a block")
        yield Block(pieces, text_bytes, check, body[at : at + length])
        at += length
