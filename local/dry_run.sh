# Option --dry-run: what every stage would do, and nothing is changed. Part of local/stages.sh.

dry=false
planned=''  # lines: a path that the stages so far would make, or `not PATH`: what others make below such a path

# plan COMMAND...: in place of `perform`, whose variables it has too: print what the stage would do, and plan its outputs.
plan() {
  local path lines=''
  for path in "${cleared[@]}"; do
    [[ $force == false || ! -e $path ]] || printf '  removes %s\n' "$path"
  done
  "$@" 2>&1 | sed 's/^/  /'
  for path in "${outputs[@]}" "${there[@]}"; do lines+=$path$'\n'; done
  while IFS= read -r path; do lines+=${path:+not $path$'\n'}; done <<< "$excluded"
  planned+=$lines
  [[ -z ${PLANNED_FD:-} ]] || printf '%s' "$lines" >&"$PLANNED_FD"
}

# plan_prepare OPTIONS: call prepare.sh, and plan what its stages would make.
plan_prepare() {
  printf 'stage 0, prepare: would call\n  +%s\n' "$(printf ' %q' ./prepare.sh "$@")"
  [[ -z $chosen || -f $chosen ]] || echo "  $chosen would be chosen in it; the commands here have $conf in its place"
  { planned+=$({ PLANNED_FD=3 ./prepare.sh --dry-run "$@" 3>&5 | sed 's/^/  /' >&4; } 5>&1)$'\n' || exit 1; } 4>&1
}

# is_planned PATH: whether a stage before this one would make it, or something below it.
is_planned() {
  local line status=1
  [[ -n $planned && -n $1 ]] || return 1
  while IFS= read -r line; do
    case $line in
      "not "*) [[ $1/ != "${line#not }"* ]] || status=1 ;;
      ?*) [[ $1 != "$line" && $1 != "$line"/* && $line != "$1"/* ]] || status=0 ;;
    esac
  done <<< "$planned"
  return "$status"
}

# plan_python FILE...: set $python as ensure_python does; without .venv, to a program that can read the configuration.
plan_python() {
  python=.venv/bin/python
  if environment_is_whole; then
    environment_is_new "$@" || echo "environment: would install $* into .venv"
    return 0
  fi
  echo "environment: would make .venv and install $* into it"
  python=$(usable_python) || exit 1
  ! "$python" -m local.config > /dev/null 2>&1 || return 0
  usage | sed -n '/^Stages/,/^$/p'
  fail "--dry-run: commands depend on the configuration, which is read with packages of requirements.txt; name a Python that has" \
    "them with --python, or let ./prepare.sh --stop-stage audio make .venv"
}
