#!/usr/bin/env bash
# From audio to cuts, tokens and features. Stages that are done are skipped; see --help.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
[[ -f $here/local/stages.sh ]] || here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")  # this is called through a link
CDPATH='' cd -- "$here"
source local/stages.sh

usage() {
  cat <<'HELP'
./prepare.sh [options] [key.sub=value ...]     audio -> data/<corpus>/{manifests,cuts,lang_<tokens>,features}

Stages
  0  audio          download (librispeech, mini_librispeech, MUSAN) or synthesise (tiny); not with --corpus-dir
  1  manifests      list the utterances, decode every file once, leave out what cannot be used
  2  cuts           utterances of a usable length, at the model's sampling rate; MUSAN's too if augment.musan is set
  3  lang           tokens and their model, tokens per utterance; one folder for each kind and number. Without a configuration
                    it first writes data/<corpus>/conf.yaml, chosen to fit the hours of speech and this machine
  4  features       log-mel features on the disk (only if features.type=precomputed)

Options
  --corpus NAME      a folder of egs/ (default: tiny)
  --corpus-dir DIR   audio that you have: the folder that holds the parts or LibriSpeech/
  --data-dir DIR     where to write (default: data/NAME; with --corpus custom: data/<name of --corpus-dir>)
  --conf FILE        configuration (default: egs/NAME/conf/NAME.yaml, else data/<corpus>/conf.yaml, which stage lang writes)
  --stage N          first stage, a number or a name
  --stop-stage N     last stage, a number or a name
  --nj N             processes that prepare data (default: the processors that this process may use)
  --dask HOST:PORT   scheduler of a Dask cluster that extracts the features; it must see the same folders
  --python PROGRAM   Python to use as it is, instead of making .venv
  --force            run finished stages again
  --dry-run          show what each stage would do, and its command; change nothing
  --help

Any configuration key can follow: data.train_parts=[train-clean-100] lang.vocab_size=200 augment.musan=download/musan
Every stage prints its command and writes its output to data/<corpus>/log/<stage>.log as well.
HELP
}

# name_source: $source, the audio as an input of stages. Of download/, where other corpora lie as well, the folders of this
# corpus's parts: those that its corpus.yaml or the keys data.*_parts name.
name_source() {
  local folder name said
  if [[ -z $corpus_dir && $audio == download ]]; then
    said=" $({ sed 's/#.*//' "egs/$corpus/corpus.yaml"; for name in $parts; do value_of "$name"; echo; done; } |
      tr -cs '[:alnum:]_.-' ' ') "
    for folder in download/*/*/; do
      name=$(basename -- "$folder")
      [[ $said != *" $name "* ]] || source+=(--input "${folder%/}" --made-by audio)
    done
  fi
  [[ ${#source[@]} -gt 0 ]] || source=(--input "$audio" --made-by audio)
}

# write_source: .done/source, by which later stages see other audio, and parts that change their role, although the manifests
# are the same. The name of the audio's folder does not count.
write_source() {
  [[ $dry == false && -f $done_dir/manifests && -f $data_dir/corpus.yaml ]] || return 0
  { awk -F '\t' -v own="input egs/$corpus/" \
      'index($1, "input ") == 1 && $1 != own "corpus.yaml" && $1 != own "speech.yaml" {print $2}' "$done_dir/manifests"
    grep -v '^corpus_dir:' "$data_dir/corpus.yaml" || true; } > "$done_dir/source"
}

# All of it is read before any of it runs, so that the file may be edited meanwhile.
main() {
  options="corpus corpus_dir data_dir conf stage stop_stage nj dask python"
  stages="audio manifests cuts lang features"
  corpus=tiny corpus_dir='' data_dir='' conf='' stage=0 stop_stage=4 nj='' dask='' python=''
  parse_options "$@"
  resolve_options
  ensure_python
  read_config
  check_data

  export TQDM_MININTERVAL=10  # lhotse's download bars, as lines of the log
  done_dir=$data_dir/.done log_dir=$data_dir/log
  [[ -d $data_dir ]] || make_folder "$data_dir"
  lock 7 "$data_dir/.lock" --wait
  local corpus_yaml=egs/$corpus/corpus.yaml parts="data.train_parts data.dev_parts data.test_parts"
  local lang audio=download made=--output found=() described=(--input "egs/$corpus/corpus.yaml" --made-by "(the repository)")
  local replaces=(--alone "$data_dir")
  [[ $corpus != tiny ]] || audio=$data_dir/audio
  [[ -z $corpus_dir ]] || { audio=$corpus_dir; made=--there; found=(--corpus-dir "$corpus_dir"); }
  described+=(--watch "egs/$corpus/speech.yaml")

  stage audio --config "$parts augment.musan" "${described[@]}" "$made" "$audio" -- \
    run local.get_audio --corpus-yaml "$corpus_yaml" --out "$audio" --nj "$nj" "${found[@]}"
  local source=()
  name_source
  stage manifests --config "$parts lang.normalise lang.rules" "${described[@]}" "${source[@]}" \
    "${replaces[@]}" --output "$data_dir/manifests" --also "$data_dir/corpus.yaml" -- \
    run local.prepare_manifests --corpus-yaml "$corpus_yaml" --corpus-dir "$audio" --data-dir "$data_dir" --nj "$nj"
  write_source
  local seen=(--watch "$done_dir/source")
  stage cuts --config "features.sampling_rate data.channel data.min_utterance_seconds data.max_utterance_seconds" \
    --input "$data_dir/manifests" --made-by manifests "${seen[@]}" "${replaces[@]}" \
    --output "$data_dir/cuts" --not "$data_dir/cuts/musan.jsonl.gz" -- \
    run local.prepare_cuts --data-dir "$data_dir"
  local noise=()
  if [[ -n $(value_of augment.musan) ]]; then
    noise=(--watch "$data_dir/cuts/musan.jsonl.gz")
    stage cuts --marker noise --config "features.sampling_rate augment.musan" --watch "$(value_of augment.musan)" \
      "${replaces[@]}" --output "$data_dir/cuts/musan.jsonl.gz" -- \
      run local.prepare_noise --data-dir "$data_dir" --nj "$nj"
  fi
  if [[ -n $chosen ]]; then
    stage lang --marker conf --input "$data_dir/cuts" --made-by cuts "${seen[@]}" --there "$chosen" -- \
      run local.choose_conf --data-dir "$data_dir"
    [[ ! -f $chosen ]] || conf=$chosen
    read_config
  fi
  lang=$(name_tokens)
  local folder others mixed=()
  other_corpora
  if [[ $(value_of data.mix_tokens) == all && -n $others ]]; then
    mixed=(--config "data.mix data.mix_tokens")
    while IFS= read -r folder; do mixed+=(--input "$folder/manifests" --made-by "prepare.sh of that corpus"); done <<< "$others"
  fi
  [[ -z $(value_of lang.bpe_model) ]] || mixed+=(--input "$(value_of lang.bpe_model)" --made-by "(key lang.bpe_model)")
  stage lang --marker "$lang" --config lang "${mixed[@]}" --input "$data_dir/manifests" --made-by manifests \
    --input "$data_dir/cuts" --made-by cuts "${seen[@]}" --there "$data_dir/$lang/bpe.model" \
    --also "$data_dir/$lang" --not "$data_dir/$lang/graph/" -- \
    run local.prepare_lang --data-dir "$data_dir"
  if [[ $(value_of features.type) == precomputed ]]; then
    stage features --config "features augment.speed_perturb augment.musan" \
      --input "$data_dir/cuts" --made-by cuts "${seen[@]}" "${source[@]}" "${noise[@]}" "${replaces[@]}" \
      --output "$data_dir/features" --clear "$data_dir/features" -- \
      run local.compute_features --data-dir "$data_dir" --dask "$dask" --nj "$nj"
  elif [[ $first -le 4 && $last -ge 4 ]]; then
    echo "stage 4, features: skipped: features.type is on_the_fly"
  fi
}

main "$@"; exit
