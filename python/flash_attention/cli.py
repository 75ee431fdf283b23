"""The command line: what is here, what is generated, what is cached, how fast it is."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flash_attention import _native, cache_archive, emulate_command, tune_command
from flash_attention.arguments import numbers, positive, several

ENVIRONMENT = {
    "FLASH_ATTENTION_CACHE_DIR": "where kernels and tuning records are kept",
    "FLASH_ATTENTION_CACHE_SIZE": "most bytes to keep, with K, M or G; 1G if not set",
    "FLASH_ATTENTION_CPU_ISA": "avx2, avx512, avx512_bf16, avx512_amx or neon; the best there is if not set",
    "FLASH_ATTENTION_CUDA_ARCH": "sm_90 on an sm_90a device: portable kernels only; the device's own if not set",
    "FLASH_ATTENTION_AUTOTUNE": "0: best guess; 1 (if not set): time some; max: time all; pinned: only what is cached",
    "FLASH_ATTENTION_VERBOSE": "1: say on standard error what is compiled and tuned",
    "CC": "C compiler with its arguments; cc, gcc or clang if not set",
    "CUDA_HOME": "where NVRTC is looked for if Python's packages bring none; CUDA_PATH after it",
    "XDG_CACHE_HOME": "the cache is in flash_attention below it; ~/.cache if not set",
}

EPILOG = """\
examples:
  python -m flash_attention info
  python -m flash_attention source --op forward --dtype fp32 --head-dim 64 --target cpu:avx2 | less
  python -m flash_attention compile --op backward --dtype bf16 --head-dim 128 --causal
  python -m flash_attention source --template cuda/ptx.h --set op=forward --set dtype_16=bf16
  python -m flash_attention emulate --op backward --dtype bf16 --head-dim 64 --causal
  python -m flash_attention tune --dtype bf16 --head-dim 128 --heads 16 --seqlen 512,2048,8192 --causal
  python -m flash_attention cache verify
  python -m flash_attention cache export kernels.tar
  python -m flash_attention bench --quick
  python -m flash_attention bench --tuner

environment:
""" + "\n".join(f"  {name:28}{meaning}" for name, meaning in ENVIRONMENT.items())


class CommandError(Exception):
    """One sentence for the user; ends the program with status 1."""


def native_problem(arguments: argparse.Namespace) -> _native.Problem:
    for name in ("op", "dtype", "head_dim"):
        if getattr(arguments, name) is None:
            raise CommandError(f"--{name.replace('_', '-')} is missing: a problem has --op, --dtype and --head-dim")
    return _native.problem(
        op=arguments.op,
        dtype=arguments.dtype,
        head_dim=arguments.head_dim,
        head_dim_v=arguments.head_dim_v or arguments.head_dim,
        is_causal=arguments.causal,
        target=arguments.target or _native.device_target("cpu"),
        deterministic=arguments.deterministic,
        precision=arguments.precision,
    )


def run_info(arguments: argparse.Namespace) -> None:
    """Versions, devices, compilers, the cache, and every environment variable with its value."""
    import torch

    print(f"Python: {platform.python_version()}, {platform.platform()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    print(f"PyTorch: {torch.__version__} ({cuda}), {torch.get_num_threads()} threads")
    print(f"GPUs that PyTorch can use: {torch.cuda.device_count()}")
    print(_native.info().rstrip())
    print("Environment:")
    for name, meaning in ENVIRONMENT.items():
        print(f"  {name}={os.environ[name]}" if name in os.environ else f"  {name} is not set ({meaning})")


def template_source(arguments: argparse.Namespace) -> str:
    """The template of --template, expanded with what --set says."""
    constants: dict[str, str] = {}
    for item in arguments.set:
        name, equals, value = item.partition("=")
        if not name or not equals or "," in value:
            raise CommandError(f"--set is {item!r}; it must be name=value, without a comma")
        constants[name] = value
    return _native.expand(arguments.template, constants)


def run_source(arguments: argparse.Namespace) -> None:
    """Print the generated source; the config that was used is in its first lines."""
    if arguments.template:
        sys.stdout.write(template_source(arguments))
        return
    source, _ = _native.source(native_problem(arguments), arguments.config)
    sys.stdout.write(source)


def run_compile(arguments: argparse.Namespace) -> None:
    """Compile a kernel outside of the cache and say what came of it."""
    if arguments.template:
        source, config = template_source(arguments), ",".join(arguments.set)
        compiled = _native.compile_source(arguments.target or _native.device_target("cpu"), source)
    else:
        problem = native_problem(arguments)
        source, config = _native.source(problem, arguments.config)
        compiled = _native.compile_kernel(problem, arguments.config)
    print(f"config: {config}")
    print(f"source: {len(source.encode())} bytes, {source.count(chr(10))} lines")
    print(f"compiler: {compiled.compiler}")
    print(f"command: {compiled.command}")
    print(f"time: {compiled.seconds:.2f} s")
    print(f"size: {len(compiled.image)} bytes")
    if compiled.registers:
        print(f"registers: {compiled.registers} of a thread, {compiled.spill_bytes} bytes spilled")
        print(f"static shared memory: {compiled.shared_bytes} bytes of a block")
    if compiled.log.strip():
        print(f"compiler's messages:\n{compiled.log.rstrip()}")
    if arguments.output:
        with open(arguments.output, "wb") as file:
            file.write(compiled.image)
        print(f"written to {arguments.output}")


def run_configs(arguments: argparse.Namespace) -> None:
    """Print the configs that the tuner would choose from, best guess first."""
    print("\n".join(_native.list_configs(native_problem(arguments))))


def run_cache(arguments: argparse.Namespace) -> None:
    """List, check or empty the cache, carry it elsewhere, or say where it is."""
    has_file = arguments.action in ("export", "import")
    if has_file and not arguments.file:
        raise CommandError(f"cache {arguments.action} needs a FILE: `cache {arguments.action} kernels.tar`")
    if arguments.file and not has_file:
        raise CommandError(f"FILE is {arguments.file!r}; cache {arguments.action} has none, only export and import do")
    if arguments.target and arguments.action != "export":
        raise CommandError(f"--target is {arguments.target!r}; only cache export has it")
    if arguments.action == "export":
        run_export(Path(arguments.file), arguments.target or "")
    elif arguments.action == "import":
        run_import(Path(arguments.file))
    elif arguments.action == "path":
        print(_native.cache_path())
    elif arguments.action == "clear":
        print(f"{_native.cache_clear()} entries removed from {_native.cache_path()}")
    else:
        print_entries(verify=arguments.action == "verify")


def run_export(path: Path, target: str) -> None:
    done = cache_archive.export_entries(path, target)
    print(f"{done.kernels} kernels and {done.records} tuning records, {done.size} bytes, written to {path}")
    print(f"cache: {_native.cache_path()}")
    if done.damaged:
        print(f"{done.damaged} damaged entries were left out; each is made anew when it is needed")


def run_import(path: Path) -> None:
    done = cache_archive.import_entries(path)
    for name, reason in done.refused:
        print(f"refused {name!r}: {reason}")
    print(f"{done.stored} entries imported, {done.present} already present, {len(done.refused)} refused")
    print(f"cache: {_native.cache_path()}")
    if done.lost:
        raise CommandError(
            f"{done.lost} entries of {path} had to make room for others: raise FLASH_ATTENTION_CACHE_SIZE "
            f"({os.environ.get('FLASH_ATTENTION_CACHE_SIZE', '1G')}) and import again"
        )
    if done.refused:
        raise CommandError(f"{len(done.refused)} entries of {path} were refused; export it again")


def print_entries(verify: bool) -> None:
    """One line an entry; with `verify`, fail if one is damaged."""
    entries = _native.cache_entries(verify)
    if entries:
        print(f"{'key':34}{'kind':8}{'bytes':>9}  {'last used':18}problem: config")
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        fields = dict(field.partition("=")[::2] for field in entry.text.split(";"))
        about = f"{fields.get('problem', '')}: {fields.get('config', '')}" if entry.valid else f"DAMAGED {entry.text}"
        print(f"{entry.key:34}{entry.kind:8}{entry.size:>9}  {when}  {about}")
    print(f"{len(entries)} entries, {sum(entry.size for entry in entries)} bytes in {_native.cache_path()}")
    damaged = sum(not entry.valid for entry in entries)
    if verify and damaged:
        raise CommandError(f"{damaged} of {len(entries)} entries are damaged; each is made anew when it is needed")
    if verify:
        print("all entries are intact")


def run_bench(arguments: argparse.Namespace) -> None:
    """Measure against PyTorch on this machine: a table here, CSV files and a picture in the output folder."""
    from flash_attention import bench_command

    bench_command.run(arguments)


def run_emulate(arguments: argparse.Namespace) -> None:
    """Run CUDA kernels on this machine's CPU and look for what is wrong with them."""
    if wrong := emulate_command.run(arguments):
        raise CommandError(wrong)


def run_tune(arguments: argparse.Namespace) -> None:
    """Find the best kernels for a list of problems now, so that no later call has to."""
    if wrong := tune_command.run(arguments):
        raise CommandError(wrong)


def add_problem_arguments(parser: argparse.ArgumentParser, default_target: str = "this machine's CPU") -> None:
    parser.add_argument("--op", choices=("forward", "backward"))
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"))
    parser.add_argument("--head-dim", type=positive, metavar="N", help="of query and key, 1 to 256")
    parser.add_argument("--head-dim-v", type=positive, metavar="N", help="of value and output (default: --head-dim)")
    parser.add_argument("--causal", action="store_true", help="query i sees keys 0 to i")
    parser.add_argument(
        "--deterministic", action="store_true", help="the same call gives the same bits (on a CPU it always does)"
    )
    parser.add_argument(
        "--precision",
        choices=("full", "reduced"),
        default="full",
        help="of fp32; reduced: where there is such a kernel, what torch.set_float32_matmul_precision('high') allows",
    )
    parser.add_argument(
        "--target",
        help="cpu:avx2, cpu:avx512, cpu:avx512_bf16, cpu:avx512_amx, cpu:neon, cuda:sm_80, ... "
        f"(default: {default_target})",
    )


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="", metavar="K=V,...", help="settings to change from the best guess, such as block_m=64"
    )


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--template", metavar="NAME", help="any template instead of a problem's: cuda/matmul.cu")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="K=V",
        help="a constant of --template, a number or text; repeatable",
    )


def add_bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: cuda where there is a GPU that is supported"
    )
    parser.add_argument("--quick", action="store_true", help="a small grid with short timings, for a first look")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--startup", action="store_true", help="measure importing and first calls instead of the grid")
    instead.add_argument("--smallest", action="store_true", help="measure what the smallest calls cost instead")
    instead.add_argument(
        "--tuner", action="store_true", help="measure what the tuner chooses against what an exhaustive search does"
    )
    instead.add_argument(
        "--skewed",
        action="store_true",
        help="a grid of shapes that are short, few, or not square; default head dim: 128",
    )
    parser.add_argument("--ops", type=several("forward", "backward"), metavar="LIST", help="default: forward,backward")
    parser.add_argument(
        "--dtypes",
        type=several("fp32", "fp16", "bf16", "tf32"),
        metavar="LIST",
        help="default: fp32,bf16,fp16; on a GPU fp32,bf16. tf32: fp32 under torch.set_float32_matmul_precision('high')",
    )
    parser.add_argument("--head-dims", type=numbers, metavar="LIST", help="default: 64,128; on a GPU 64,128,256")
    parser.add_argument(
        "--seqlens", type=numbers, metavar="LIST", help="default: 512,1024,2048,4096; on a GPU up to 16384"
    )
    parser.add_argument("--masks", type=several("full", "causal"), metavar="LIST", help="default: full,causal")
    parser.add_argument("--batch", type=positive, metavar="N", help="default: 1; on a GPU 16384 / S")
    parser.add_argument("--heads", type=positive, metavar="N", help="default: 8; on a GPU 2048 / d")
    parser.add_argument("--threads", type=positive, metavar="N", help="of a CPU; default: PyTorch's own choice")
    parser.add_argument(
        "--seconds", type=float, metavar="X", help="time for each number (default: 1; on a GPU 0.05; less with --quick)"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=220,
        metavar="X",
        help="--tuner begins no shape after so many seconds (default: 220)",
    )
    parser.add_argument("--output", default="results", metavar="DIR", help="folder of the files (default: %(default)s)")


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m flash_attention",
        description="Exact attention whose kernels are generated, compiled and tuned on this machine.",
        epilog=EPILOG,
        formatter_class=raw,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], text: str, description: str = "", epilog: str = ""
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=description or text, epilog=epilog, formatter_class=raw
        )
        command.set_defaults(run=run)
        return command

    add("info", run_info, "versions, devices, compilers, the cache, environment variables")
    source = add("source", run_source, "print the source that is generated for a problem")
    add_problem_arguments(source)
    add_config_argument(source)
    add_template_arguments(source)
    command = add("compile", run_compile, "compile a kernel without the cache; print size, time and compiler")
    add_problem_arguments(command)
    add_config_argument(command)
    add_template_arguments(command)
    command.add_argument("-o", "--output", metavar="FILE", help="keep the compiled kernel in this file")
    add_problem_arguments(add("configs", run_configs, "list the configs that the tuner chooses from, best guess first"))
    emulate = add(
        "emulate",
        run_emulate,
        "run a CUDA kernel on the CPU and look for what is wrong with it",
        emulate_command.DESCRIPTION,
        emulate_command.EPILOG,
    )
    add_problem_arguments(emulate, "cuda:sm_80; those of a CPU do not run in it")
    add_config_argument(emulate)
    emulate_command.add_arguments(emulate)
    tune_command.add_arguments(
        add(
            "tune",
            run_tune,
            "compile and tune for a list of shapes ahead of time",
            tune_command.DESCRIPTION,
            tune_command.EPILOG,
        )
    )
    cache = add(
        "cache",
        run_cache,
        "list, verify or clear what is kept on disk, carry it elsewhere, or say where it is",
        "list: every entry. verify: read and check every entry; status 1 if one is damaged.\n"
        "clear: remove all. path: where the cache is.\n"
        "export FILE: write all intact entries to a file. import FILE: take those that are not there yet;\n"
        "each is checked to the last byte; status 1 if one is refused. A kernel is code that will run: import\n"
        "only files of people whom you trust.",
    )
    cache.add_argument("action", choices=("list", "verify", "clear", "path", "export", "import"))
    cache.add_argument("file", nargs="?", metavar="FILE", help="of export and import: a tar archive")
    cache.add_argument("--target", help="export only kernels and records of this target (cuda:sm_90a) or kind (cuda)")
    add_bench_arguments(
        add(
            "bench",
            run_bench,
            "measure against PyTorch's attention on this machine: table, CSV, PNG",
            "All are called in turn in one process; numbers are medians. Speeds count 4*B*H*S*S*d operations\n"
            "forward, half when causal, and 2.5 times as many backward. A ratio is PyTorch's time over ours. On a\n"
            "GPU PyTorch is measured with each of its backends, and times are those of device events.",
        )
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        sys.exit(130)
    except (CommandError, ValueError, TypeError, NotImplementedError, RuntimeError, OSError) as error:
        sys.exit(f"flash_attention: {error}")
