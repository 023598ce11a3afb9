#!/usr/bin/env bash
# From audio to a WER table. Stages that are done are skipped; see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source local/stages.sh

usage() {
  cat <<'HELP'
./run.sh [options] [key.sub=value ...]     prepare -> train -> average -> lm -> tune -> decode -> score

Stages
  0  prepare        ./prepare.sh: audio -> data/<corpus> (manifests, tokens, cuts, features)
  1  train          -> EXP/checkpoints, train.csv, valid.csv, tensorboard/; goes on where it stopped
  2  average        -> EXP/averaged.pt: averaged weights, configuration and tokens in one file
  3  lm             -> EXP/lm/: a language model over the same tokens (only where lm.train=true)
  4  tune           -> EXP/tuned.yaml: averaging range, LM scales and the like, chosen on the dev sets (only where
                    section tune has a list); EXP/tune.tsv: all that was tried
  5  decode         test sets by all of decode.methods -> EXP/decode/<method>/<set>.jsonl
  6  score          -> EXP/wer.json, EXP/wer.md, EXP/wer.png, EXP/errors/; prints the WER table

Looking closer: --stage NAME, never part of a run
  diagnose       -> EXP/diagnose/: activations and gradients of every module over a few batches; the first line of
                    report.txt names the layer where the gradient explodes and the utterances behind it
  ablation       -> EXP/ablation/: trainings with gradient.control filter, clip, none over several seeds; WER table, plots
  study          -> EXP/study/: small models that show how gradients vanish and explode; one page with plots

Options
  --corpus NAME      a folder of egs/ (tiny)
  --corpus-dir DIR   audio that is already there: the folder that holds the parts or LibriSpeech/
  --data-dir DIR     prepared data (data/NAME)
  --exp-dir DIR      where to write (exp/NAME)
  --conf FILE        configuration (egs/NAME/conf/<name of EXP>.yaml, else egs/NAME/conf/NAME.yaml, else conf/base.yaml)
  --stage N          first stage (0), or a name from above
  --stop-stage N     last stage (6)
  --nj N             processes that prepare the data (the number of cores)
  --dask HOST:PORT   see ./prepare.sh --help
  --nproc N          processes that train together on this machine (one per GPU; 1 without GPUs)
  --nnodes N         machines that train together: the same command on each, over the same folders; then only stage 1 is
                     run, the others before and after it on one machine (1)
  --rdzv HOST:PORT   where they find each other: a free port of one of them
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
  "$python" local/train.py --conf "$conf" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --nproc "$nproc" --nnodes "$nnodes" --rdzv "$rdzv" ${overrides[@]+"${overrides[@]}"}
}

train_lm() {
  [[ $force == false ]] || rm -rf "$exp_dir/lm"
  configured local/train_lm.py --data-dir "$data_dir" --exp-dir "$exp_dir"
}

average() {
  of_groups average
  "$python" local/average.py --exp-dir "$exp_dir" --conf "$conf" ${group[@]+"${group[@]}"}
}

tune() {
  of_groups decode tune average
  "$python" local/tune.py --checkpoint "$exp_dir/averaged.pt" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --conf "$conf" ${group[@]+"${group[@]}"}
}

decode() {  # results of methods and sets that are no longer asked for would end up in the table
  local checkpoint=$exp_dir/averaged.pt with_tuned=()
  if [[ $tuning == true ]]; then
    with_tuned=(--tuned "$exp_dir/tuned.yaml")
    [[ ! -f $exp_dir/tuned.pt ]] || checkpoint=$exp_dir/tuned.pt
  fi
  rm -rf "$exp_dir/decode"
  of_groups decode
  "$python" local/decode.py --checkpoint "$checkpoint" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --conf "$conf" ${with_tuned[@]+"${with_tuned[@]}"} ${group[@]+"${group[@]}"}
}

score() {  # the table is printed below, also where it was made before
  "$python" local/wer.py --exp-dir "$exp_dir" --data-dir "$data_dir" > /dev/null
}

look_closer() {  # the stages that have a name in place of a number
  local program=studies/$stage.py
  [[ $stage != diagnose ]] || program=local/diagnose.py
  [[ -f $data_dir/lang/bpe.model ]] || fail "stage $stage: $data_dir/lang/bpe.model is missing; stage 0 (prepare) makes it"
  configured "$program" --data-dir "$data_dir" --exp-dir "$exp_dir"
}

of_groups() {  # group=(the overrides of these groups of keys)
  local o name
  group=()
  for o in ${overrides[@]+"${overrides[@]}"}; do
    for name in "$@"; do [[ $o != "$name".* ]] || group+=("$o"); done
  done
}

# value_of KEY: what the configuration says, nothing for null.
value_of() {
  local value
  value=$(config_values "$1")
  value=${value#config "$1" }
  [[ $value == null ]] || printf '%s' "$value"
}

# where_there MADE_BY FILE...: adds to `given` what makes run_stage look at these files, those that are there. One that
# is needed and missing is named by the program.
where_there() {
  local made_by=$1 file
  shift
  for file in "$@"; do [[ ! -f $file ]] || given+=(--input "$file" --made-by "$made_by"); done
}

recognition_inputs() {  # given=(what methods need besides the checkpoint)
  given=()
  where_there "stage 3 (lm)" "$exp_dir/lm/lm.pt" "$exp_dir/lm/bigram.arpa"
  where_there "local/prepare_graph.py" "$data_dir/graph/LG.npz"
  where_there "the user" "$(value_of decode.lm)" "$(value_of decode.bigram)" "$(value_of decode.ngram)" \
    "$(value_of decode.hotwords)"
}

# All of it is read before any of it runs, so that the file may be edited meanwhile.
main() {
  options="corpus corpus_dir data_dir exp_dir conf stage stop_stage nj dask nproc nnodes rdzv python"
  named_stages="diagnose ablation study"
  corpus=tiny corpus_dir='' data_dir='' exp_dir='' conf='' stage=0 stop_stage=6 nj='' dask='' nproc=0 nnodes=1 rdzv='' python=''
  parse_options "$@"
  exp_dir=${exp_dir:-exp/$corpus}
  [[ $nproc =~ ^[0-9]+$ ]] || fail "option --nproc needs a whole number, not '$nproc'"
  [[ $nnodes =~ ^[1-9][0-9]*$ ]] || fail "option --nnodes needs a whole number above 0, not '$nnodes'"
  if [[ $nnodes -gt 1 ]]; then
    [[ -n $rdzv ]] || fail "--nnodes needs --rdzv HOST:PORT, the same on every machine"
    [[ $force == false ]] || fail "--force with --nnodes: remove $exp_dir instead, on one machine"
    stage=1 stop_stage=1
  fi
  resolve_options
  ensure_python

  done_dir=$exp_dir/.done
  common=(--corpus "$corpus" --data-dir "$data_dir" --conf "$conf" --nj "$nj" --dask "$dask" --python "$python")
  [[ -z $corpus_dir ]] || common+=(--corpus-dir "$corpus_dir")
  [[ $force == false ]] || common+=(--force)
  echo "corpus $corpus, experiment $exp_dir, configuration $conf${overrides[*]:+ ${overrides[*]}}"

  if [[ " $named_stages " == *" $stage "* ]]; then
    look_closer
    return
  fi
  if [[ $stage -le 0 && $stop_stage -ge 0 ]]; then
    ./prepare.sh "${common[@]}" ${overrides[@]+"${overrides[@]}"}
  fi

  run_stage 1 "train" "$done_dir/1-train" --config "model gradient loss optim train features augment data" \
    --input "$data_dir/lang/bpe.model" --made-by "stage 0 (prepare)" --input "$data_dir/cuts" --made-by "stage 0 (prepare)" \
    --output "$exp_dir/checkpoints" -- train
  run_stage 2 "average" "$done_dir/2-average" --config "average" \
    --input "$exp_dir/checkpoints" --made-by "stage 1 (train)" --output "$exp_dir/averaged.pt" -- average
  if [[ $(value_of lm.train) == [Tt]rue ]]; then
    given=()
    where_there "the user" "$(value_of lm.text)"
    run_stage 3 "lm" "$done_dir/3-lm" --config "lm train.seed data.dev_parts" \
      --input "$data_dir/lang" --made-by "stage 0 (prepare)" --input "$data_dir/manifests" --made-by "stage 0 (prepare)" \
      ${given[@]+"${given[@]}"} --output "$exp_dir/lm/lm.pt" --output "$exp_dir/lm/bigram.arpa" -- train_lm
  elif [[ $stage -le 3 && $stop_stage -ge 3 ]]; then
    echo "stage 3: lm: no language model is asked for (lm.train), nothing to do"
  fi
  recognition_inputs
  tuning=false
  if [[ -n $(config_values tune | grep -v ' \[\]$') ]]; then
    tuning=true
    of_groups decode average  # what is given here is not tuned, even where it is what the file says
    run_stage 4 "tune" "$done_dir/4-tune" --config "tune decode average data features" \
      --input "$exp_dir/averaged.pt" --made-by "stage 2 (average)" ${given[@]+"${given[@]}"} \
      --output "$exp_dir/tuned.yaml" -- tune ${group[@]+"${group[@]}"}
    where_there "stage 4 (tune)" "$exp_dir/tuned.pt"
    given+=(--input "$exp_dir/tuned.yaml" --made-by "stage 4 (tune)")
  elif [[ $stage -le 4 && $stop_stage -ge 4 ]]; then
    echo "stage 4: tune: nothing is to be tuned (section tune), nothing to do"
  fi
  group=()
  [[ $tuning == false ]] || of_groups decode
  run_stage 5 "decode" "$done_dir/5-decode" --config "decode data features" \
    --input "$exp_dir/averaged.pt" --made-by "stage 2 (average)" ${given[@]+"${given[@]}"} \
    --output "$exp_dir/decode" -- decode ${group[@]+"${group[@]}"}
  given=()
  where_there "stage 3 (lm)" "$exp_dir/lm/perplexity.json"
  run_stage 6 "score" "$done_dir/6-score" --input "$exp_dir/decode" --made-by "stage 5 (decode)" \
    ${given[@]+"${given[@]}"} --output "$exp_dir/wer.json" -- score
  if [[ $stop_stage -ge 6 ]]; then
    cat "$exp_dir/wer.md"
  fi
}

main "$@"; exit
