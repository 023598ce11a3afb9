#!/usr/bin/env bash
# From audio to cuts, features and tokens. Stages that are done are skipped; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source local/stages.sh

usage() {
  cat <<'HELP'
./prepare.sh [options] [key.sub=value ...]     audio -> data/<corpus>/{manifests,lang,cuts,features}

Stages
  0  audio          download (librispeech, mini_librispeech, MUSAN) or synthesise (tiny); not with --corpus-dir
  1  manifests      list the utterances, decode every file once, leave out what cannot be used
  2  lang           BPE model and tokens from the training transcripts
  3  cuts           utterances the model can use, at its sampling rate; MUSAN's too where augment.musan is set
  4  features       log-mel features on the disk (only where features.type=precomputed)

Options
  --corpus NAME      a folder of egs/ (tiny)
  --corpus-dir DIR   audio that is already there: the folder that holds the parts or LibriSpeech/
  --data-dir DIR     where to write (data/NAME)
  --conf FILE        configuration (egs/NAME/conf/NAME.yaml where there is one, else conf/base.yaml)
  --stage N          first stage (0)
  --stop-stage N     last stage (4)
  --nj N             processes (the number of cores)
  --dask HOST:PORT   let a Dask cluster that sees the same folders extract the features; its scheduler
  --python PROGRAM   Python to use as it is, instead of making .venv
  --force            run finished stages again
  --help

Any configuration key can follow: data.train_parts=[train-clean-100] lang.vocab_size=200 augment.musan=download/musan
HELP
}

extract_features() { in_parallel local/compute_features.py --data-dir "$data_dir" --dask "$dask"; }

# All of it is read before any of it runs, so that the file may be edited meanwhile.
main() {
  options="corpus corpus_dir data_dir conf stage stop_stage nj dask python"
  corpus=tiny corpus_dir='' data_dir='' conf='' stage=0 stop_stage=4 nj='' dask='' python=''
  parse_options "$@"
  resolve_options
  ensure_python

  [[ -t 2 ]] || export TQDM_MININTERVAL=10  # lhotse's download bars, as lines in a log
  done_dir=$data_dir/.done
  corpus_yaml=egs/$corpus/corpus.yaml
  parts="data.train_parts data.dev_parts data.test_parts"

  if [[ -n $corpus_dir ]]; then
    audio=$corpus_dir
    given=(--corpus-dir "$corpus_dir")
    input=$audio
  else
    audio=download
    [[ $corpus != tiny ]] || audio=$data_dir/audio
    given=()
    input=$done_dir/audio
  fi
  described=(--input "$corpus_yaml" --made-by "the repository")
  [[ ! -f egs/$corpus/speech.yaml ]] || described+=(--input "egs/$corpus/speech.yaml" --made-by "the repository")
  run_stage 0 "audio" "$done_dir/audio" --config "$parts augment.musan" --output "$audio" "${described[@]}" -- \
    in_parallel local/get_audio.py --corpus-yaml "$corpus_yaml" --out "$audio" ${given[@]+"${given[@]}"}
  run_stage 1 "manifests" "$done_dir/manifests" --config "$parts" --output "$data_dir/manifests" \
    --input "$input" --made-by "stage 0 of prepare.sh" "${described[@]}" -- \
    in_parallel local/prepare_manifests.py --corpus-yaml "$corpus_yaml" --corpus-dir "$audio" --data-dir "$data_dir"
  run_stage 2 "lang" "$done_dir/lang" --config "lang" --output "$data_dir/lang/bpe.model" \
    --input "$data_dir/manifests" --made-by "stage 1 of prepare.sh" -- \
    configured local/prepare_lang.py --data-dir "$data_dir"
  run_stage 3 "cuts" "$done_dir/cuts" --config "features.sampling_rate data.min_utterance_seconds data.max_utterance_seconds" \
    --input "$data_dir/manifests" --made-by "stage 1 of prepare.sh" \
    --input "$data_dir/lang/bpe.model" --made-by "stage 2 of prepare.sh" --output "$data_dir/cuts" -- \
    configured local/prepare_cuts.py --data-dir "$data_dir"
  if [[ $(config_values augment.musan) != *" null" ]]; then
    run_stage 3 "noise" "$done_dir/noise" --config "features.sampling_rate augment.musan" \
      --output "$data_dir/cuts/musan.jsonl.gz" -- \
      in_parallel local/prepare_noise.py --data-dir "$data_dir"
  fi
  if [[ $(config_values features.type) == *" precomputed" ]]; then
    [[ $force == false || $stage -gt 4 || $stop_stage -lt 4 ]] || rm -rf "$data_dir/features"  # else they are used again
    run_stage 4 "features" "$done_dir/features" --config "features augment.speed_perturb augment.musan" \
      --input "$data_dir/cuts" --made-by "stage 3 of prepare.sh" --output "$data_dir/features" -- \
      extract_features
  elif [[ $stage -le 4 && $stop_stage -ge 4 ]]; then
    echo "stage 4: features: computed on the fly (features.type), nothing to do"
  fi
}

main "$@"; exit
