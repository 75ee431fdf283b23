"""The C API of runtime/flash_attention.h for Python: what the command line and tests ask of the library.

Calls of attention do not come this way; they go through the operators that the library registers with PyTorch.
Every function raises what its C status stands for: ValueError, TypeError, NotImplementedError, MemoryError, or
RuntimeError with the library's message.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flash_attention import library

OPS = {"forward": 0, "backward": 1}
DTYPES = {"fp32": 0, "fp16": 1, "bf16": 2}
PRECISIONS = {"full": 0, "reduced": 1}
DEVICE_TYPES = {"cpu": 0, "cuda": 1}
MESSAGE_SIZE = 4096
TARGET_LENGTH = 32
STATUS_ERRORS = {1: ValueError, 2: TypeError, 3: NotImplementedError, 4: MemoryError}


class Problem(ctypes.Structure):
    """fa_problem: what is computed."""

    _fields_ = (
        ("op", ctypes.c_int),
        ("dtype", ctypes.c_int),
        ("precision", ctypes.c_int),
        ("head_dim", ctypes.c_int),
        ("head_dim_v", ctypes.c_int),
        ("is_causal", ctypes.c_bool),
        ("deterministic", ctypes.c_bool),
        ("target", ctypes.c_char * TARGET_LENGTH),
    )


class CompiledStruct(ctypes.Structure):
    """fa_compiled."""

    _fields_ = (
        ("image", ctypes.c_void_p),
        ("image_length", ctypes.c_size_t),
        ("seconds", ctypes.c_double),
        ("log", ctypes.c_void_p),
        ("registers", ctypes.c_int),
        ("spill_bytes", ctypes.c_int),
        ("shared_bytes", ctypes.c_int),
        ("compiler", ctypes.c_char * 512),
        ("command", ctypes.c_char * 2048),
    )


COUNTERS = (
    "compilations",
    "compile_failures",
    "tunings",
    "cache_hits",
    "cache_misses",
    "kernels_loaded",
    "launches",
    "unrecorded",
)

# fa_cache_import_result, in its order.
IMPORT_RESULTS = ("stored", "present", "absent", "refused", "failed")
ENTRY_NAME_SIZE = 64


class Statistics(ctypes.Structure):
    """fa_statistics."""

    _fields_ = tuple((name, ctypes.c_int64) for name in COUNTERS)


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled outside of the cache."""

    image: bytes  # shared object or cubin
    seconds: float
    log: str  # the compiler's messages
    registers: int  # of a thread; 0 for a CPU's kernel
    spill_bytes: int  # stored and loaded by a thread
    shared_bytes: int  # static, of a block
    compiler: str  # identity and version
    command: str  # how it was run


@functools.cache
def functions() -> ctypes.CDLL:
    """The library with the types of its functions filled in."""
    lib = library.load()
    text, message, problem = ctypes.POINTER(ctypes.c_void_p), ctypes.c_char_p, ctypes.POINTER(Problem)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "fa_free": (None, [ctypes.c_void_p]),
        "fa_device_target": (ctypes.c_int, [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, message]),
        "fa_source": (ctypes.c_int, [problem, message, text, ctypes.c_char_p, ctypes.c_size_t, message]),
        "fa_compile": (ctypes.c_int, [problem, message, ctypes.POINTER(CompiledStruct), message]),
        "fa_expand": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_char_p, text, message]),
        "fa_compile_source": (ctypes.c_int, [*[ctypes.c_char_p] * 3, ctypes.POINTER(CompiledStruct), message]),
        "fa_list_configs": (ctypes.c_int, [problem, text, message]),
        "fa_info": (ctypes.c_int, [text]),
        "fa_get_statistics": (None, [ctypes.POINTER(Statistics)]),
        "fa_set_autotune": (ctypes.c_int, [message, message]),
        "fa_last_config": (None, [ctypes.c_char_p, ctypes.c_size_t]),
        "fa_cache_report": (ctypes.c_int, [ctypes.c_bool, text, message]),
        "fa_cache_remove_all": (ctypes.c_int, [ctypes.POINTER(ctypes.c_int64), message]),
        "fa_cache_export_entry": (
            ctypes.c_int,
            [*[ctypes.c_char_p] * 3, text, ctypes.POINTER(ctypes.c_size_t), message],
        ),
        "fa_cache_import_entry": (
            ctypes.c_int,
            [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_bool, ctypes.POINTER(ctypes.c_int), message],
        ),
        "fa_cache_path": (ctypes.c_char_p, []),
        "fa_template_dir": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def call(name: str, *arguments: Any) -> None:
    """Call a function whose last argument is a message buffer; raise what its status stands for."""
    message = ctypes.create_string_buffer(MESSAGE_SIZE)
    status = getattr(functions(), name)(*arguments, message)
    if status != 0:
        raise STATUS_ERRORS.get(status, RuntimeError)(decode(message.value) or f"{name} failed with status {status}")


def decode(text: bytes | None) -> str:
    return (text or b"").decode(errors="replace")


def take_text(pointer: ctypes.c_void_p) -> str:
    """Copy malloc'ed text and free it."""
    text = decode(ctypes.string_at(pointer.value)) if pointer.value else ""
    functions().fa_free(pointer)
    return text


def problem(
    op: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int,
    is_causal: bool,
    target: str,
    deterministic: bool = False,
    precision: str = "full",
) -> Problem:
    """A problem, not yet checked; `target` is "cpu:avx512", "cuda:sm_80", ..."""
    name = target.encode()
    if len(name) >= TARGET_LENGTH:
        raise ValueError(f"target is {target!r}; it must be shorter than {TARGET_LENGTH} characters")
    return Problem(OPS[op], DTYPES[dtype], PRECISIONS[precision], head_dim, head_dim_v, is_causal, deterministic, name)


def device_target(device_type: str, index: int = 0) -> str:
    """Target of a device here and now: "cpu:avx512"."""
    target = ctypes.create_string_buffer(TARGET_LENGTH)
    call("fa_device_target", DEVICE_TYPES[device_type], index, target)
    return decode(target.value)


def source(of: Problem, config: str = "") -> tuple[str, str]:
    """Generated source, and the config that it is for; "k=v,..." changes items of the best guess."""
    text, used = ctypes.c_void_p(), ctypes.create_string_buffer(1024)
    call("fa_source", ctypes.byref(of), config.encode(), ctypes.byref(text), used, len(used))
    return take_text(text), decode(used.value)


def expand(template: str, constants: Mapping[str, int | str]) -> str:
    """A template of the template directory, "cuda/matmul.cu", expanded with these constants."""
    text = ctypes.c_void_p()
    items = ",".join(f"{name}={value}" for name, value in constants.items())
    call("fa_expand", template.encode(), items.encode(), ctypes.byref(text))
    return take_text(text)


def compile_kernel(of: Problem, config: str = "") -> Compiled:
    """Render and compile, without the cache."""
    struct = CompiledStruct()
    call("fa_compile", ctypes.byref(of), config.encode(), ctypes.byref(struct))
    return take_compiled(struct)


def compile_source(target: str, source: str, options: str = "--std=c++17") -> Compiled:
    """Compile any source as a kernel's is, without the cache."""
    struct = CompiledStruct()
    call("fa_compile_source", target.encode(), options.encode(), source.encode(), ctypes.byref(struct))
    return take_compiled(struct)


def take_compiled(struct: CompiledStruct) -> Compiled:
    """Copy what a compiler made and free it."""
    image = ctypes.string_at(struct.image, struct.image_length)
    functions().fa_free(struct.image)
    log = take_text(ctypes.c_void_p(struct.log))
    usage = struct.registers, struct.spill_bytes, struct.shared_bytes
    return Compiled(image, struct.seconds, log, *usage, decode(struct.compiler), decode(struct.command))


def list_configs(of: Problem) -> list[str]:
    """The configs that the tuner chooses from, best guess first."""
    text = ctypes.c_void_p()
    call("fa_list_configs", ctypes.byref(of), ctypes.byref(text))
    return take_text(text).splitlines()


def info() -> str:
    """ "name: value" lines: version, templates, targets, compilers, cache."""
    text = ctypes.c_void_p()
    if functions().fa_info(ctypes.byref(text)) != 0:
        raise MemoryError("out of memory")
    return take_text(text)


def statistics() -> dict[str, int]:
    """How often each of COUNTERS happened in this process so far."""
    struct = Statistics()
    functions().fa_get_statistics(ctypes.byref(struct))
    return {name: getattr(struct, name) for name in COUNTERS}


def set_autotune(autotune: str) -> None:
    """Choose kernels as with another value of FLASH_ATTENTION_AUTOTUNE, also for calls that have one.

    Only records of exactly such a search count: not those of "max" for "1".
    """
    call("fa_set_autotune", autotune.encode())


def last_config() -> str:
    """The config of the kernel that was chosen last, "" if none was."""
    config = ctypes.create_string_buffer(256)
    functions().fa_last_config(config, len(config))
    return decode(config.value)


@dataclass(frozen=True)
class CacheEntry:
    """One entry of the cache on disk."""

    key: str  # 32 hex digits
    kind: str  # "kernel" or "tuning"
    size: int  # bytes of the file
    last_used: int  # seconds since 1970
    valid: bool
    text: str  # its metadata, or what is wrong with it


def cache_entries(verify: bool = False) -> list[CacheEntry]:
    text = ctypes.c_void_p()
    call("fa_cache_report", verify, ctypes.byref(text))
    entries = []
    for line in take_text(text).splitlines():
        key, kind, size, last_used, valid, *rest = line.split(" ", 5)
        entries.append(CacheEntry(key, kind, int(size), int(last_used), valid == "1", " ".join(rest)))
    return entries


def cache_clear() -> int:
    """Remove all entries; returns how many."""
    removed = ctypes.c_int64()
    call("fa_cache_remove_all", ctypes.byref(removed))
    return removed.value


def cache_export_entry(kind: str, key: str) -> tuple[str, bytes]:
    """File name and bytes of an entry, checked; RuntimeError where there is none that is intact."""
    name, data, length = ctypes.create_string_buffer(ENTRY_NAME_SIZE), ctypes.c_void_p(), ctypes.c_size_t()
    call("fa_cache_export_entry", kind.encode(), key.encode(), name, ctypes.byref(data), ctypes.byref(length))
    content = ctypes.string_at(data.value or 0, length.value)
    functions().fa_free(data)
    return decode(name.value), content


def cache_import_entry(name: str, content: bytes, store: bool) -> tuple[str, str]:
    """Check an entry that comes from elsewhere and, with `store`, publish it where its key has none.

    Returns one of IMPORT_RESULTS, and what is wrong with it or "".
    """
    result = ctypes.c_int()
    if not name.isascii() or not name.isprintable():
        return "refused", "not named as entries are"
    try:
        call("fa_cache_import_entry", name.encode(), content, len(content), store, ctypes.byref(result))
    except RuntimeError as error:
        return IMPORT_RESULTS[result.value], str(error)
    return IMPORT_RESULTS[result.value], ""


def cache_path() -> str:
    """Directory of the cache, "" where there is none."""
    return decode(functions().fa_cache_path())


def template_dir() -> str:
    return decode(functions().fa_template_dir())
