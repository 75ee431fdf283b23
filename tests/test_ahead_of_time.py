"""Protects: what `tune` has tuned, or `cache import` has brought, no program compiles or tunes again; and a pinned
program takes what is there or fails.
"""

from __future__ import annotations

import functools
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

from flash_attention import _native, cache_archive, cli
from test_processes import NO_COMPILER, call, start


def command(cache: Path, *arguments: object, lines: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m flash_attention ...` with this cache."""
    variables = {**os.environ, "FLASH_ATTENTION_CACHE_DIR": str(cache), "FLASH_ATTENTION_AUTOTUNE": "1", **environment}
    line = [sys.executable, "-m", "flash_attention", *map(str, arguments)]
    return subprocess.run(line, env=variables, input=lines, capture_output=True, text=True, check=False, timeout=300)


def problems(device: torch.device) -> tuple[str, ...]:
    """The arguments of `tune` for what test_processes.CALLS computes in fp32."""
    shapes = ("--dtype", "fp32", "--head-dim", "32", "--batch", "1", "--heads", "2", "--seqlen", "150", "--causal")
    return (*shapes, "--deterministic", "--device", device.type)


@functools.cache
def tuned_once(device_type: str) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="flash_attention_tuned_")
    run = command(Path(folder.name), "tune", *problems(torch.device(device_type)))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-2].startswith("2 problems tuned, 0 already known, 0 failed in ")
    assert run.stdout.splitlines()[-1] == f"cache: {folder.name}"
    return folder


@pytest.fixture
def tuned(device: torch.device, tmp_path: Path) -> Path:
    """A cache after `tune` of two problems: each test has a copy of its own."""
    cache = tmp_path / "cache"
    shutil.copytree(tuned_once(device.type).name, cache)
    return cache


def assert_nothing_is_made(result: dict[str, object]) -> None:
    assert result["compilations"] == 0
    assert result["tunings"] == 0
    assert not result["looked_for_nvrtc"]
    assert result["kernels_loaded"] == 2


def test_after_tune_nothing_is_compiled_or_tuned(device: torch.device, tuned: Path) -> None:
    """Forward and backward of a program with such tensors; and the same list again is known."""
    assert_nothing_is_made(call(tuned, device, **NO_COMPILER))
    again = command(tuned, "tune", *problems(device), **NO_COMPILER)
    assert again.returncode == 0, again.stderr
    assert "\n0 problems tuned, 2 already known, 0 failed in " in again.stdout


def test_export_and_import_carry_a_cache(device: torch.device, tuned: Path, tmp_path: Path) -> None:
    """Two exports are one file, byte for byte; an empty cache has all of it afterwards; a second import changes
    nothing; and a program finds it, pinned or not.
    """
    first, second, image = tmp_path / "first.tar", tmp_path / "second.tar", tmp_path / "image"
    names = sorted(path.name for path in tuned.glob("*.fa*"))
    kernels = sum(name.startswith("kernel-") for name in names)
    for path in (first, second):
        run = command(tuned, "cache", "export", path)
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"{kernels} kernels and 2 tuning records, ")
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "first.tar", "second.tar"}, "something is left"
    run = command(image, "cache", "import", first)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{len(names)} entries imported, 0 already present, 0 refused\n")
    assert {path.name: path.read_bytes() for path in image.glob("*.fa*")} == {
        name: (tuned / name).read_bytes() for name in names
    }
    run = command(image, "cache", "import", first)
    assert run.stdout.startswith(f"0 entries imported, {len(names)} already present, 0 refused\n")
    expected = call(tuned, device, **NO_COMPILER)["digest"]
    for autotune in ("1", "pinned"):
        result = call(image, device, FLASH_ATTENTION_AUTOTUNE=autotune, **NO_COMPILER)
        assert_nothing_is_made(result)
        assert result["digest"] == expected


def test_export_of_a_target(device: torch.device, tuned: Path, tmp_path: Path) -> None:
    """By kind; where there is nothing of it, or only entries of another version: an error, and no file."""
    file = tmp_path / "some.tar"
    other = {"cpu": "cuda", "cuda": "cpu"}[device.type]
    assert command(tuned, "cache", "export", file, "--target", device.type).returncode == 0
    run = command(tuned, "cache", "export", tmp_path / "none.tar", "--target", other)
    assert run.returncode == 1
    assert f"has no intact entries for target '{other}'" in run.stderr
    assert "python -m flash_attention tune" in run.stderr
    for path in tuned.glob("*.fa1"):
        path.rename(path.with_suffix(".fa2"))
    run = command(tuned, "cache", "export", tmp_path / "none.tar")
    assert run.returncode == 1
    assert "has no intact entries: fill it" in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "some.tar"}


def test_pinned_uses_records_and_fails_without(device: torch.device, tuned: Path, tmp_path: Path) -> None:
    """Records of every kind of search serve. Without one the message has the command that makes it, and it does."""
    guessed = tmp_path / "guessed"
    expected = call(guessed, device, FLASH_ATTENTION_AUTOTUNE="0")
    result = call(guessed, device, FLASH_ATTENTION_AUTOTUNE="pinned", **NO_COMPILER)
    assert_nothing_is_made(result)
    assert result["digest"] == expected["digest"]

    empty = tmp_path / "empty"
    with start(empty, device, FLASH_ATTENTION_AUTOTUNE="pinned") as process:
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 1
    message = errors.strip().splitlines()[-1]
    assert message.startswith("RuntimeError: FLASH_ATTENTION_AUTOTUNE is 'pinned', and the cache ")
    assert f"{empty} has no tuning record for forward fp32 head_dim=32" in message
    assert "python -m flash_attention cache import FILE" in message
    assert not empty.exists()
    arguments = message.partition("python -m flash_attention ")[2].partition(")")[0].split()
    assert arguments[:3] == ["tune", "--op", "forward"]
    arguments[2] = "forward,backward"
    assert command(empty, *arguments, "--deterministic").returncode == 0
    assert_nothing_is_made(call(empty, device, FLASH_ATTENTION_AUTOTUNE="pinned", **NO_COMPILER))


def test_pinned_compiles_a_lost_kernel_only_if_it_is_the_same(device: torch.device, tuned: Path) -> None:
    """The record names it. Another compiler would make another one: that is an error, and the record stays."""
    expected = call(tuned, device)["digest"]
    records = {path: path.read_bytes() for path in tuned.glob("tuning-*")}
    for kernel in tuned.glob("kernel-*"):
        kernel.unlink()
    if device.type == "cpu":
        with start(tuned, device, FLASH_ATTENTION_AUTOTUNE="pinned", CC="cc -DANOTHER_COMPILER") as process:
            errors = process.communicate(timeout=120)[1]
        assert "has no usable tuning record" in errors
        assert "is lost, and the compiler of this machine makes another one" in errors
    result = call(tuned, device, FLASH_ATTENTION_AUTOTUNE="pinned")
    assert result["tunings"] == 0
    assert result["compilations"] == 2
    assert result["digest"] == expected
    assert {path: path.read_bytes() for path in tuned.glob("tuning-*")} == records


def test_tune_goes_on_after_a_failure(device: torch.device, tmp_path: Path) -> None:
    """One has more elements than there is memory: it is listed with the reason, the next is tuned, the status is 1."""
    lines = f"# sizes\n\n--seqlen 16 --heads {1 << 40}\n--seqlen 16 --heads 2  # small\n--seqlen 16 --heads 2\n"
    arguments = ("--dtype", "fp32", "--head-dim", "16", "--op", "forward", "--device", device.type)
    shapes = tmp_path / "shapes"
    shapes.write_text(lines)
    run = command(tmp_path / "cache", "tune", *arguments, "--shapes", shapes)
    assert run.returncode == 1
    printed = run.stdout.splitlines()
    assert [line.split()[0] for line in printed if line.startswith("[")] == ["[1/2]", "[2/2]"], "one of them twice"
    assert "1 problems tuned, 0 already known, 1 failed in " in run.stdout
    assert any(line.startswith(f"failed: --op forward --dtype fp32 --head-dim 16 --batch 1 --heads {1 << 40} --seqlen")
               for line in printed)  # fmt: skip
    assert run.stderr == "flash_attention: 1 of 2 problems failed\n"
    assert "2 already known" not in run.stdout
    again = command(tmp_path / "cache", "tune", *arguments, "--shapes", "-", lines="--seqlen 16,10 --heads 2")
    assert "0 problems tuned, 2 already known, 0 failed" in again.stdout


def test_tune_needs_a_cache_that_keeps_something(tmp_path: Path) -> None:
    run = command(tmp_path / "cache", "tune", *problems(torch.device("cpu")), FLASH_ATTENTION_CACHE_SIZE="0")
    assert run.returncode == 1
    assert run.stderr == "flash_attention: there is no cache to tune for: FLASH_ATTENTION_CACHE_SIZE is 0\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("tune", "--head-dim", "64"), "--dtype is missing: a problem has --dtype, --head-dim, --heads, --seqlen"),
        (("tune", "--shapes", "SHAPES"), "line 3 of SHAPES: argument --seqlen: 'many' is not a list of numbers"),
        (("tune", "--shapes", "EMPTY"), "--shapes is 'EMPTY', which has no problems"),
        (
            ("tune", "--dtype", "fp32", "--head-dim", "64,300", "--heads", "1", "--seqlen", "8"),
            "--head-dim is 300; it must be 1 to 256",
        ),
        (
            ("tune", "--dtype", "fp32", "--head-dim", "64", "--heads", "6", "--heads-kv", "4", "--seqlen", "8"),
            "--heads is 6; it must be a multiple of --heads-kv, which is 4",
        ),
        (("cache", "export"), "cache export needs a FILE"),
        (("cache", "list", "file"), "FILE is 'file'; cache list has none"),
        (("cache", "import", "file", "--target", "cpu"), "--target is 'cpu'; only cache export has it"),
        (("cache", "import", "MISSING"), "No such file"),
        (("cache", "import", "SHAPES"), "is not a whole file of `cache export`"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    (tmp_path / "SHAPES").write_text("# one\n\n--dtype fp32 --head-dim 8 --heads 1 --seqlen many\n")
    (tmp_path / "EMPTY").write_text("# nothing\n")
    places = {name: str(tmp_path / name) for name in ("SHAPES", "EMPTY", "MISSING")}
    with pytest.raises(SystemExit) as caught:
        cli.main([places.get(argument, argument) for argument in arguments])
    sentence = str(caught.value.code)
    assert sentence.startswith("flash_attention: ")
    assert reason in sentence.replace(str(tmp_path) + "/", "")
    assert "\n" not in sentence


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An export of one small kernel and its record."""
    folder = tmp_path_factory.mktemp("archive")
    cache, file = folder / "made", folder / "made.tar"
    arguments = ("--op", "forward", "--dtype", "fp32", "--head-dim", "8", "--heads", "1", "--seqlen", "4")
    run = command(cache, "tune", *arguments, "--device", "cpu", FLASH_ATTENTION_AUTOTUNE="0")
    assert run.returncode == 0, run.stderr
    assert command(cache, "cache", "export", file).stdout.startswith("1 kernels and 1 tuning records, ")
    return file.read_bytes()


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        return {member.name: file.extractfile(member).read() for member in file}


def write(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    """An archive that lists what it holds, as an attacker's would."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            file.addfile(member)
        for name, content in files.items():
            cache_archive.add_member(file, name, content)
        listed = [f"0 {name}" for name in links or {}] + [f"{len(content)} {name}" for name, content in files.items()]
        cache_archive.add_member(file, cache_archive.CONTENTS, ("\n".join(listed) + "\n").encode())
    return path


def test_cut_or_changed_archives_are_refused_as_a_whole(archive: bytes, tmp_path: Path) -> None:
    """At any length; with a member that is gone, added or renamed: ValueError before anything is stored."""
    file = tmp_path / "damaged.tar"
    last = archive.rindex(cache_archive.CONTENTS.encode())
    lengths = [0, 1, 511, 512, 513, last - 1, last, last + 512, *random.Random(0).sample(range(last), 60)]
    for length in lengths:
        file.write_bytes(archive[:length])
        with pytest.raises(ValueError, match="nothing of it is imported"):
            cache_archive.check_whole(file)
    files = members(archive)
    listed = files.pop(cache_archive.CONTENTS)
    names = list(files)
    changed = (
        {names[0]: files[names[0]], cache_archive.CONTENTS: listed},
        {**files, names[0][:-1] + "2": b"x", cache_archive.CONTENTS: listed},
        {**files, cache_archive.CONTENTS: listed, "more": b"x"},
        {cache_archive.CONTENTS: listed, **files},
    )
    for content in changed:
        with tarfile.open(file, "w") as made:
            for name, data in content.items():
                cache_archive.add_member(made, name, data)
        with pytest.raises(ValueError, match="nothing of it is imported"):
            cache_archive.check_whole(file)
    file.write_bytes(archive[: len(archive) // 2])
    run = command(tmp_path / "image", "cache", "import", file)
    assert run.returncode == 1
    assert run.stdout == ""
    assert "nothing of it is imported" in run.stderr
    assert not (tmp_path / "image").exists()


def test_any_flipped_bit_of_an_archive_is_seen(archive: bytes, tmp_path: Path) -> None:
    """Or it is none of an entry, its name or the list: then all that would be taken is right."""
    file, entries = tmp_path / "damaged.tar", members(archive)
    del entries[cache_archive.CONTENTS]
    chance = random.Random(0)
    for _ in range(200):
        damaged = bytearray(archive)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            verdicts = cache_archive.check_whole(file)
        except ValueError:
            continue
        for (name, _, content), (result, _) in zip(cache_archive.read_members(file), verdicts, strict=False):
            assert result == "refused" or entries[name] == content


def test_foreign_names_are_refused_and_the_rest_is_imported(archive: bytes, tmp_path: Path) -> None:
    """Nothing is written but entries in the cache's directory, under the names that their keys make."""
    image = tmp_path / "image" / "cache"
    files = members(archive)
    del files[cache_archive.CONTENTS]
    kernel = next(name for name in files if name.startswith("kernel-"))
    damaged = bytearray(files[kernel])
    damaged[-1] ^= 1
    content = files.pop(kernel)
    other = kernel[:7] + ("0" if kernel[7] != "0" else "1") + kernel[8:]
    foreign = {
        f"../{kernel}": content,
        str(tmp_path / "absolute"): b"x",
        "../../escaped": b"x",
        f"locks/{kernel}": content,
        other: content,
        kernel.replace("kernel", "tuning"): content,
        kernel.replace(".fa1", ".fa01"): content,
        f"{kernel}\u00e9": content,
        "ker\x1b[2Jnel": content,
        kernel: bytes(damaged),
    }
    links = {"link": "/etc/passwd", "kernel-" + "0" * 32 + ".fa1": "../../escaped"}
    file = write(tmp_path / "foreign.tar", {**foreign, **files}, links)
    before = {path.name for path in tmp_path.iterdir()}
    run = command(image, "cache", "import", file)
    refused = len(foreign) + len(links)
    assert run.returncode == 1
    assert f"1 entries imported, 0 already present, {refused} refused" in run.stdout
    assert run.stdout.count("refused '") == refused
    assert "\x1b" not in run.stdout
    assert f"refused {kernel!r}: damaged in its payload" in run.stdout
    assert f"{refused} entries of {file} were refused" in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == before | {"image"}
    assert [path.name for path in image.parent.iterdir()] == ["cache"]
    assert {path.name for path in image.iterdir()} - {"locks"} == set(files)
    assert {entry.valid for entry in _native.cache_entries(verify=True)} <= {True}


def test_import_says_when_the_cache_is_too_small(archive: bytes, tmp_path: Path) -> None:
    """Each entry fits, all together do not: what was to be imported is not all there."""
    file = tmp_path / "made.tar"
    file.write_bytes(archive)
    files = members(archive)
    largest = max(len(content) for content in files.values())
    size = {"FLASH_ATTENTION_CACHE_SIZE": str(largest + 16)}
    run = command(tmp_path / "image", "cache", "import", file, **size)
    assert run.returncode == 1
    assert "had to make room for others: raise FLASH_ATTENTION_CACHE_SIZE" in run.stderr
    run = command(tmp_path / "image2", "cache", "import", file, FLASH_ATTENTION_CACHE_SIZE="0")
    assert run.returncode == 1
    assert "is not stored: the cache is full, switched off or cannot be written" in run.stderr
