# What prepare.sh and run.sh share: options, the Python environment, stages that are skipped when done. Sourced, not run.
#
# The caller sets `options` (names with underscores), gives them their defaults, defines `usage` (and, where it has stages
# with names, lists these in `named_stages`), then calls
#   parse_options "$@"; resolve_options; ensure_python; run_stage ...

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# parse_options "$@": --name VALUE or --name=VALUE for every name in $options, --force, --help, key.sub=value.
parse_options() {
  local name value
  force=${force:-false} overrides=()
  while [[ $# -gt 0 ]]; do
    case $1 in
      --help|-h) usage; exit 0 ;;
      --force) force=true; shift; continue ;;
      --*=*) name=${1%%=*} value=${1#*=}; name=${name#--} ;;
      --*) name=${1#--}; [[ $# -ge 2 || " $options " != *" ${name//-/_} "* ]] || fail "option --$name needs a value"
           value=${2-} ;;
      [A-Za-z_]*.*=*) overrides+=("$1"); shift; continue ;;
      *) fail "unknown argument '$1' (see $0 --help)" ;;
    esac
    [[ " $options " == *" ${name//-/_} "* && $name != *_* ]] || fail "unknown option '--$name' (see $0 --help)"
    printf -v "${name//-/_}" '%s' "$value"
    [[ $1 == --*=* ]] && shift || shift 2
  done
  for name in stage stop_stage; do
    [[ ${!name} =~ ^-?[0-9]+$ || ($name == stage && " ${named_stages:-} " == *" $stage "*) ]] || fail "option --${name//_/-} needs a whole number, not '${!name}'"
  done
}

# resolve_options: fill in what follows from the corpus: its conf, its data and experiment folders, the number of jobs.
resolve_options() {
  [[ -f egs/$corpus/corpus.yaml ]] || fail "no corpus '$corpus': egs/ has $(cd egs && echo */ | tr -d /)"
  if [[ -z $conf ]]; then  # an experiment's name chooses its conf, then the corpus's
    for conf in "egs/$corpus/conf/$(basename "${exp_dir:-$corpus}").yaml" "egs/$corpus/conf/$corpus.yaml" conf/base.yaml; do
      [[ ! -f $conf ]] || break
    done
  fi
  [[ -f $conf ]] || fail "--conf $conf: no such file"
  [[ -z $corpus_dir || -e $corpus_dir ]] || fail "--corpus-dir $corpus_dir: no such folder"
  data_dir=${data_dir:-data/$corpus}
  nj=${nj:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}
  [[ $nj =~ ^[1-9][0-9]*$ ]] || fail "option --nj needs a whole number above 0, not '$nj'"
}

# ensure_python [requirements file ...]: set $python to one that has them: --python where given (taken as it is), else
# .venv, made once and brought up to date when a requirements file changes.
ensure_python() {
  local file candidate marker sum
  if [[ -n ${python:-} ]]; then
    command -v "$python" >/dev/null || fail "--python $python: no such program"
    return 0
  fi
  [[ $# -gt 0 ]] || set -- requirements.txt
  if ! .venv/bin/python -c '' 2>/dev/null; then
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 none; do
      ! "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || break
    done
    [[ $candidate != none ]] || fail "Python 3.10 or newer is needed; name one with --python"
    echo "making .venv with $("$candidate" --version)"
    rm -rf .venv
    "$candidate" -m venv .venv >/dev/null 2>&1 ||
      fail "'$candidate -m venv .venv' failed (Debian and Ubuntu: install python3-venv), or name a Python with --python"
  fi
  python=.venv/bin/python
  for file in "$@"; do
    marker=.venv/.installed-$file sum=$(cksum < "$file")
    [[ "$(cat "$marker" 2>/dev/null)" == "$sum" ]] && continue
    echo "installing $file into .venv (log: .venv/install.log)"
    "$python" -m pip install --disable-pip-version-check --progress-bar off -r "$file" 2>&1 | tee .venv/install.log |
      awk '/^(Collecting|Processing) |^ *Downloading .*MB\)/ {sub(/ \(from .*/, ""); print "  " $0; fflush()}
        /^Installing collected/ {print "  installing"; fflush()}' ||
      fail "installing $file failed: $(grep -m1 '^ERROR' .venv/install.log || tail -n 1 .venv/install.log)"
    printf '%s\n' "$sum" > "$marker"
  done
}

# fingerprint PATH: content of a small file, size and time of a large one, the listing of a folder.
fingerprint() {
  if [[ -d $1 ]]; then
    (cd "$1" && { ls -lRn --time-style=+%s . 2>/dev/null || ls -lRnT .; } | cksum)
  elif [[ $(wc -c < "$1") -gt 16000000 ]]; then
    { ls -ln --time-style=+%s "$1" 2>/dev/null || ls -lnT "$1"; } | cksum
  else
    cksum < "$1"
  fi
}

# conf_files FILE: FILE after the files it includes (relative to conf/ or to itself), as local/config/load.py reads them.
conf_files() {
  local name
  for name in $(awk '/^include:/ {on = 1; sub(/^include:/, "")} /^[A-Za-z_]/ {on = 0}
      on {sub(/#.*/, ""); gsub(/[][,"\047]|^ *- /, " "); print}' "$1"); do
    if [[ -f conf/$name ]]; then conf_files "conf/$name"; elif [[ -f ${1%/*}/$name ]]; then conf_files "${1%/*}/$name"; fi
  done
  printf '%s\n' "$1"
}

# config_values KEY...: `key.sub value` of these keys and all below them, as base.yaml, the conf and the overrides leave
# them. It reads YAML only as far as is needed to see that something changed, so that skipping starts no Python.
config_values() {
  { { echo conf/base.yaml; conf_files "$conf"; } | while read -r file; do printf -- '---\n'; cat "$file"; done
    printf -- '---\n'
    printf '%s\n' ${overrides[@]+"${overrides[@]}"}
  } | awk -v wanted="$*" '
    function keep(name, value,    i, c, nested, from, at) {  # {a: 1, b: {c: 2}} is taken apart
      if (value ~ /^\{.*\}$/) {
        value = substr(value, 2, length(value) - 2) ","
        for (from = i = 1; i <= length(value); i++) {
          c = substr(value, i, 1)
          nested += (c ~ /[[{]/) - (c ~ /[]}]/)
          if (c == "," && !nested && (at = index(substr(value, from, i - from), ":"))) {
            keep(name "." substr(value, from, at - 1), substr(value, from + at, i - from - at))
            from = i + 1
          }
        }
        return
      }
      if (!(name in values)) names[++count] = name
      values[name] = value
    }
    /^---/ {depth = 0; next}
    /^[A-Za-z_][A-Za-z0-9_.]*=/ {gsub(/[ "\047]/, ""); at = index($0, "="); keep(substr($0, 1, at - 1), substr($0, at + 1)); next}
    {sub(/(^|[ \t]+)#.*/, "")}
    /^ *[A-Za-z_][A-Za-z0-9_]*:/ {
      match($0, /^ */); indent = RLENGTH
      while (depth > 0 && indents[depth] >= indent) depth--
      at = index($0, ":"); value = substr($0, at + 1); gsub(/[ "\047]/, "", value)
      indents[++depth] = indent; path[depth] = (depth > 1 ? path[depth - 1] "." : "") substr($0, indent + 1, at - indent - 1)
      if (value != "") keep(path[depth], value)
      next
    }
    NF {gsub(/[ "\047]/, ""); keep(path[depth], ($0 ~ /^-/ ? values[path[depth]] : "") $0)}
    END {
      n = split(wanted, keys, " ")
      for (i = 1; i <= count; i++) for (k = 1; k <= n; k++)
        if (index(names[i] ".", keys[k] ".") == 1 || index(keys[k] ".", names[i] ".") == 1) {
          print "config", names[i], values[names[i]]; break
        }
    }'
}

# configured PROGRAM...: run a Python program with --conf and the overrides, which thus stay out of the stage's signature.
configured() { "$python" "$@" --conf "$conf" ${overrides[@]+"${overrides[@]}"}; }

# in_parallel PROGRAM...: the same in --nj processes.
in_parallel() { configured "$@" --nproc "$nj"; }

# run_stage N TITLE MARKER [--input PATH --made-by WORDS]... [--output PATH]... [--config "KEY ..."] -- COMMAND...
# Run COMMAND unless MARKER says that it was done with the same command, inputs and values of these configuration keys,
# and every OUTPUT is there. COMMAND may be a function of the caller; see `configured`.
run_stage() {
  local n=$1 title=$2 marker=$3 input='' keys='' signature='' began outputs=true
  shift 3
  [[ $n -ge $stage && $n -le $stop_stage ]] || return 0
  while [[ $1 != -- ]]; do
    case $1 in
      --input) input=$2; [[ $3 == --made-by ]] || fail "run_stage: --input needs --made-by" ;;
      --made-by) [[ -e $input ]] || fail "stage $n ($title): $input is missing; $2 makes it"
                 signature+="input $input $(fingerprint "$input")"$'\n' ;;
      --output) [[ -e $2 ]] || outputs=false ;;
      --config) keys=$2 ;;
      *) fail "run_stage: unknown word $1" ;;
    esac
    shift 2
  done
  shift
  signature+="command $*"
  [[ -z $keys ]] || signature+=$'\n'$(config_values $keys)
  if [[ $force == false && $outputs == true && -f $marker ]]; then
    if [[ "$(cat "$marker")" == "$signature" ]]; then
      echo "stage $n: $title: done before, skipped"
      return 0
    fi
    echo "stage $n: $title: its settings or inputs changed, running again"
    { diff "$marker" - <<< "$signature" || true; } | awk '/^[<>]/ && ++k <= 4 {
      print substr((/^</ ? "  was: " : "  now: ") substr($0, 3), 1, 300)}'
  fi
  echo "stage $n: $title: started $(date '+%Y-%m-%d %H:%M:%S')"
  began=$SECONDS
  mkdir -p "$(dirname "$marker")"
  rm -f "$marker"
  "$@" || fail "stage $n ($title) failed; when mended, the same command goes on from here"
  printf '%s\n' "$signature" > "$marker.${HOSTNAME:-}.$$.tmp"  # machines that train together each write one
  mv "$marker.${HOSTNAME:-}.$$.tmp" "$marker"
  echo "stage $n: $title: done in $((SECONDS - began)) s"
}
