# The Python environment .venv. Part of local/stages.sh.

# ensure_python [requirements file ...]: set $python: --python if given, used as it is; else .venv, which is made once,
# updated when a requirements file changes, and made again if making it was interrupted.
ensure_python() {
  local file
  if [[ -n ${python:-} ]]; then
    command -v "$python" >/dev/null || fail "--python $python: no such program"
    return 0
  fi
  [[ $# -gt 0 ]] || set -- requirements.txt
  [[ $dry == false ]] || { plan_python "$@"; return; }
  python=.venv/bin/python
  environment_is_whole && environment_is_new "$@" || make_environment "$@"
  for file in .venv/lib/python3*/site-packages; do  # so that `.venv/bin/python local/decode.py` finds its modules
    [[ -f $file/recipe.pth ]] || printf '%s\n' "$PWD" > "$file/recipe.pth"
  done
}

environment_is_whole() { [[ ! -e .venv/.unfinished ]] && .venv/bin/python -c 'import pip' 2>/dev/null; }

# add_pip: to an environment that has none, such as one of `uv venv`; its packages stay.
add_pip() { [[ ! -e .venv/.unfinished ]] && .venv/bin/python -m ensurepip >/dev/null 2>&1 && environment_is_whole; }

environment_is_new() {
  local file
  for file in "$@"; do [[ "$(cat ".venv/.installed-$file" 2>/dev/null)" == "$(cksum < "$file")" ]] || return 1; done
}

# environment_state: what ensure_python would find: .venv is missing, unfinished, old (packages must be added), or whole.
environment_state() {
  if [[ ! -x .venv/bin/python ]]; then
    echo missing
  elif [[ -e .venv/.unfinished ]] || ! .venv/bin/python -c '' 2>/dev/null; then
    echo unfinished
  elif ! environment_is_whole || ! environment_is_new "$@"; then
    echo old
  else
    echo whole
  fi
}

# usable_python: the first Python of the usual names that is new enough.
usable_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  fail "Python 3.10 or newer is needed; name one with --python"
}

# make_environment FILE...: make .venv, unless only packages must be added; one caller at a time. File .unfinished tells
# that one was killed: half a package may be there, which pip takes for a whole one.
make_environment() {
  local file candidate
  candidate=$(usable_python) || exit 1
  make_folder .venv-lock
  python=$candidate lock 5 .venv-lock/.lock --wait
  if ! environment_is_whole && ! add_pip; then
    echo "making .venv with $("$candidate" --version)"
    rm -rf .venv
    make_folder .venv
    touch .venv/.unfinished
    follow "$candidate" -m venv .venv >/dev/null 2>&1 || {
      end_if_stopped
      fail "'$candidate -m venv .venv' failed (Debian and Ubuntu: install python3-venv), or name a Python with --python"
    }
  fi
  for file in "$@"; do
    ! environment_is_new "$file" || continue
    echo "installing $file into .venv (log: .venv/install.log)"
    touch .venv/.unfinished
    follow install "$file" || { end_if_stopped; rm .venv/.unfinished; install_failed "$file"; }
    cksum < "$file" > ".venv/.installed-$file"
  done
  rm -f .venv/.unfinished
  exec 5>&-
}

install() {
  "$python" -m pip install --disable-pip-version-check --progress-bar off -r "$1" 2>&1 | tee .venv/install.log |
    awk '/^(Collecting|Processing) |^ *Downloading .*MB\)/ {sub(/ \(from .*/, ""); print "  " $0; fflush()}
      /^Installing collected/ {print "  installing"; fflush()}'
}

install_failed() {
  local reason unreachable='NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|MaxRetryError'
  reason=$(grep -m 1 '^ERROR' .venv/install.log || tail -n 1 .venv/install.log)
  if grep -qE "$unreachable" .venv/install.log; then
    reason="the package index cannot be reached ($(grep -m 1 -oE "$unreachable" .venv/install.log)); connect to the network, "
    reason+="set PIP_INDEX_URL or HTTPS_PROXY, or name a Python that has the packages with --python"
  fi
  fail "installing $1 failed: $reason (log: .venv/install.log)"
}
