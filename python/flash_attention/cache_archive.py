"""The entries of a cache in one file, and back: `python -m flash_attention cache export FILE`, `cache import FILE`.

The file is a tar archive, not compressed, of the entries' files as they are. Its last member, CONTENTS, lists the size
and the name of each: where it is missing or does not agree, the file was cut or changed, and nothing of it is taken.
Of the archive only names and bytes are used, and both go through the cache's own check (cache/transfer.c): nothing is
unpacked, no path is followed. The same entries give the same file.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flash_attention import _native

CONTENTS = "flash_attention_cache"
ENTRY_LIMIT = 1 << 30  # FA_ENTRY_LIMIT of cache/internal.h: nothing larger is read into memory
CONTENTS_LIMIT = 1 << 26


@dataclass
class Exported:
    """What went into a file."""

    kernels: int = 0
    records: int = 0
    size: int = 0  # bytes of the entries
    damaged: int = 0  # left out


@dataclass
class Imported:
    """What became of the entries of a file."""

    stored: int = 0
    present: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)  # name, and why
    lost: int = 0  # were there, and had to make room for others


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))


def is_for(entry: _native.CacheEntry, target: str) -> bool:
    """Is it of this target ("cuda:sm_90a"), or of this kind of target ("cuda")?"""
    found = dict(part.partition("=")[::2] for part in entry.text.split(";")).get("problem", "").split(" ")[-1]
    return target in (found, found.partition(":")[0])


def export_entries(path: Path, target: str = "") -> Exported:
    """Write all intact entries, or those of a target, to `path`, which is there in full at the end or not at all.

    Raises:
        ValueError: there is nothing to write.
        OSError: the file cannot be written.
    """
    entries = [entry for entry in _native.cache_entries(verify=True) if not target or is_for(entry, target)]
    exported, contents = Exported(), ""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for entry in entries:
                    try:
                        name, content = _native.cache_export_entry(entry.kind, entry.key)
                    except RuntimeError:  # damaged, of another version, or gone since
                        exported.damaged += not entry.valid
                        continue
                    add_member(archive, name, content)
                    contents += f"{len(content)} {name}\n"
                    exported.kernels += entry.kind == "kernel"
                    exported.records += entry.kind == "tuning"
                    exported.size += len(content)
                add_member(archive, CONTENTS, contents.encode())
            if not contents:
                wanted = f" for target {target!r}" if target else ""
                raise ValueError(
                    f"the cache {_native.cache_path()} has no intact entries{wanted}: "
                    "fill it with `python -m flash_attention tune`, or set FLASH_ATTENTION_CACHE_DIR to one that has"
                )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return exported


def read_members(path: Path) -> Iterator[tuple[str, int, bytes | None]]:
    """Name, size and bytes of each member; None instead of the bytes of what cannot be an entry.

    Raises:
        ValueError: the file is not a whole archive.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                limit = CONTENTS_LIMIT if member.name == CONTENTS else ENTRY_LIMIT
                plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                file = archive.extractfile(member) if plain and member.size <= limit else None
                content = file.read() if file else None
                if content is not None and len(content) != member.size:
                    raise tarfile.ReadError("unexpected end of data")
                yield member.name, member.size, content
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} is not a whole file of `cache export` ({error}); nothing of it is imported") from None


def check_whole(path: Path) -> list[tuple[str, str]]:
    """Check the file as a whole, and each entry. Returns what is wrong with entries: their numbers in order, and why.

    Raises:
        ValueError: it was cut or changed.
    """
    listed: str | None = None
    found = ""
    verdicts: list[tuple[str, str]] = []
    for name, size, content in read_members(path):
        if listed is not None:
            raise ValueError(f"{path} goes on after its end ({name!r}); nothing of it is imported")
        if name == CONTENTS:
            listed = (content or b"").decode(errors="replace")
            continue
        found += f"{size} {name}\n"
        if content is None:
            verdicts.append(("refused", "not a file, or too large for an entry"))
        else:
            verdicts.append(_native.cache_import_entry(name, content, store=False))
    if listed is None:
        raise ValueError(
            f"{path} was cut, or is not of `cache export`: its list of contents is missing; nothing of it is imported"
        )
    if listed != found:
        raise ValueError(f"{path} was changed: it does not hold what it lists; nothing of it is imported")
    return verdicts


def import_entries(path: Path) -> Imported:
    """Take what is good and not in the cache yet.

    Raises:
        ValueError: the file is damaged as a whole; then nothing of it is taken.
        RuntimeError: the cache cannot be written.
        OSError: the file cannot be read.
    """
    imported, kept = Imported(), []
    verdicts = check_whole(path)
    for (name, _, content), (result, wrong) in zip(read_members(path), verdicts, strict=False):
        if result == "absent" and content is not None:
            result, wrong = _native.cache_import_entry(name, content, store=True)
        if result == "failed":
            raise RuntimeError(
                f"{name} of {path} is {wrong} (FLASH_ATTENTION_CACHE_DIR is {_native.cache_path()!r}); "
                f"{imported.stored} entries were imported before it"
            )
        if result == "refused":
            imported.refused.append((name, wrong))
            continue
        imported.stored += result == "stored"
        imported.present += result == "present"
        kept.append(name)
    imported.lost = sum(not Path(_native.cache_path(), name).exists() for name in kept)
    return imported
