# What prepare.sh and run.sh share: options, the Python environment, and stages that are skipped when done. Sourced, not run.
#
# The caller sets `options` (names with underscores) and their defaults, `stages` (names, in order) and `usage`, then calls
#   parse_options "$@"; resolve_options; ensure_python; read_config; check_data; stage NAME ... -- COMMAND; stage ...

export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
unset CDPATH                                      # cd would go elsewhere, and print
repository=$PWD called_from=${OLDPWD:-$PWD}       # the caller has just changed to the repository
child='' stopped=''                               # the running program; the signal that ends this script
force=false

source local/environment.sh
source local/signatures.sh
source local/dry_run.sh

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# on_signal NAME: pass it on to the running program, and end when that has ended; see follow.
on_signal() {
  stopped=$1
  [[ -n $child ]] || end_if_stopped
  kill -s "$1" "$child" 2>/dev/null || true
}
for signal in INT TERM HUP; do trap "on_signal $signal" $signal; done

# end_if_stopped: end with 130, 143 or 129 after a signal; the program has said why.
end_if_stopped() { [[ -z $stopped ]] || exit $((128 + $(kill -l "$stopped"))); }

# follow COMMAND...: run it in the background and wait, because bash runs no trap before a foreground command has ended.
follow() {
  local status
  (trap - INT TERM HUP QUIT; "$@") &
  child=$!
  while :; do
    status=0
    wait "$child" || status=$?
    [[ $status -gt 128 ]] && kill -0 "$child" 2>/dev/null || break  # else a signal came, and the program still runs
  done
  child=''
  return "$status"
}

# parse_options "$@": --name VALUE or --name=VALUE for every name in $options; --force; --dry-run; --help; key.sub=value.
parse_options() {
  local name value paths="corpus-dir data-dir exp-dir conf checkpoint"
  force=false overrides=() call=$0${*:+$(printf ' %q' "$@")}
  check_path "the repository's folder" "$repository"
  while [[ $# -gt 0 ]]; do
    case $1 in
      --help|-h) usage; exit 0 ;;
      --force) force=true; shift; continue ;;
      --dry-run) dry=true PYTHONDONTWRITEBYTECODE=1; export PYTHONDONTWRITEBYTECODE; shift; continue ;;
      --*=*) name=${1%%=*} value=${1#*=}; name=${name#--} ;;
      --*) name=${1#--}; [[ $# -ge 2 || " $options " != *" ${name//-/_} "* ]] || fail "option --$name needs a value"
           value=${2-} ;;
      [A-Za-z_]*.*=*)
        value=${1#*=}
        [[ -z $value || -e $value || ! -e $called_from/$value ]] || from_elsewhere "$1"
        overrides+=("$1"); shift; continue ;;
      *) fail "unknown argument '$1' (see $0 --help)" ;;
    esac
    [[ " $options " == *" ${name//-/_} "* && $name != *_* ]] || fail "unknown option '--$name' (see $0 --help)"
    if [[ " $paths " == *" $name "* || $name == python && $value == */* ]]; then
      check_path "--$name" "$value"
      [[ -z $value || $value == /* || $called_from -ef $repository ]] || from_elsewhere "--$name $value"
      [[ $value != [-\(\)\!,]* ]] || value=./$value  # no program takes it for an option then
    fi
    printf -v "${name//-/_}" '%s' "$value"
    [[ $1 == --*=* ]] && shift || shift 2
  done
  first=$(stage_number --stage "$stage")
  last=$(stage_number --stop-stage "$stop_stage")
}

# check_path WHAT PATH: stop where the programs, their tables and the markers cannot hold a path.
check_path() {
  local LC_ALL=C
  [[ $2 != *[[:cntrl:]]* ]] || fail "$1 $(printf %q "$2"): a path must not have control characters such as line breaks; rename it"
  [[ $2 != *[!\ -~]* ]] || ! command -v iconv > /dev/null || iconv -f UTF-8 -t UTF-8 <<< "$2" > /dev/null 2>&1 ||
    fail "$1 $(printf %q "$2"): the path is not UTF-8; rename it"
}

from_elsewhere() {
  fail "$1: a relative path counts from $repository, and you are in $called_from; give the whole path, or go there first"
}

# stage_number OPTION VALUE: the number of a stage that is given by number or by name. A number without a stage stops here.
stage_number() {
  local number=0 name
  for name in $stages; do
    if [[ $2 == "$name" ]]; then echo "$number"; return; fi
    number=$((number + 1))
  done
  [[ $2 =~ ^[0-9]{1,9}$ && 10#$2 -lt $number ]] || fail "option $1 must be 0 to $((number - 1)) or one of: $stages; not '$2'"
  echo $((10#$2))
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
  [[ $first -le $last ]] || fail "--stage $stage comes after --stop-stage $stop_stage, so no stage would run; change one of them"
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
  nj=${nj:-$(usable_cores)}
  [[ $nj =~ ^[1-9][0-9]*$ ]] || fail "option --nj must be a whole number above 0, not '$nj'"
}

# usable_cores: how many processors this process may use; a container or a job may have fewer than the machine.
usable_cores() { env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN; }

# check_data [OPTIONS]: stop if $data_dir holds another corpus. OPTIONS: those that name other folders, for the message.
check_data() {
  local audio=()
  [[ -f $data_dir/corpus.yaml ]] || return 0
  [[ -z $corpus_dir ]] || audio=(--corpus-dir "$corpus_dir")
  "$python" -m local.check_data --data-dir "$data_dir" --corpus-yaml "egs/$corpus/corpus.yaml" "${audio[@]}" \
    "--other=${1:---data-dir and --exp-dir}" || exit 1
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

# other_corpora: $others, the folders of key data.mix after the first, one per line; none if $data_dir is not the first.
other_corpora() {
  local folders
  folders=$(sed -n 's/^data\.mix\.\(.*\) [^ ]*$/\1/p' <<< "$config") others=''
  [[ ${folders%%$'\n'*} != "$data_dir" && ! ${folders%%$'\n'*} -ef $data_dir ]] || others=$(tail -n +2 <<< "$folders")
}

# name_tokens: the name of the folder of the tokens below $data_dir; `LangConfig.folder` of local/config/schema.py is the same.
name_tokens() {
  if [[ -n $(value_of lang.bpe_model) ]]; then
    echo lang_given
  elif [[ $(value_of lang.type) == char ]]; then
    echo lang_char
  else
    echo "lang_bpe_$(value_of lang.vocab_size)"
  fi
}

# program MODULE [OPTIONS]: print a Python program's call and become it, in a subshell of follow. It ends with this script.
program() {
  printf '+%s\n' "$(printf ' %q' "$python" -m "$@")" >&2
  [[ $dry == false ]] || return 0
  RECIPE_PARENT=$$ exec "$python" -m "$@"
}

# run MODULE [OPTIONS]: the same with --conf and all overrides.
run() { program "$@" --conf "$conf" "${overrides[@]}"; }

# make_folder PATH: with its parents; stop if files cannot be written there.
make_folder() {
  local said
  [[ $dry == false ]] || return 0
  said=$(LC_ALL=C mkdir -p -- "$1" 2>&1) || fail "$1: cannot be made: ${said##*: }"
  [[ -w $1 ]] || fail "$1: $(id -un) cannot write there"
}

# lock NUMBER FILE [--wait|--shared]: lock FILE, in the folder that it is for, until this script and all its programs have
# ended. NUMBER: of the open file, which they inherit; see local/common/locks.py, which knows 6, 7 and 8.
lock() {
  local number=$1 file=$2 status=75
  [[ $dry == false ]] || return 0
  shift 2
  while [[ $status -eq 75 ]]; do
    [[ -w $file || ! -e $file && -w ${file%/*} ]] || return 0  # a stage that must write there will say so
    eval "exec $number<>\"\$file\""  # NFS shares a lock only of a file that can be read
    status=0
    RECIPE_PARENT=$$ follow exec "$python" -m local.lock_folder --file "$number" --path "$file" --pid $$ --command "${call:-$0}" "$@" || status=$?
    end_if_stopped
  done
  [[ $status -eq 0 ]] || exit "$status"
}

# stage NAME [--config "KEY ..."] [--input PATH --made-by STAGE]... [--watch PATH]... [--output PATH]... [--set WORDS] -- COMMAND...
# Run COMMAND (`run MODULE ...` or a function) unless it was done with the same values of these configuration keys (and
# all below them), inputs and WORDS, and what it made is still there: every OUTPUT, and the same files in them.
# --watch: an input that may be missing. --also: an output that may be missing. --there: an output that others change.
# --not: below an output, but made by others. --alone FOLDER: it replaces what others may be reading in this data folder.
# --clear: an output that --force removes first.
stage() {
  local name=$1 number marker signature='' before='' now='' outputs=() excluded='' alone='' missing='' why='' log=$log_dir/$1.log
  local cleared=() there=() runs=runs
  number=$(stage_number stage "$name") marker=$done_dir/$name
  shift
  [[ $number -ge $first && $number -le $last ]] || return 0
  while [[ $1 != -- ]]; do
    case $1 in
      --config) signature+=$(grep -E "^(${2// /|})[. ]" <<< "$config" | sed 's/ /\t/')$'\n' ||
                  fail "stage $name: none of the keys $2 exists" ;;
      --input) [[ -e $2 ]] || is_planned "$2" || fail "stage $name: $2 is missing; stage $4 makes it"
               sign "$2"; shift 2 ;;
      --watch) ! [[ -e $2 ]] && ! is_planned "$2" || sign "$2" ;;
      --output) [[ -e $2 ]] || missing+="output $2 is gone"$'\n'; outputs+=("$2") ;;
      --there) [[ -e $2 ]] || missing+="output $2 is gone"$'\n'; there+=("$2") ;;
      --also) outputs+=("$2") ;;
      --not) excluded+=$2$'\n' ;;
      --set) signature+="given keys"$'\t'$2$'\n' ;;
      --marker) marker=$done_dir/$2 ;;
      --alone) alone=$2 ;;
      --clear) cleared+=("$2") ;;
      *) fail "stage: unknown word $1" ;;
    esac
    shift 2
  done
  shift
  [[ $dry == false ]] || runs="would run"
  if [[ $force == false && -f $marker ]]; then
    before=$(< "$marker") now=$(listing "${outputs[@]}")
    if [[ -n $now ]]; then now=$signature$now; else now=${signature%$'\n'}; fi
    if [[ -n $missing || $before != "$now" ]]; then
      why=$(changes "$(grep -v '^made ' <<< "$before" || true)" "${signature%$'\n'}"; printf '%s' "$missing")
      [[ -n $why ]] || why=$(lost "$before" "$now")
    fi
    if [[ -z $why ]]; then
      echo "stage $number, $name: done before, skipped"
      return 0
    fi
    echo "stage $number, $name: $runs again, because"
    sed 's/^/  /' <<< "$why" | cut -c 1-300 | awk 'NR <= 5'  # which reads all: an early end would be an error (pipefail)
    [[ -z $alone ]] || echo "  it replaces what experiments on $alone were made with; to keep both, use another --data-dir"
  elif [[ $dry == true ]]; then
    echo "stage $number, $name: would run"
  fi
  if [[ $dry == true ]]; then plan "$@"; else perform "$@"; fi
}

# perform COMMAND...: run the command of a stage, whose variables it uses, and write the marker.
perform() {
  local status=0 began=$SECONDS
  make_folder "$done_dir"
  make_folder "$log_dir"
  [[ -z $alone ]] || lock 6 "$alone/.readers"
  echo "stage $number, $name: started $(date '+%Y-%m-%d %H:%M:%S')"
  rm -f -- "$marker" "$marker".*.tmp
  [[ $force == false ]] || rm -rf -- "${cleared[@]}"
  logged "$log" "$@" || status=$?
  known=()
  [[ -z $alone ]] || exec 6>&-
  printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${HOSTNAME:-}" "$name" "$((SECONDS - began))" "$status" \
    "$call" >> "$log_dir/journal.tsv"
  if [[ $status -ne 0 ]]; then
    end_if_stopped
    fail "stage $name failed (log: $log); fix the cause and run the same command again: it resumes at this stage"
  fi
  # machines that train together each write one
  { printf '%s' "$signature"; listing "${outputs[@]}"; } > "$marker.${HOSTNAME:-}.$$.tmp"
  mv -- "$marker.${HOSTNAME:-}.$$.tmp" "$marker"
  end_if_stopped
  echo "stage $number, $name: done in $((SECONDS - began)) s"
}

# logged LOG COMMAND...: run it; what it prints goes to the screen and to LOG. Progress bars go to the terminal alone.
logged() {
  local log=$1 status=0 out err keepers
  shift
  [[ $dry == false ]] || { "$@" 2>&1; return; }
  printf '== %s %s\n' "$(date '+%Y-%m-%d %H:%M:%S')" "${HOSTNAME:-}" >> "$log"
  exec {out}> >(keep "$log")
  keepers=$!
  exec {err}> >(keep "$log" >&2)
  keepers+=" $!"
  PROGRESS_FD=9 follow "$@" 9>&2 >&"$out" 2>&"$err" || status=$?
  exec {out}>&- {err}>&-
  wait $keepers 2>/dev/null || true  # for the last lines; bash before 5 cannot wait for the first
  return "$status"
}

# keep LOG: become a program that passes standard input on and appends it to LOG, until its end, whatever signals come. It
# holds no lock.
keep() {
  trap '' INT TERM HUP
  exec tee -a -- "$1" 5>&- 6>&- 7>&- 8>&-
}
