# What a stage has read and made, as lines of text. Part of local/stages.sh.

# What counts in a folder: not locks, and not the temporaries of a killed program.
counts=(-type f ! -name .lock ! -name .readers ! -name '.tmp-*')

# files TEST...: those below this folder that count. What vanishes meanwhile or cannot be read is left out.
# Files named musan.jsonl.gz do not count: stages that mix in noise name that file.
files() { find -L . "${counts[@]}" ! -name musan.jsonl.gz "$@" || true; }

# fingerprint PATH: of a file's content, or of the names and contents of a folder's files. Links are followed; copies are
# equal. Of more than 128 MB of audio in a folder, names, sizes and times count.
fingerprint() {
  local endings='wav flac mp3 ogg opus m4a oga sph aiff aif aifc au w64 caf mp4 aac wma webm amr mka tar' audio file
  audio=".*\.\(${endings// /\\|}\)"
  if [[ ! -d $1 ]]; then
    content "$1"
    return
  fi
  (
    export LC_ALL=C
    cd -- "$1"
    if [[ $(files -iregex "$audio" -printf '%s\n' | awk '{n += $1} END {print (n > 134217728)}') == 1 ]]; then
      files -iregex "$audio" -printf '%p %s %T@\n' | sort
    else
      files -iregex "$audio" -exec cksum {} + | sort -k 3
    fi
    files ! -iregex "$audio" ! -size +16384k -exec cksum {} + | sort -k 3
    files ! -iregex "$audio" -size +16384k | sort | while IFS= read -r file; do echo "$file $(content "$file")"; done
  ) 2>/dev/null | cksum
}

# content FILE: a check sum of its content. Large files are not read whole: of .pt, .npz and .gz above 16 MB, which end with
# check sums of their content, the size and both ends count; of other files above 1 GB, these and the time.
content() {
  local size
  size=$(wc -c < "$1")
  if [[ $size -le 16777216 || $size -le 1073741824 && $1 != *.@(pt|npz|gz) ]]; then
    cksum < "$1"
    return
  fi
  {
    echo "$size"
    head -c 65536 "$1"
    tail -c 65536 "$1"
    [[ $1 == *.@(pt|npz|gz) ]] || find -L "$1" -printf '%T@\n'
  } | cksum
}

# changes OLD NEW: what differs between two signatures, in words.
changes() {
  { sed 's/^/- /' <<< "$1"; sed 's/^/+ /' <<< "$2"; } | awk '
    {tab = index($0, "\t"); name = substr($0, 3, tab ? tab - 3 : length($0)); value = tab ? substr($0, tab + 1) : ""}
    /^-/ {old[name] = value; next}
    {if (!(name in old)) print name (value == "planned" ? " may be made" : " is new")
     else if (old[name] != value && name !~ /^input/) print name " was " old[name] ", is " value
     else if (old[name] != value) print name (value == "planned" ? " would be made again" : " has changed")
     delete old[name]}
    END {for (name in old) if (name != "") print name " is gone"}'
}

# listing PATH...: the files there and their sizes, as lines `made PATH SIZE`; but not those below the paths in $excluded.
listing() {
  local path there=()
  for path in "$@"; do [[ ! -e $path ]] || there+=("$path"); done
  [[ ${#there[@]} -gt 0 ]] || return 0
  { find -L "${there[@]}" "${counts[@]}" -printf 'made %p\t%s\n' || true; } | EXCLUDED=$excluded awk '
    BEGIN {n = split(ENVIRON["EXCLUDED"], prefixes, "\n")}
    {for (i = 1; i <= n; i++) if (prefixes[i] != "" && index($0, "made " prefixes[i]) == 1) next; print}'
}

# lost MADE NOW: which of the lines `made` of a marker's text are no longer in the text NOW, in words.
lost() {
  { sed 's/^/- /' <<< "$2"; sed 's/^/+ /' <<< "$1"; } | awk -F '\t' '
    {name = substr($1, 8)}
    /^- made / {now[name] = $2; next}
    /^[+] made / {if (!(name in now)) print "output " name " is gone"; else if (now[name] != $2) print "output " name " has changed"}'
}

# sign PATH: add a line for an input to $signature; a path is read once, as long as no stage runs.
declare -A known=()
sign() {
  ! is_planned "$1" || known[$1]=planned  # --dry-run
  [[ -n ${known[$1]:-} ]] || known[$1]=$(fingerprint "$1")
  signature+="input $1"$'\t'${known[$1]}$'\n'
}
