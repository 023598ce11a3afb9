# What prepare.sh and run.sh share: options, the Python environment, and stages that are skipped when done. Sourced, not run.
#
# The caller sets `options` (names with underscores) and their defaults, `stages` (names, in order) and `usage`, then calls
#   parse_options "$@"; resolve_options; ensure_python; read_config; check_data; stage NAME ... -- COMMAND; stage ...

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# parse_options "$@": --name VALUE or --name=VALUE for every name in $options; --force; --help; key.sub=value.
parse_options() {
  local name value paths="corpus-dir data-dir exp-dir conf checkpoint"
  force=${force:-false} overrides=() call=$0${*:+$(printf ' %q' "$@")}
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
    [[ " $paths " != *" $name "* || $value != -* ]] || value=./$value  # no program takes it for an option then
    printf -v "${name//-/_}" '%s' "$value"
    [[ $1 == --*=* ]] && shift || shift 2
  done
  first=$(stage_number --stage "$stage")
  last=$(stage_number --stop-stage "$stop_stage")
}

# stage_number OPTION VALUE: the number of a stage that is given by number or by name.
stage_number() {
  local number=0 name
  for name in $stages; do
    if [[ $2 == "$name" ]]; then echo "$number"; return; fi
    number=$((number + 1))
  done
  [[ $2 =~ ^-?[0-9]+$ ]] || fail "option $1 must be a number or one of: $stages; not '$2'"
  echo "$2"
}

# name_corpus: $name, of the folders in data/ and exp/: the corpus's, or that of --corpus-dir for one's own audio.
name_corpus() {
  name=$corpus
  [[ -z $corpus_dir || -e $corpus_dir ]] || fail "--corpus-dir $corpus_dir: no such folder"
  [[ $corpus == custom && -n $corpus_dir ]] || return 0
  name=$(basename -- "$(realpath -ms "$corpus_dir")")
  [[ $name != / ]] || name=$corpus
}

# resolve_options: the conf, the folders and the number of jobs, if they are not given. $chosen: the file that
# local/choose_conf.py writes, if there is no other conf.
resolve_options() {
  chosen=''
  [[ -f egs/$corpus/corpus.yaml ]] || fail "no corpus '$corpus': egs/ has $(cd egs && echo */ | tr -d /)"
  name_corpus
  data_dir=${data_dir:-data/$name}
  [[ " $options " != *" exp_dir "* ]] || exp_dir=${exp_dir:-exp/$name}
  if [[ -z $conf ]]; then  # egs/<corpus>/conf/<experiment>.yaml, then egs/<corpus>/conf/<corpus>.yaml
    for conf in "egs/$corpus/conf/$(basename -- "${exp_dir:-$name}").yaml" "egs/$corpus/conf/$corpus.yaml" ''; do
      [[ ! -f $conf ]] || break
    done
    [[ -n $conf ]] || chosen=$data_dir/conf.yaml conf=conf/base.yaml
    [[ ! -f $chosen ]] || conf=$chosen
  fi
  [[ -f $conf ]] || fail "--conf $conf: no such file"
  nj=${nj:-$(getconf _NPROCESSORS_ONLN)}
  [[ $nj =~ ^[1-9][0-9]*$ ]] || fail "option --nj must be a whole number above 0, not '$nj'"
}

# check_data [OPTIONS]: stop if $data_dir holds another corpus. OPTIONS: those that name other folders, for the message.
check_data() {
  local audio=()
  [[ -f $data_dir/corpus.yaml ]] || return 0
  [[ -z $corpus_dir ]] || audio=(--corpus-dir "$corpus_dir")
  "$python" -m local.check_data --data-dir "$data_dir" --corpus-yaml "egs/$corpus/corpus.yaml" "${audio[@]}" \
    "--other=${1:---data-dir and --exp-dir}" || exit 1
}

# ensure_python [requirements file ...]: set $python: --python if given, used as it is; else .venv, which is made once and
# updated when a requirements file changes.
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
  for file in .venv/lib/python3*/site-packages; do  # so that `.venv/bin/python local/decode.py` finds its modules
    [[ -f $file/recipe.pth ]] || printf '%s\n' "$PWD" > "$file/recipe.pth"
  done
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

# read_config: the configuration as lines `section.key value` (JSON values) in $config. An error in it stops here.
read_config() { config=$("$python" -m local.config --conf "$conf" "${overrides[@]}") || exit 1; }

# value_of KEY: its value; nothing for null.
value_of() {
  local value
  value=$(sed -n "s/^${1//./\\.} //p" <<< "$config")
  [[ $value != \"*\" ]] || value=$(sed 's/^"//; s/"$//; s/\\\(["\\]\)/\1/g' <<< "$value")
  [[ $value == null ]] || printf '%s' "$value"
}

# program MODULE [OPTIONS]: print and run a Python program.
program() {
  printf '+%s\n' "$(printf ' %q' "$python" -m "$@")" >&2
  "$python" -m "$@"
}

# run MODULE [OPTIONS]: the same with --conf and all overrides.
run() { program "$@" --conf "$conf" "${overrides[@]}"; }

# fingerprint PATH: of a file's content, or of the names and contents of a folder's files. Links are followed; copies are
# equal. Of audio in a folder, names and sizes count.
fingerprint() {
  local audio='.*\.\(flac\|wav\|mp3\|opus\|ogg\|m4a\|sph\|tar\)' file
  if [[ ! -d $1 ]]; then
    content "$1"
    return
  fi
  (
    cd "$1"
    find -L . -type f -iregex "$audio" -printf '%p %s\n' | sort
    find -L . -type f ! -iregex "$audio" ! -size +16384k -exec cksum {} + | sort -k 3
    find -L . -type f ! -iregex "$audio" -size +16384k | sort | while IFS= read -r file; do echo "$file $(content "$file")"; done
  ) 2>/dev/null | cksum
}

# content FILE: a check sum; above 16 MB of the size and both ends (a checkpoint ends with the check sums of its tensors).
content() {
  local size
  size=$(wc -c < "$1")
  if [[ $size -le 16777216 ]]; then cksum < "$1"; else { echo "$size"; head -c 65536 "$1"; tail -c 65536 "$1"; } | cksum; fi
}

# changes OLD NEW: what differs between two signatures, in words.
changes() {
  awk -F '\t' 'NR == FNR {old[$1] = $2; next}
    {if (!($1 in old)) print $1 " is new"; else if (old[$1] == $2) ; else if ($1 ~ /^input/) print $1 " has changed"
     else print $1 " was " old[$1] ", is " $2; delete old[$1]}
    END {for (name in old) print name " is gone"}' "$1" - <<< "$2" | sed 's/^/  /' | cut -c 1-300 | head -n 5
}

# stage NAME [--config "KEY ..."] [--input PATH --made-by STAGE]... [--watch PATH]... [--output PATH]... [--set WORDS] -- COMMAND...
# Run COMMAND (`run MODULE ...` or a function) unless it was done with the same values of these configuration keys (and
# all below them), inputs and WORDS, and every OUTPUT exists. --watch: an input that may be missing.
stage() {
  local name=$1 number marker keys='' signature='' outputs=true began=$SECONDS status=0 log=$log_dir/$1.log
  number=$(stage_number stage "$name") marker=$done_dir/$name
  shift
  [[ $number -ge $first && $number -le $last ]] || return 0
  while [[ $1 != -- ]]; do
    case $1 in
      --config) signature+=$(grep -E "^(${2// /|})[. ]" <<< "$config" | sed 's/ /\t/')$'\n' ||
                  fail "stage $name: none of the keys $2 exists" ;;
      --input) [[ -e $2 ]] || fail "stage $name: $2 is missing; stage $4 makes it"
               signature+="input $2"$'\t'$(fingerprint "$2")$'\n'; shift 2 ;;
      --watch) [[ ! -e $2 ]] || signature+="input $2"$'\t'$(fingerprint "$2")$'\n' ;;
      --output) [[ -e $2 ]] || outputs=false ;;
      --set) signature+="given keys"$'\t'$2$'\n' ;;
      --marker) marker=$done_dir/$2 ;;
      *) fail "stage: unknown word $1" ;;
    esac
    shift 2
  done
  shift
  if [[ $force == false && $outputs == true && -f $marker ]]; then
    if [[ "$(cat "$marker")"$'\n' == "$signature" ]]; then
      echo "stage $number, $name: done before, skipped"
      return 0
    fi
    echo "stage $number, $name: runs again, because"
    changes "$marker" "${signature%$'\n'}"
  fi
  echo "stage $number, $name: started $(date '+%Y-%m-%d %H:%M:%S')"
  mkdir -p "$done_dir" "$log_dir"
  rm -f "$marker"
  logged "$log" "$@" || status=$?
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${HOSTNAME:-}" "$name" "$((SECONDS - began))" "$status" \
    "$call" >> "$log_dir/journal.tsv"
  [[ $status -eq 0 ]] ||
    fail "stage $name failed (log: $log); fix the cause and run the same command again: it resumes at this stage"
  printf '%s' "$signature" > "$marker.${HOSTNAME:-}.$$.tmp"  # machines that train together each write one
  mv "$marker.${HOSTNAME:-}.$$.tmp" "$marker"
  echo "stage $number, $name: done in $((SECONDS - began)) s"
}

# logged LOG COMMAND...: run it; what it prints goes to the screen and to LOG. Progress bars go to the terminal alone.
logged() {
  local log=$1
  shift
  printf '== %s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${HOSTNAME:-}" >> "$log"
  {
    { PROGRESS_FD=9 "$@" 2>&1 >&3 3>&- | keep "$log" >&2; } 3>&1 | keep "$log"
  } 9>&2
}

# keep LOG: pass standard input on and append it to LOG, until its end, whatever signals come.
keep() { (trap '' INT TERM HUP; exec tee -a "$1"); }
