#!/usr/bin/env bash
# From audio to a WER table. Stages that are done are skipped; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source local/stages.sh

usage() {
  cat <<'HELP'
./run.sh [options] [key.sub=value ...]     prepare -> train -> average -> lm -> decode -> score

Stages
  0  prepare        ./prepare.sh: audio -> data/<corpus> (manifests, tokens, cuts, features)
  1  train          -> EXP/checkpoints, train.csv, valid.csv, tensorboard/; goes on where it stopped
  2  average        -> EXP/averaged.pt: averaged weights, configuration and tokens in one file
  3  lm             -> EXP/lm/: a language model over the same tokens (only where lm.train=true)
  4  decode         test sets by all of decode.methods -> EXP/decode/<method>/<set>.jsonl
  5  score          -> EXP/wer.json, EXP/wer.md, EXP/errors/; prints the WER table

Options
  --corpus NAME      a folder of egs/ (tiny)
  --corpus-dir DIR   audio that is already there: the folder that holds the parts or LibriSpeech/
  --data-dir DIR     prepared data (data/NAME)
  --exp-dir DIR      where to write (exp/NAME)
  --conf FILE        configuration (egs/NAME/conf/<name of EXP>.yaml, else egs/NAME/conf/NAME.yaml, else conf/base.yaml)
  --stage N          first stage (0)
  --stop-stage N     last stage (5)
  --nproc N          processes that prepare the data (the number of cores)
  --python PROGRAM   Python to use as it is, instead of making .venv
  --force            run finished stages again; training starts anew
  --help

Any configuration key can follow: train.num_epochs=20 decode.methods=[greedy_search] loss.backend=k2
HELP
}

train() {
  if [[ $force == true ]]; then
    rm -rf "$exp_dir/checkpoints" "$exp_dir/tensorboard" "$exp_dir"/{train,valid}.csv
  fi
  "$python" local/train.py --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" ${overrides[@]+"${overrides[@]}"}
}

train_lm() {
  [[ $force == false ]] || rm -rf "$exp_dir/lm"
  configured local/train_lm.py --data-dir "$data_dir" --exp-dir "$exp_dir"
}

decode() {  # results of methods and sets that are no longer asked for would end up in the table
  rm -rf "$exp_dir/decode"
  "$python" local/decode.py --checkpoint "$exp_dir/averaged.pt" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --conf "$conf" $(of_group decode)
}

score() {  # the table is printed below, also where it was made before
  "$python" local/wer.py --exp-dir "$exp_dir" --data-dir "$data_dir" > /dev/null
}

of_group() {  # the overrides of one group of keys
  local o
  for o in ${overrides[@]+"${overrides[@]}"}; do [[ $o != "$1".* ]] || printf '%s\n' "$o"; done
}

# All of it is read before any of it runs, so that the file may be edited meanwhile.
main() {
  options="corpus corpus_dir data_dir exp_dir conf stage stop_stage nproc python"
  corpus=tiny corpus_dir='' data_dir='' exp_dir='' conf='' stage=0 stop_stage=5 nproc='' python=''
  parse_options "$@"
  exp_dir=${exp_dir:-exp/$corpus}
  resolve_options
  ensure_python

  export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
  done_dir=$exp_dir/.done
  common=(--corpus "$corpus" --data-dir "$data_dir" --conf "$conf" --nproc "$nproc" --python "$python")
  [[ -z $corpus_dir ]] || common+=(--corpus-dir "$corpus_dir")
  [[ $force == false ]] || common+=(--force)
  echo "corpus $corpus, experiment $exp_dir, configuration $conf${overrides[*]:+ ${overrides[*]}}"

  if [[ $stage -le 0 && $stop_stage -ge 0 ]]; then
    ./prepare.sh "${common[@]}" ${overrides[@]+"${overrides[@]}"}
  fi

  run_stage 1 "train" "$done_dir/1-train" --config "model gradient loss optim train features augment data" \
    --input "$data_dir/lang/bpe.model" --made-by "stage 0 (prepare)" --input "$data_dir/cuts" --made-by "stage 0 (prepare)" \
    --output "$exp_dir/checkpoints" -- train
  run_stage 2 "average" "$done_dir/2-average" --config "average" \
    --input "$exp_dir/checkpoints" --made-by "stage 1 (train)" --output "$exp_dir/averaged.pt" -- \
    "$python" local/average.py --exp-dir "$exp_dir" --conf "$conf" $(of_group average)
  if [[ $(config_values lm.train) == *" "[Tt]rue ]]; then
    text=$(config_values lm.text)
    text=${text#config lm.text }
    given=()  # a file that is missing is named by the program
    [[ ! -f $text ]] || given=(--input "$text" --made-by "the user")
    run_stage 3 "lm" "$done_dir/3-lm" --config "lm train.seed data.dev_parts" \
      --input "$data_dir/lang" --made-by "stage 0 (prepare)" --input "$data_dir/manifests" --made-by "stage 0 (prepare)" \
      ${given[@]+"${given[@]}"} --output "$exp_dir/lm/lm.pt" -- train_lm
  elif [[ $stage -le 3 && $stop_stage -ge 3 ]]; then
    echo "stage 3: lm: no language model is asked for (lm.train), nothing to do"
  fi
  run_stage 4 "decode" "$done_dir/4-decode" --config "decode data features" \
    --input "$exp_dir/averaged.pt" --made-by "stage 2 (average)" --output "$exp_dir/decode" -- decode
  run_stage 5 "score" "$done_dir/5-score" \
    --input "$exp_dir/decode" --made-by "stage 4 (decode)" --output "$exp_dir/wer.json" -- score
  if [[ $stop_stage -ge 5 ]]; then
    cat "$exp_dir/wer.md"
  fi
}

main "$@"
