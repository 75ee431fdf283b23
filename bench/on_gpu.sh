#!/usr/bin/env bash
# Everything that is to be done on a machine with a GPU, in one go: build, test, measure.
#
#     bench/on_gpu.sh OUTPUT_DIR [SECTION...]
#
# Sections, all of them if none is named, in this order:
#   build          the package and the C library
#   tests          pytest -m gpu, in parallel where pytest-xdist is installed
#   guide          the usage guide's examples
#   plain_c        attention from C, without Python
#   sanitize       memcheck and racecheck of tests/gpu/sanitize.py, where compute-sanitizer is installed
#   accuracy       errors against float64                      -> accuracy_cuda.csv
#   tf32           fp32 where TF32 is allowed: errors and speed, on an H100 or H200
#   bench          speed against PyTorch's                     -> bench_cuda.csv, bench_cuda.png
#   skewed         the same where a GPU is hard to fill         -> skewed_cuda.csv
#   deterministic  what a fixed order of sums costs            -> deterministic_cuda.csv
#   startup        first calls                                 -> startup_cuda.csv
#   tuner          its choice beside an exhaustive search's    -> tuner_cuda.csv
#   smallest       what a call costs                           -> smallest_cuda.csv
#   demo           the demo in fp32 and bf16                   -> demo.png, bf16/demo.png
#
# What they print goes to OUTPUT_DIR/log.txt, which grows with each run; a summary comes last. Each section has a time
# limit and goes on without the ones before it. Status 1 if one failed. PYTHON is the interpreter (default: python3); it
# must have PyTorch. BENCH_ARGS is handed to the command of the section `bench`.
#
# python bench/update_readme.py OUTPUT_DIR then puts the numbers into README.md and docs/performance.md.
set -uo pipefail

all=(build tests guide plain_c sanitize accuracy tf32 bench skewed deterministic startup tuner smallest demo)
if (($# == 0)) || [[ $1 == -* ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
  exit 2
fi
mkdir -p "$1" || exit
output=$(cd "$1" && pwd)
shift
sections=("$@")
((${#sections[@]})) || sections=("${all[@]}")
for section in "${sections[@]}"; do
  [[ " ${all[*]} " == *" $section "* ]] || { echo "$section is none of: ${all[*]}" >&2; exit 2; }
done

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/python${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
log=$output/log.txt
SKIPPED=77

within() { # SECONDS COMMAND...
  echo "+ ${*:2}"
  timeout --kill-after=10 "$@"
}

run_section() {
  case $1 in
    build)
      within 120 make -j "$(nproc)" PYTHON="$python" python/flash_attention/_flash_attention.so all &&
        within 60 "$python" -m flash_attention info
      ;;
    tests)
      local parallel=()
      "$python" -c 'import xdist' 2>/dev/null && parallel=(-n "$(($(nproc) < 12 ? $(nproc) : 12))")
      within 600 "$python" -m pytest -q -m gpu "${parallel[@]}"
      ;;
    guide) within 120 "$python" -m pytest -q tests/test_guide.py -m gpu ;;
    plain_c) within 60 build/plain_c cuda ;;
    sanitize)
      local tool
      tool=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer) || return $SKIPPED
      within 200 "$tool" --tool memcheck --error-exitcode 1 "$python" tests/gpu/sanitize.py &&
        within 400 "$python" tests/gpu/racecheck.py
      ;;
    accuracy) within 400 "$python" bench/cuda_accuracy.py --output "$output" ;;
    tf32) within 180 "$python" bench/cuda_one_product.py ;;
    bench)
      # shellcheck disable=SC2086 # several arguments are meant
      within 400 "$python" -m flash_attention bench --device cuda --output "$output" ${BENCH_ARGS:-}
      ;;
    skewed) within 300 "$python" -m flash_attention bench --device cuda --skewed --output "$output" ;;
    deterministic) within 90 "$python" bench/cuda_deterministic.py --output "$output" ;;
    startup) within 300 "$python" -m flash_attention bench --device cuda --startup --output "$output" ;;
    tuner) within 300 "$python" -m flash_attention bench --device cuda --tuner --output "$output" ;;
    smallest) within 120 "$python" -m flash_attention bench --device cuda --smallest --output "$output" ;;
    demo)
      within 180 "$python" examples/demo.py --device cuda --dtype fp32 --output "$output" &&
        within 180 "$python" examples/demo.py --device cuda --dtype bf16 --output "$output/bf16"
      ;;
  esac
}

failed=0 summary=()
for section in "${sections[@]}"; do
  echo "== $section" | tee -a "$log"
  begin=$(wc -l <"$log")
  SECONDS=0
  run_section "$section" >>"$log" 2>&1
  status=$? shown=4
  case $status in
    0) word=ok ;;
    "$SKIPPED") word=skipped ;;
    124 | 137) word='OUT OF TIME' failed=1 shown=40 ;;
    *) word="FAILED ($status)" failed=1 shown=40 ;;
  esac
  tail -n "+$((begin + 1))" "$log" | tail -n "$shown"
  summary+=("$(printf '%-13s %4d s  %s' "$section" "$SECONDS" "$word")")
  echo "${summary[-1]}" >>"$log"
done
printf '%s\n' '' 'Summary' "${summary[@]}"
ls -l "$output"
exit "$failed"
