"""Protects: what the benchmark shows and writes says what was measured. The numbers here are made up."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flash_attention import bench, bench_command, bench_measure, bench_report, bench_startup, bench_tuner, cli

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import update_readme  # noqa: E402

BACKENDS = list(bench_measure.BACKENDS)


def made_up() -> list[bench.Result]:
    """fp32 has one peer, bf16 all three, and cuDNN does not take d 256."""
    results = []
    cells = bench.grid("cuda", ["forward", "backward"], ["fp32", "bf16"], [64, 256], [512, 1024], ["full", "causal"])
    for cell in cells:
        seconds = {"flash_attention": 1e-3, "efficient": 2e-3}
        if cell.dtype == "bf16":
            seconds["flash"] = 0.8e-3
            if cell.head_dim == 64:
                seconds["cuDNN"] = 0.5e-3
        results.append(bench.Result(cell, seconds, 5, 0.25))
    return results


def test_cells_of_a_gpu_have_as_many_tokens_and_columns() -> None:
    for cell in bench.grid("cuda", ["forward"], ["bf16"], [64, 128, 256], [512, 16384], ["full"]):
        assert cell.batch * cell.seqlen == bench.TOKENS
        assert cell.heads * cell.head_dim == bench.HIDDEN
    cell, longer, given = (
        bench.grid("cpu", ["forward"], ["fp32"], [64], [512], ["full"])[0],
        bench.grid("cuda", ["forward"], ["fp32"], [64], [2 * bench.TOKENS], ["full"])[0],
        bench.grid("cuda", ["forward"], ["fp32"], [64], [512], ["full"], batch=3, heads=5)[0],
    )
    assert (cell.batch, cell.heads) == (1, 8)
    assert longer.batch == 1
    assert (given.batch, given.heads) == (3, 5)


@pytest.mark.parametrize(("device", "count"), [("cpu", 96), ("cuda", 144)])
def test_default_grid(device: str, count: int) -> None:
    arguments = cli.build_parser().parse_args(["bench"])
    assert len(bench_command.choose_cells(arguments, device)) == count


def test_choosing_cells() -> None:
    line = "bench --ops backward --dtypes fp16 --head-dims 96,40 --seqlens 1000 --masks causal --batch 2"
    cells = bench_command.choose_cells(cli.build_parser().parse_args(line.split()), "cuda")
    assert [(cell.op, cell.dtype, cell.head_dim, cell.seqlen, cell.mask(), cell.batch) for cell in cells] == [
        ("backward", "fp16", 96, 1000, "causal", 2),
        ("backward", "fp16", 40, 1000, "causal", 2),
    ]


def test_skewed_cells(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Queries and keys of lengths of their own reach the tensors, the operations that count, and the table."""
    monkeypatch.setattr(bench, "SKEWED", ((2, 3, 1, 40), (1, 2, 24, 24)))
    cli.main(["bench", "--device", "cpu", "--skewed", "--dtypes", "fp32", "--quick", "--output", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "skewed_cpu.csv").open()))
    sizes = [(row["op"], row["batch"], row["heads"], row["seqlen"], row["seqlen_k"]) for row in rows[::2]]
    forward = [("forward", "2", "3", "1", "40"), ("forward", "1", "2", "24", "24")]
    assert sizes == forward + [("backward", *size) for _, *size in forward]
    query, key, value, grad_output = bench_measure.make_inputs(bench.skewed(["forward"], ["fp32"], [8])[0], "cpu")
    assert query.shape == grad_output.shape == (2, 3, 1, 8)
    assert key.shape == value.shape == (2, 3, 40, 8)
    cell = bench.skewed(["backward"], ["fp32"], [8])[0]
    assert (cell.size(), cell.flops()) == ("1x40", 2.5 * 4 * 2 * 3 * 40 * 8)


@pytest.mark.parametrize("line", ["bench --device tpu", "bench --startup --smallest", "bench --dtypes fp8"])
def test_wrong_arguments_are_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_lines_name_every_peer_and_the_best() -> None:
    header = bench_report.header("cuda", BACKENDS).split()
    result = made_up()[-1]  # bf16, d 256
    line = bench_report.line("cuda", BACKENDS, result).split()
    assert header[7:] == ["flash_attention", *BACKENDS, "TFLOP/s", "best", *(f"/{name}" for name in BACKENDS)]
    tflops = result.cell.flops() / 1e9
    assert line[7:11] == [f"{tflops:.1f}", f"{tflops / 0.8:.1f}", "-", f"{tflops / 2:.1f}"]
    assert line[11:] == ["0.80", "0.80", "-", "2.00"]
    assert len(bench_report.header("cuda", BACKENDS)) == len(bench_report.line("cuda", BACKENDS, result))


def test_cell_that_no_peer_takes() -> None:
    result = bench.Result(made_up()[0].cell, {"flash_attention": 1e-3}, 5, 0.1)
    assert result.best_peer() is None
    assert bench_report.line("cuda", BACKENDS, result).split()[11:] == ["-"] * 4
    assert bench_report.summary([result], BACKENDS) == []


def test_summary_is_of_the_best_peer_and_of_each() -> None:
    lines = bench_report.summary(made_up(), BACKENDS)
    assert len(lines) == 4
    assert (
        lines[0] == "fp32 forward   2.00x on average, at least 2.00x (B 32, H 32, S 512, d 64, full); 2.00x efficient"
    )
    assert lines[2] == (
        "bf16 forward   0.63x on average, at least 0.50x (B 32, H 32, S 512, d 64, full); "
        "0.80x flash; 0.50x cuDNN; 2.00x efficient"
    )


def test_how_it_was_called_is_kept_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py", "bench", "--output", "/some/where", "--quick"])
    assert bench_report.command_line("python", "-m", "flash_attention") == "python -m flash_attention bench --quick"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CSV files of all kinds."""
    monkeypatch.setattr(sys, "argv", ["cli.py", "bench"])
    command = bench_report.command_line("python", "-m", "flash_attention")
    smallest = [bench_measure.Smallest("forward", "fp16", 16, 64, {"flash_attention": 3.25, "PyTorch": 14.5})]
    startup = [
        bench_startup.Startup(op, "fp32", 2, 8, 512, 64, 0.011, 1.5, 0.25, 0.0021, 0.0001)
        for op in ("forward", "forward + backward")
    ]
    accuracy = [
        {
            "dtype": dtype,
            "data": "normal",
            "head_dim": 64,
            "head_dim_v": 32,
            "seqlen_q": 100,
            "seqlen_k": 200,
            "causal": 1,
            "heads": 6,
            "heads_kv": 2,
            "tensor": tensor,
            "error": "2.500e-07",
            "pytorch_error": "5.000e-07",
            "good": 1,
        }
        for dtype in ("fp32", "bf16")
        for tensor in ("output", "grad_query", "grad_key", "grad_value")
    ]
    shape = bench_tuner.Shape("bf16", 8, 32, 8, 1, 32768, 128, True)
    choices = (bench_tuner.Choice("block_m=64", 2.0, 2.5e-3), bench_tuner.Choice("block_m=128", 3.0, 2e-3))
    comparisons = [
        bench_tuner.Comparison(shape, "forward", choices[0], choices[0]),
        bench_tuner.Comparison(shape, "backward", *choices),
    ]
    cells = [bench.Cell("forward", dtype, 128, 1, False, 8, 32, 32768) for dtype in ("fp32", "bf16")]
    skewed = [bench.Result(cells[0], {"flash_attention": 1e-3, "efficient": 1.5e-3}, 5, 0.1)]
    skewed += [bench.Result(cells[1], {"flash_attention": 1e-3, "flash": 1.2e-3, "cuDNN": 0.9e-3}, 5, 0.1)]
    for name, rows in (
        ("tuner", bench_report.tuner_rows(comparisons)),
        ("bench", bench_report.result_rows(made_up())),
        ("smallest", bench_report.smallest_rows(smallest)),
        ("startup", bench_report.startup_rows(startup)),
        ("accuracy", accuracy),
        ("skewed", bench_report.result_rows(skewed)),
    ):
        bench_report.write(tmp_path / f"{name}_cuda.csv", rows, "A GPU, PyTorch 0", command)
    return tmp_path


def test_documents_get_what_their_markers_name(folder: Path) -> None:
    names = ["bench_cuda", "cells_cuda", "smallest_cuda", "startup_cuda", "accuracy_cuda", "tuner_cuda"]
    names += ["skewed_cuda", "bench_cpu"]
    document = folder / "page.md"
    document.write_text("Before.\n" + "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names) + "After.")
    assert update_readme.update(document, folder) == names[:-1]
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("<!-- bench_cpu -->\nold\n<!-- /bench_cpu -->\nAfter."), "there is no file of a CPU"
    assert text.count("old") == 1
    assert "`python -m flash_attention bench`" in text
    speed = made_up()[0].cell.flops() / 1e9  # fp32 forward, d 64, full, S 512
    assert f"| 64 | full | 512 | {speed:.0f} | {speed / 2:.0f} (2.00) | **2.00×** |" in text
    assert "| bf16 forward, d 256 | **0.80×**" in text
    assert "| B 8, H 32, S 1×32768 | **1.50×** | 1.20 / **0.90×** |" in text
    assert "bf16 forward: efficient 2.00×, flash 0.80×, cuDNN 0.50×" in text
    assert "| fp16, S 16, d 64: forward | 3.2 µs | 14.5 µs |" in text
    assert "| first call on a machine: generates, compiles, tunes | 1,500 ms | 1,500 ms |" in text
    assert "| normal | 64/32 | 100×200 | causal, 6/2 heads | 2.5e-07 / 5.0e-07 |" in text
    assert "| forward, bf16, B 8, H 32/8, S 1×32768, d 128, causal | `block_m=64` |" in text
    assert "| `block_m=64` / `block_m=128` | 2.15 | **0.800** | 2.0 s | 3.0 s |" in text
    assert "1 of 2 within 3 %; 0.894 of the exhaustive search's speed on average, at least 0.800." in text
    assert update_readme.update(document, folder) == names[:-1]
    assert document.read_text() == text, "a second time changes nothing"


def test_every_marker_of_the_documents_is_known(folder: Path) -> None:
    for name in update_readme.DOCUMENTS:
        copy = folder / Path(name).name
        copy.write_text((ROOT / name).read_text())
        assert update_readme.update(copy, folder)


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench_report.draw(tmp_path / "bench.png", made_up(), "cuda", "A GPU")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


SCRIPT = ROOT / "bench" / "on_gpu.sh"


def on_gpu(*arguments: str, python: str) -> subprocess.CompletedProcess[str]:
    line = ["env", f"PYTHON={python}", "bash", str(SCRIPT), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_script_of_a_gpu_machine_is_well_formed() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SCRIPT)], check=True)


def test_script_of_a_gpu_machine_runs_the_sections_that_are_named(tmp_path: Path) -> None:
    done = on_gpu(str(tmp_path), "accuracy", "smallest", python="true")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.partition("\nSummary\n")[2].splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["accuracy", "smallest"]
    assert all(line.endswith("s  ok") for line in lines[:2])
    log = (tmp_path / "log.txt").read_text()
    assert "+ true bench/cuda_accuracy.py --output" in log
    assert "bench --device cuda --smallest" in log


def test_script_of_a_gpu_machine_goes_on_behind_a_failure(tmp_path: Path) -> None:
    done = on_gpu(str(tmp_path), "startup", "accuracy", python="false")
    assert done.returncode == 1
    assert done.stdout.count("FAILED (1)") == 2
    assert on_gpu(str(tmp_path), "everything", python="false").returncode == 2
    assert "Sections" in on_gpu(python="false").stdout


def test_script_of_a_gpu_machine_runs_what_needs_a_gpu(tmp_path: Path) -> None:
    """Whatever its name is: all that take the fixture `cuda`, and nothing of the emulator's."""
    on_gpu(str(tmp_path), "tests", "guide", python="echo")
    assert (tmp_path / "log.txt").read_text().count(" -m gpu") == 4  # what is run, and what echo says
    line = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "-m", "gpu", "tests"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    selected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    for path in (ROOT / "tests").glob("test_*.py"):
        text = path.read_text()
        wanted = re.findall(r"^def (test_\w+)\([^)]*\bcuda\b", text, re.MULTILINE)
        wanted += re.findall(r"^@needs_hopper\n(?:@.*\n)*def (test_\w+)", text, re.MULTILINE)
        if re.search(r'^pytestmark = pytest.mark.usefixtures\("cuda"\)', text, re.MULTILINE):
            wanted += re.findall(r"^def (test_\w+)", text, re.MULTILINE)
        missing = {f"tests/{path.name}::{name}" for name in wanted} - selected
        assert not missing
    assert {"tests/test_accuracy.py::test_whole_sequences", "tests/test_cuda.py::test_no_keys"} < selected
    assert not any("/emulator/" in name for name in selected)


def test_tf32_is_measured_beside_our_own_16_bits() -> None:
    """The setting lasts for the measurement, and what is at 16 bits is no peer."""
    cell = bench.grid("cpu", ["forward"], ["tf32"], [8], [16], ["full"])[0]
    before = torch.get_float32_matmul_precision()
    seen = []
    with bench_measure.matmul_precision("high"):
        seen.append(torch.get_float32_matmul_precision())
    assert (seen, torch.get_float32_matmul_precision()) == (["high"], before)
    result = bench_measure.measure(cell, "cpu", 0.001)
    assert {bench.OURS, bench.OURS_AT_16_BITS} < set(result.seconds)
    assert result.best_peer() == bench_measure.PYTORCH
    assert torch.get_float32_matmul_precision() == before
    peers = [bench_measure.PYTORCH, bench.OURS_AT_16_BITS]
    assert f"x {bench.OURS_AT_16_BITS}" in bench_report.summary([result], peers)[0]
