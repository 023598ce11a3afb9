#!/usr/bin/env bash
# All checks of this repository. Each runs even where one before it failed; the last line sums them up.
set -uo pipefail
here=$(dirname -- "$0")
[[ -f $here/local/stages.sh ]] || here=$(dirname -- "$(realpath -- "$0")")  # this is called through a link
CDPATH='' cd -- "$here"
source local/stages.sh

usage() {
  cat <<EOF
usage: ./test.sh [--fast] [--python PROGRAM] [-- PYTEST ARGUMENTS]

Runs ruff, mypy, a syntax check of the shell scripts and the tests; then, where Python 3.11 is found on x86-64 Linux,
the tests that need k2 and 20 training steps with its loss, in an environment of their own. What is skipped is named.

  --fast            leaves out the slow tests and k2
  --python PROGRAM  a Python with requirements.txt, -dev.txt and -export.txt installed (default: .venv, made by this)
  -- ARGUMENTS      handed to pytest, such as -k greedy or tests/test_wer.py; then nothing but pytest runs
EOF
}

fast=false python='' pytest_args=()
passed=0 failed=0 skipped=0
# Most tests wait for one thread; a process takes up to 2 GB. The tests of one file share what it has made.
cores=$(usable_cores)
workers=(-n "$((cores < 4 ? cores : 4))" --dist loadfile)
k2_python=.venv-k2/bin/python

main() {
  local marks='' k2=false
  while [[ $# -gt 0 ]]; do
    case $1 in
      --help|-h) usage; exit 0 ;;
      --fast) fast=true; shift ;;
      --python) [[ $# -ge 2 ]] || fail "option --python needs a value"; python=$2; shift 2 ;;
      --python=*) python=${1#*=}; shift ;;
      --) shift; pytest_args=("$@"); break ;;
      *) fail "unknown argument '$1' (see ./test.sh --help)" ;;
    esac
  done
  ensure_python requirements.txt requirements-dev.txt requirements-export.txt
  if [[ ${#pytest_args[@]} -gt 0 ]]; then
    exec "$python" -m pytest -rfEs "${pytest_args[@]}"
  fi

  check "ruff" "$python" -m ruff check .
  check "mypy" "$python" -m mypy
  check "shell syntax" shell_syntax
  [[ $fast == false ]] || marks='not slow and not k2'
  if [[ $fast == false ]] && k2_possible; then
    marks='not k2'
    tests "tests" "$python" "${workers[@]}" -m "$marks"
    make_folder .venv-lock
    lock 5 .venv-lock/.lock --wait  # one of two makes it
    check "k2 environment" ensure_k2 && k2=true
    exec 5>&-
    if [[ $k2 == true ]]; then
      tests "tests with k2" "$k2_python" -m k2
      check "training with k2" train_with_k2
    fi
  else
    tests "tests" "$python" "${workers[@]}" ${marks:+-m "$marks"}
  fi
  echo
  echo "$passed passed, $failed failed, $skipped skipped"
  [[ $failed -eq 0 ]]
}

# check TITLE COMMAND...: run one check and count it.
check() {
  local title=$1
  shift
  echo "== $title"
  if "$@"; then
    passed=$((passed + 1))
  else
    echo "FAILED: $title"
    failed=$((failed + 1))
    return 1
  fi
}

# tests TITLE PYTHON ARGUMENTS...: run pytest, add what its closing line counts; no test at all is a failure.
tests() {
  local title=$1 interpreter=$2 log counts
  shift 2
  echo "== $title"
  log=$(mktemp)
  "$interpreter" -m pytest -rfEs --durations=10 "$@" 2>&1 | tee "$log"
  local status=${PIPESTATUS[0]}
  counts=$(tail -n 1 "$log" | grep -oE '[0-9]+ (passed|failed|errors?|skipped)')
  rm -f "$log"
  while read -r n what; do
    case $what in
      passed) passed=$((passed + n)) ;;
      skipped) skipped=$((skipped + n)) ;;
      failed|error*) failed=$((failed + n)) ;;
    esac
  done <<< "$counts"
  if [[ $status -ne 0 ]]; then
    echo "FAILED: $title"
    [[ $counts == *failed* || $counts == *error* ]] || failed=$((failed + 1))
  fi
}

shell_syntax() {
  local file status=0
  for file in *.sh local/*.sh egs/*/*.sh .ci/run; do
    [[ ! -e $file ]] || bash -n "$file" || status=1
  done
  return $status
}

# k2_possible: find the Python that the wheel of k2 is for, as $base_python; else name what is skipped.
k2_possible() {
  local reason="no Python 3.11 found"
  for base_python in python3.11 python3 "$python"; do
    if [[ "$("$base_python" -c 'import sys; print(*sys.version_info[:2], sep=".")' 2>/dev/null)" == 3.11 ]]; then
      [[ "$(uname -sm)" != "Linux x86_64" ]] || return 0
      reason="not on x86-64 Linux"
    fi
  done
  echo "skipped: the tests with k2 and training with its loss ($reason)"
  skipped=$((skipped + 1))
  return 1
}

# ensure_k2: .venv-k2 as requirements-k2.txt describes it, with the other requirements at the versions used elsewhere.
ensure_k2() {
  local sum log=.venv-k2/install.log pip=("$k2_python" -m pip --disable-pip-version-check install --progress-bar off)
  sum=$({ declare -f ensure_k2; cat requirements*.txt; } | cksum)
  [[ "$(cat .venv-k2/installed 2>/dev/null)" != "$sum" ]] || return 0
  echo "making .venv-k2 with $base_python ($("$base_python" --version)); 4 GB, a few minutes (log: $log)"
  rm -rf .venv-k2
  "$base_python" -m venv .venv-k2 || return 1
  grep -hvE '^(torch|torchaudio|numpy|matplotlib|playwright|ruff|mypy|distributed|types-.*)[=>]' requirements.txt requirements-dev.txt \
    > .venv-k2/requirements.txt
  # scipy resamples for lhotse in torchaudio's place; six is what this torch's TensorBoard writer imports.
  {
    "${pip[@]}" pip==23.2.1 &&
      "${pip[@]}" -r .venv-k2/requirements.txt torch==1.13.1 'numpy<2' scipy six graphviz typing-extensions &&
      "${pip[@]}" --no-deps -r requirements-k2.txt
  } > "$log" 2>&1 || { tail -n 20 "$log"; return 1; }
  "$k2_python" -c 'import k2' && echo "$sum" > .venv-k2/installed
}

# train_with_k2: 20 steps on the corpus tiny; the short warm-up brings the pruned loss in at step 10.
train_with_k2() {
  local exp status
  exp=$(mktemp -d)
  ./prepare.sh --corpus tiny --python "$python" &&
    "$k2_python" -m local.train --conf egs/tiny/conf/tiny.yaml --data-dir data/tiny --exp-dir "$exp" \
      loss.backend=k2 train.max_steps=20 train.max_duration=20 train.warm_step=5 train.log_every=1 &&
    "$k2_python" - "$exp/train.csv" <<'EOF'
import csv, math, sys
losses = [float(row["loss"]) for row in csv.DictReader(open(sys.argv[1]))]
sys.exit(0 if len(losses) == 20 and all(map(math.isfinite, losses)) else f"20 finite losses expected, not {losses}")
EOF
  status=$?
  rm -rf "$exp"
  return $status
}

main "$@"; exit
