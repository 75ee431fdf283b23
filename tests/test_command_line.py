"""Protects: `python -m flash_attention` does what its help says, and its errors are one sentence."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emulator import build, data, machine, tensors
from flash_attention import _native, cli, emulate_command

PACKAGE = Path(_native.__file__).resolve().parent.parent


def command(*arguments: str, cache: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = dict(os.environ, PYTHONPATH=str(PACKAGE), **environment)
    if cache is not None:
        variables["FLASH_ATTENTION_CACHE_DIR"] = str(cache)
    line = [sys.executable, "-m", "flash_attention", *arguments]
    return subprocess.run(line, env=variables, capture_output=True, text=True, check=False)


def output(*arguments: str, cache: Path | None = None, **environment: str) -> str:
    run = command(*arguments, cache=cache, **environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


PROBLEM = ("--op", "forward", "--dtype", "fp32", "--head-dim", "40")


def test_info_names_versions_compiler_cache_and_every_variable(tmp_path: Path) -> None:
    text = output("info", cache=tmp_path / "cache", FLASH_ATTENTION_AUTOTUNE="0")
    for needed in (
        "Python: ",
        "PyTorch: ",
        "cuda target: ",
        "cuda compiler: ",
        "\ncompiler: ",
        "cpu target: cpu:",
        f"cache: {tmp_path / 'cache'}",
    ):
        assert needed in text
    assert "FLASH_ATTENTION_AUTOTUNE=0" in text
    for name in ("FLASH_ATTENTION_CACHE_SIZE", "FLASH_ATTENTION_CPU_ISA", "FLASH_ATTENTION_VERBOSE", "CC"):
        assert name in text


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The same in this process, which is faster."""
    cli.main(arguments)
    return capsys.readouterr().out


@pytest.mark.parametrize("target", ["cpu:avx2", "cpu:avx512", "cpu:avx512_bf16", "cpu:avx512_amx", "cpu:neon"])
@pytest.mark.parametrize("op", ["forward", "backward"])
def test_source_of_any_target_opens_with_its_problem(target: str, op: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--op", op, "--dtype", "bf16", "--head-dim", "64", "--head-dim-v", "32", "--causal")
    head = printed(capsys, "source", *arguments, "--target", target)[:800]
    for needed in (op, "bf16", "64", "32", "causal", target, "config"):
        assert needed in head


def test_lower_precision_is_one_product_where_there_is_such_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("source", "--op", "forward", "--dtype", "fp32", "--head-dim", "64", "--target")
    for target, template in (("cuda:sm_90a", "hopper/forward.cu"), ("cuda:sm_80", "cuda/forward.cu")):
        full, reduced = (printed(capsys, *arguments, target, "--precision", name) for name in ("full", "reduced"))
        assert (full == reduced) == (target == "cuda:sm_80")
        assert f"templates/{template}, where" in reduced
        assert ("lower precision in the products allowed" in reduced) == (target == "cuda:sm_90a")


def test_source_is_the_same_in_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert output("source", *PROBLEM) == printed(capsys, "source", *PROBLEM)


def test_config_changes_the_source_and_is_named_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    configs = printed(capsys, "configs", *PROBLEM).split()
    best_guess = printed(capsys, "source", *PROBLEM)
    assert len(configs) > 1
    assert best_guess == printed(capsys, "source", *PROBLEM, "--config", configs[0])
    changed = printed(capsys, "source", *PROBLEM, "--config", configs[-1])
    assert changed != best_guess
    assert configs[-1].replace(",", " ") in changed[:800].replace(",", " ")


def test_compile_says_size_time_and_compiler(tmp_path: Path) -> None:
    kernel, cache = tmp_path / "kernel.so", tmp_path / "cache"
    text = output("compile", *PROBLEM, "-o", str(kernel), cache=cache)
    for needed in ("config: ", "size: ", "time: ", "compiler: ", "command: "):
        assert needed in text
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    assert not list(cache.glob("**/*")), "compile leaves the cache alone"


def test_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """NVRTC needs no GPU; what a kernel takes of one is said."""
    kernel = tmp_path / "kernel.cubin"
    if "cuda compiler: none" in output("info"):
        pytest.skip("there is no NVRTC here; PyTorch for CUDA brings one")
    arguments = ("compile", "--op", "forward", "--dtype", "fp16", "--head-dim", "64", "--target", "cuda:sm_80")
    run = command(*arguments, "-o", str(kernel))
    assert run.returncode == 0, run.stderr
    for needed in ("compiler: NVRTC ", "command: nvrtc --gpu-architecture=sm_80 ", "registers: ", "shared memory: "):
        assert needed in run.stdout
    assert kernel.read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize(
    "target", ["sm_80a", "sm_90f", "sm_90aa", "sm_090", "sm_ 90", "sm_75", "sm_999", "sm_100a", "sm_"]
)
def test_an_architecture_has_one_name(target: str) -> None:
    """Others would be kernels of their own in the cache, or fail in the compiler."""
    allowed = "it must be cuda:sm_90a, or cuda:sm_ and a number from 80 to 199 without a suffix"
    with pytest.raises(ValueError, match=re.escape(f"target is 'cuda:{target}'; {allowed}")):
        _native.source(_native.problem("forward", "fp32", 64, 64, False, f"cuda:{target}"))


MATMUL = ("--template", "cuda/matmul.cu", "--set", "dtype_16=bf16", "--set", "block_n=64", "--set", "num_stages=2")
MATMUL += ("--set", "a_is_m_major=0", "--set", "b_is_n_major=1", "--set", "result=store")


def test_any_template_is_expanded_with_its_constants(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers count, text compares; what no line reads is an error (below)."""
    text = printed(capsys, "source", *MATMUL)
    assert '#line 1 "cuda/ptx.h"' in text
    assert "wgmma_m64n64k16<0, 1>(c, from_a" in text
    assert "BLOCK_N = 64," in text
    assert "f32.bf16.bf16" in text
    assert "f32.f16.f16" not in text


def test_any_template_is_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    if "cuda compiler: none" in _native.info():
        pytest.skip("there is no NVRTC here; PyTorch for CUDA brings one")
    text = printed(capsys, "compile", *MATMUL, "--target", "cuda:sm_90a")
    assert "command: nvrtc --gpu-architecture=sm_90a " in text
    assert "registers: 168 of a thread, 0 bytes spilled" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("source", "--dtype", "fp32"), "--op is missing"),
        (("source", "--template", "cuda/none.h"), 'template "cuda/none.h" cannot be read'),
        (("source", "--template", "../setup.py"), "relative to the template directory"),
        (("source", "--template", "cuda/matmul.cu"), "matmul.cu:9: unknown name 'block_n'"),
        (("source", *MATMUL, "--set", "colour=3"), "constant 'colour' was set but no template reads it"),
        (("source", *MATMUL, "--set", "block_n"), "--set is 'block_n'; it must be name=value"),
        (("source", *MATMUL, "--set", "block_n=many"), "matmul.cu:9: "),
        (("compile", *MATMUL, "--target", "z80"), "target is 'z80'"),
        (("source", *PROBLEM[:-1], "640"), "head_dim is 640"),
        (("source", *PROBLEM, "--target", "cpu:z80"), "cpu:z80"),
        (("source", *PROBLEM, "--target", "cuda:z80"), "cuda:z80"),
        (("source", *PROBLEM, "--target", "x" * 99), "target"),
        (("source", *PROBLEM, "--config", "block_m=-1"), "block_m"),
        (("source", *PROBLEM, "--config", "colour=3"), "colour"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    sentence = str(caught.value.code)  # Python prints it to standard error and ends with status 1
    assert capsys.readouterr().out == ""
    assert sentence.startswith("flash_attention: ")
    assert reason in sentence
    assert "\n" not in sentence


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    text = output("--help")
    for name in ("info", "source", "compile", "configs", "emulate", "tune", "cache", "bench"):
        assert name in text
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert "usage" in capsys.readouterr().out


def test_compile_without_compiler_says_what_to_install() -> None:
    run = command("compile", *PROBLEM, CC="", PATH="/nowhere")
    assert run.returncode == 1
    assert "gcc" in run.stderr


@pytest.mark.skipif(bool(build.missing()), reason=f"emulator: {build.missing()}")
def test_emulate_runs_a_kernel_under_several_seeds() -> None:
    """From a checkout, and from any folder."""
    text = output("emulate", "--dtype", "bf16", "--head-dim", "24", "--seqlen-q", "20", "--causal", "--accuracy")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:-1:2]] == ["ok"] * 3
    assert all(line.startswith("    output ") for line in lines[1:-1:2])
    assert "bf16 head_dim=24 causal=True seqlen_q=20" in text
    assert lines[-1] == "3 runs are right"


@pytest.mark.skipif(bool(build.missing()), reason=f"emulator: {build.missing()}")
def test_emulate_says_what_is_wrong_and_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    """A scale of infinity makes NaN: the first seed's finding, and a command that shows it alone."""
    arguments = ["emulate", "--head-dim", "16", "--seqlen-q", "5", "--scale", "inf", "--layout", "odd"]
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == "flash_attention: 1 of 1 runs are wrong"
    report = capsys.readouterr().out
    assert "elements are wrong" in report
    again = shlex.split(report.splitlines()[0])[4:]
    assert again[0] == "emulate"
    with pytest.raises(SystemExit):
        cli.main(again)
    assert capsys.readouterr().out == report


@pytest.mark.skipif(bool(build.missing()), reason=f"emulator: {build.missing()}")
def test_emulate_prints_the_table_of_mutations() -> None:
    """One command; a word chooses some of them."""
    text = output("emulate", "--mutations", "strides of rows and heads")
    assert re.search(r"^1/1 +strides of rows and heads exchanged +forward +out of bounds +[\d.]+ ", text, re.MULTILINE)
    assert "1 of 1 mutations are caught" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--target", "cpu:avx2"), "cpu:avx2"),
        (("--config", "colour=3"), "colour"),
        (("--head-dim", "640"), "head_dim is 640"),
        (("--seqlen-q", "0"), "seqlen_q is 0; it must be at least 1"),
        (("--seeds", "0"), "seeds is 0; it must be at least 1"),
        (("--seqlen-k", "-5"), "seqlen_k is -5; it must be at least 1"),
        (("--heads-q", "3", "--heads-kv", "2"), "heads_q is 3; it must be a multiple of heads_kv, which is 2"),
        (("--mutations", "no such word"), "no mutation has 'no such word'"),
    ],
)
def test_emulate_refuses_in_one_sentence(arguments: tuple[str, ...], reason: str) -> None:
    if build.missing():
        pytest.skip(f"emulator: {build.missing()}")
    with pytest.raises(SystemExit) as caught:
        cli.main(("emulate", *arguments))
    assert reason in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_emulate_needs_a_checkout(tmp_path: Path) -> None:
    """The package alone, as a wheel has it, says what is missing."""
    shutil.copytree(PACKAGE / "flash_attention", tmp_path / "lib" / "flash_attention")
    line = [sys.executable, "-m", "flash_attention", "emulate", "--head-dim", "16"]
    environment = dict(os.environ, PYTHONPATH=str(tmp_path / "lib"))
    run = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stdout == ""
    for needed in ("checkout", "g++ 12"):
        assert needed in run.stderr
    assert run.stderr.count("\n") == 1


def test_emulate_offers_what_the_emulator_has() -> None:
    """The options are declared in the package, what they choose from is in tests/emulator."""
    assert emulate_command.LAYOUTS == tensors.LAYOUTS
    assert set(emulate_command.DATA) == set(data.DATA)
    assert set(emulate_command.TIMINGS) == set(machine.TIMINGS)
    assert set(emulate_command.MODELS) == set(machine.MODELS)


FILL = """
import sys, torch
from flash_attention import flash_attention
query = torch.randn(1, 1, 16, 16).to(sys.argv[1])
flash_attention(query, query, query)
"""


def test_cache_list_verify_clear_path(device: torch.device, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert output("cache", "path", cache=cache).strip() == str(cache)
    assert output("cache", "list", cache=cache).startswith("0 entries")
    variables = dict(os.environ, PYTHONPATH=str(PACKAGE), FLASH_ATTENTION_CACHE_DIR=str(cache))
    subprocess.run([sys.executable, "-c", FILL, device.type], env=variables, check=True)
    listed = output("cache", "list", cache=cache)
    assert "forward fp32 head_dim=16" in listed
    assert "intact" in output("cache", "verify", cache=cache)

    kernel = max((path for path in cache.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damaged = bytearray(kernel.read_bytes())
    damaged[-100] ^= 1
    kernel.write_bytes(damaged)
    run = command("cache", "verify", cache=cache)
    assert run.returncode == 1
    assert "DAMAGED" in run.stdout
    assert "1 of " in run.stderr

    assert "entries removed" in output("cache", "clear", cache=cache)
    assert output("cache", "list", cache=cache).startswith("0 entries")


def test_bench_writes_a_table_and_csv(tmp_path: Path) -> None:
    grid = ("--dtypes", "fp32", "--head-dims", "16", "--seqlens", "32,64", "--masks", "causal", "--heads", "1")
    arguments = ("bench", "--device", "cpu", *grid, "--seconds", "0.01")
    text = output(*arguments, "--output", str(tmp_path), cache=tmp_path / "cache")
    assert "ratio" in text
    with (tmp_path / "bench_cpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["op"], row["seqlen"], row["peer"]) for row in rows] == [
        (op, seqlen, peer)
        for op in ("forward", "backward")
        for seqlen in ("32", "64")
        for peer in ("flash_attention", "PyTorch")
    ]
    for ours, row in zip(rows[::2], rows[1::2], strict=True):
        flops = 4 * 32 * 32 * 16 * (int(row["seqlen"]) / 32) ** 2 / 2 * (1 if row["op"] == "forward" else 2.5)
        assert float(row["gflops"]) == pytest.approx(flops / float(row["seconds"]) / 1e9, abs=0.06)
        assert float(row["ratio"]) == pytest.approx(float(row["seconds"]) / float(ours["seconds"]), rel=2e-3)
        assert row["command"] == shlex.join(("python", "-m", "flash_attention", *arguments))
        assert row["machine"]


def test_output_into_a_closed_pipe_is_no_error() -> None:
    line = f"{sys.executable} -m flash_attention source {' '.join(PROBLEM)} | head -n 1"
    run = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env=dict(os.environ, PYTHONPATH=str(PACKAGE)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0
    assert run.stderr == ""
