#!/usr/bin/env bash
# From audio to a WER table. Stages that are done are skipped; see --help.
set -euo pipefail
here=$(dirname -- "${BASH_SOURCE[0]}")
[[ -f $here/local/stages.sh ]] || here=$(dirname -- "$(realpath -- "${BASH_SOURCE[0]}")")  # this is called through a link
CDPATH='' cd -- "$here"
source local/stages.sh

usage() {
  cat <<'HELP'
./run.sh [options] [key.sub=value ...]     prepare -> train -> average -> lm -> tune -> decode -> score -> report

Stages
  0  prepare        ./prepare.sh: audio -> data/<corpus> (manifests, cuts, tokens, features)
  1  train          -> EXP/checkpoints, train.csv, valid.csv, tensorboard/; resumes from the newest checkpoint
  2  average        -> EXP/averaged.pt: averaged weights, configuration and tokens in one file
  3  lm             -> EXP/lm/: a language model over the same tokens (only if lm.train=true); LANG/graph/ if a method needs it
  4  tune           -> EXP/tuned.yaml: averaging range, LM scales and the like, chosen on the dev sets (only if section
                    tune has a list); EXP/tune.tsv: all that was tried
  5  decode         test sets by all of decode.methods -> EXP/decode/<method>/<set>.jsonl
  6  score          -> EXP/wer.json, EXP/wer.md, EXP/wer.png, EXP/errors/; prints the WER table
  7  report         -> EXP/report.html: one page with the errors and their audio, the training, the data; exp/INDEX.md: all
                    experiments
  8  export         -> EXP/export/: the model for sherpa-onnx (ONNX, float32 and int8), checked by sherpa-onnx on the dev
                    sets, with a model card. Only on demand: --stage export runs it alone, --stop-stage export after the rest

Other commands, never part of a run:  ./run.sh COMMAND [options] [key.sub=value ...]
  evaluate          -> EXP/wer.md, EXP/report.html: decodes a test set with a trained model, from --checkpoint FILE and
                    --corpus-dir DIR; EXP is <folder of the checkpoint>/evaluate/<name of DIR>, the configuration that of the checkpoint
  diagnose          -> EXP/diagnose/: activations and gradients of every module over a few batches; the first line of
                    report.txt names the layer where the gradient explodes and the utterances behind it
  ablation          -> EXP/ablation/: trainings with gradient.control filter, clip, none over several seeds; WER table, plots
  study             -> EXP/study/: small models that show how gradients vanish and explode; one page with plots
  doctor            -> nothing: it reports problems and how to fix them, one line each, and changes nothing. Exit
                    status 1 if there is an error (docs/doctor.md)

Options
  --corpus NAME      a folder of egs/ (default: tiny)
  --corpus-dir DIR   audio that you have: the folder that holds the parts or LibriSpeech/
  --data-dir DIR     prepared data (default: data/NAME; with --corpus custom: data/<name of --corpus-dir>)
  --exp-dir DIR      where to write (default: exp/NAME; with --corpus custom: exp/<name of --corpus-dir>)
  --conf FILE        configuration (default: egs/NAME/conf/<name of EXP>.yaml, else egs/NAME/conf/NAME.yaml, else
                     data/<corpus>/conf.yaml, which stage prepare chooses to fit the hours of speech and this machine)
  --checkpoint FILE  command evaluate: the trained model, such as exp/mine/averaged.pt
  --stage N          first stage, a number or a name
  --stop-stage N     last stage, a number or a name (default: report)
  --sets NAMES       stage decode: these parts instead of the test parts, such as dev or dev,test; the table then has them
                     beside the sets that the same model decoded before
  --nj N             processes that prepare data (default: the processors that this process may use)
  --dask HOST:PORT   see ./prepare.sh --help
  --nproc N          processes that train together on this machine (default: one per GPU; 1 without GPUs)
  --nnodes N         machines that train together: the same command on each, over the same folders. Then only stage train
                     runs; run the stages before and after it on one machine (default: 1)
  --rdzv HOST:PORT   where these machines find each other: a free port of one of them
  --python PROGRAM   Python to use as it is, instead of making .venv
  --force            run finished stages again; training starts from the beginning
  --dry-run          show what each stage would do, and its command; change nothing
  --strict           command doctor: exit status 1 for warnings, too
  --all              command doctor: read all audio, not a sample
  --help

Any configuration key can follow: train.num_epochs=20 decode.methods=[greedy_search] loss.backend=k2
Every stage prints its command, which you can run alone, and writes its output to EXP/log/<stage>.log as well.
HELP
}

# name_model: $model, the arguments that name what stages decode and export take.
name_model() {
  model=(--checkpoint "$exp_dir/averaged.pt")
  if [[ $tuning == true ]]; then
    [[ ! -f $exp_dir/tuned.pt ]] || model=(--checkpoint "$exp_dir/tuned.pt")
    model+=(--tuned "$exp_dir/tuned.yaml")
  fi
}

# name_sets: make $sets a list, and $of_sets what stage decode is about: each choice of sets has a marker of its own.
name_sets() {
  of_sets=(--config "decode data.test_parts")
  read -ra sets <<< "${sets//,/ }"
  [[ ${#sets[@]} -gt 0 ]] || return 0
  [[ $first -le 5 && $last -ge 5 ]] || fail "--sets is an option of stage decode, which does not run: see --stage and --stop-stage"
  [[ -z $other ]] || fail "--sets is an option of stage decode; $other has none"
  [[ ${sets[*]} != */* && " ${sets[*]}" != *" -"* ]] || fail "--sets: names of parts, with commas between, not '${sets[*]}'"
  of_sets=(--config "decode data.dev_parts data.test_parts" --marker "decode-$(IFS=,; echo "${sets[*]}")")
}

# make_graph: stage lm for the decoding graph, which belongs to the tokens: other experiments share it. A graph that was made
# by hand stays. $graph.stage has the check sum of the one that this stage made.
make_graph() {
  local graph=$lang/graph/LG.npz
  if [[ -f $graph && "$(cat "$graph.stage" 2>/dev/null)" != "$(content "$graph")" ]]; then
    [[ $first -gt 3 || $last -lt 3 ]] || echo "stage 3, lm: $graph was made by hand and stays; without this file, this stage makes it"
    return 0
  fi
  done_dir=$lang/graph/.done stage lm --marker graph --config "lm.text lang.normalise lang.rules" \
    --input "$lang/bpe.model" --made-by prepare --input "$lang/transcript.txt" --made-by prepare \
    --watch "$(value_of lm.text)" --there "$graph" -- run local.prepare_graph --data-dir "$data_dir"
  [[ $dry == true || ! -f $graph || "$(cat "$graph.stage" 2>/dev/null)" == "$(content "$graph")" ]] || content "$graph" > "$graph.stage"
}

# name_audio: $audio, what training and decoding read besides cuts. Cuts are the same if audio is replaced by audio as long.
name_audio() {
  local file
  audio=(--watch "$data_dir/.done/source")
  if [[ $(value_of features.type) == precomputed ]]; then
    for file in "$data_dir"/features/*.jsonl.gz; do audio+=(--watch "$file"); done
  fi
  [[ -z $(value_of augment.musan) ]] || audio+=(--watch "$data_dir/cuts/musan.jsonl.gz")
}

decode() {
  local model
  name_model
  [[ ${#sets[@]} -eq 0 ]] || model+=(--sets "${sets[@]}")
  run local.decode "${model[@]}" --data-dir "$data_dir" --exp-dir "$exp_dir"
}

export_model() {
  local model lm
  name_model
  lm=$(value_of decode.lm)
  lm=${lm:-$exp_dir/lm/lm.pt}
  [[ ! -f $lm ]] || model+=(--lm "$lm")
  run local.export "${model[@]}" --data-dir "$data_dir" --out "$exp_dir/export" --int8
}

prepare() {
  [[ $dry == false ]] || { plan_prepare "$@"; return; }
  RECIPE_PARENT=$$ follow exec "$python" -m local.with_parent ./prepare.sh "$@" || { local status=$?; end_if_stopped; exit "$status"; }
}

score() {
  program local.wer --exp-dir "$exp_dir" --data-dir "$data_dir" --unit "$(value_of score.unit)" > /dev/null  # printed after it
}

# score_and_report INPUTS...: stages score and report; INPUTS: what the table needs besides decode/.
score_and_report() {
  local table=(--output "$exp_dir"/wer.json --output "$exp_dir"/wer.md --also "$exp_dir"/wer.png --also "$exp_dir"/errors)
  local read=() file
  stage score --config score --input "$exp_dir/decode" --made-by decode "$@" "${table[@]}" -- score
  [[ $last -lt 6 || $first -gt 6 || $dry == true ]] || cat "$exp_dir/wer.md"
  for file in config.yaml train.csv valid.csv outliers.tsv lm/log.csv tuned.yaml tune.tsv; do read+=(--watch "$exp_dir/$file"); done
  for file in cuts dropped.tsv "$(name_tokens)/dropped.tsv" summary.json; do read+=(--watch "$data_dir/$file"); done
  stage report --input "$exp_dir/wer.json" --made-by score --input "$exp_dir/decode" --made-by decode "${read[@]}" \
    --output "$exp_dir/report.html" -- program local.report --exp-dir "$exp_dir" --data-dir "$data_dir"
  if [[ $last -ge 7 && $first -le 7 && $dry == false ]]; then
    echo "report: $exp_dir/report.html"
    [[ $exp_dir != exp/* ]] || "$python" -m local.experiments > /dev/null || true  # exp/INDEX.md; the report is there without it
  fi
}

# evaluate: prepare the test parts with the configuration of the checkpoint; decode; score.
evaluate() {
  local trained_in asked=() audio tuned=() needed
  [[ -f $checkpoint ]] || fail "evaluate needs --checkpoint FILE, a trained model such as exp/mine/averaged.pt; not '$checkpoint'"
  [[ $dry == false ]] || fail "evaluate has no --dry-run: it first writes the configuration of the checkpoint"
  [[ -z $conf ]] || fail "evaluate takes the configuration of the checkpoint, without --conf; keys can follow as key=value"
  [[ -z $data_dir ]] || fail "evaluate prepares the test set in EXP/data, without --data-dir; --exp-dir names EXP"
  [[ -n $corpus_dir || $corpus != custom ]] || fail "evaluate needs --corpus-dir DIR, the folder of the test set"
  trained_in=$(dirname "$checkpoint")
  [[ $(basename "$trained_in") != checkpoints ]] || trained_in=$(dirname "$trained_in")
  name_corpus
  exp_dir=${exp_dir:-$trained_in/evaluate/$name}
  data_dir=$exp_dir/data conf=$exp_dir/checkpoint.yaml
  done_dir=$exp_dir/.done log_dir=$exp_dir/log
  ensure_python
  [[ -d $exp_dir ]] || make_folder "$exp_dir"
  lock 8 "$exp_dir/.lock"
  check_data --exp-dir
  "$python" -m local.checkpoint_conf --checkpoint "$checkpoint" --out "$conf" || exit 1
  resolve_options
  read_config
  echo "corpus $corpus, experiment $exp_dir, checkpoint $checkpoint${overrides[*]:+ ${overrides[*]}}"

  [[ -z $corpus_dir ]] || asked=(--corpus-dir "$corpus_dir")
  [[ $force == false ]] || asked+=(--force)
  asked+=(--corpus "$corpus" --data-dir "$data_dir" --conf "$conf" --nj "$nj" --python "$python" "${overrides[@]}")
  prepare --stop-stage cuts "${asked[@]}"
  [[ $(value_of features.type) != precomputed ]] || prepare --stage features "${asked[@]}"
  name_audio

  needed=(--watch "$(value_of decode.lm)" --watch "$(value_of decode.bigram)" --watch "$(value_of decode.ngram)"
    --watch "$(value_of decode.hotwords)" --watch "$trained_in/lm" --watch "$trained_in/tuned.yaml")
  if [[ -f $trained_in/tuned.yaml && $checkpoint != */checkpoints/* ]]; then
    echo "$trained_in/tuned.yaml: its settings are used"
    tuned=(--tuned "$trained_in/tuned.yaml")
  fi
  stage decode --config "decode data.test_parts" "${needed[@]}" --input "$checkpoint" --made-by average \
    --input "$data_dir/cuts" --made-by prepare "${audio[@]}" --output "$exp_dir/decode" -- run local.decode --checkpoint "$checkpoint" \
    --data-dir "$data_dir" --exp-dir "$exp_dir" --trained-in "$trained_in" "${tuned[@]}"
  score_and_report
}

check_nproc() { [[ $nproc =~ ^[0-9]{1,6}$ ]] || fail "option --nproc must be a whole number, not '$nproc'"; }

# doctor ARGUMENTS: as the other commands, but nothing is made or locked, and .venv may be missing.
doctor() {
  local word flags=() rest=() state=given audio=()
  for word in "$@"; do
    case $word in --all|--strict) flags+=("$word") ;; *) rest+=("$word") ;; esac
  done
  parse_options "${rest[@]}"
  check_nproc
  resolve_options
  if [[ -z $python ]]; then
    state=$(environment_state requirements.txt)
    case $state in
      missing|unfinished) python=$(usable_python) || exit 1 ;;
      *) python=.venv/bin/python ;;
    esac
  fi
  command -v "$python" > /dev/null || fail "--python $python: no such program"
  [[ -z $corpus_dir ]] || audio=(--corpus-dir "$corpus_dir")
  [[ $conf == conf/base.yaml && -n $chosen ]] || audio+=(--conf "$conf")
  exec "$python" -B -m local.doctor --environment "$state" --corpus "$corpus" --data-dir "$data_dir" --exp-dir "$exp_dir" \
    --nproc "$nproc" "${audio[@]}" "${flags[@]}" "${overrides[@]}"
}

other_command() {
  local module=studies.$1
  [[ $1 != diagnose ]] || module=local.diagnose
  [[ -f $lang/bpe.model ]] || fail "$1: $lang/bpe.model is missing; stage prepare makes it"
  make_folder "$exp_dir/log"
  logged "$exp_dir/log/$1.log" run "$module" --data-dir "$data_dir" --exp-dir "$exp_dir"
}

# All of it is read before any of it runs, so that the file may be edited meanwhile.
main() {
  options="corpus corpus_dir data_dir exp_dir conf stage stop_stage sets nj dask nproc nnodes rdzv python checkpoint"
  stages="prepare train average lm tune decode score report export"
  corpus=tiny corpus_dir='' data_dir='' exp_dir='' conf='' stage=0 stop_stage=7 nj='' dask='' nproc=0 nnodes=1 rdzv='' python=''
  local other='' of_sets lang needed given folder others audio=() of_mix=() mixed=() sharing=() tuning=false checkpoint='' sets='' requirements=(requirements.txt)
  if [[ ${1:-} == doctor ]]; then
    shift
    doctor "$@"
  fi
  case ${1:-} in evaluate|diagnose|ablation|study) other=$1; shift ;; esac
  [[ $other != evaluate ]] || corpus=custom
  parse_options "$@"
  name_sets
  [[ $nnodes =~ ^[1-9][0-9]*$ ]] || fail "option --nnodes must be a whole number above 0, not '$nnodes'"
  [[ $nnodes == 1 || -z $other ]] || fail "--nnodes is an option of stage train; $other has none"
  if [[ $other == evaluate ]]; then
    evaluate
    return
  fi
  [[ -z $checkpoint ]] || fail "--checkpoint is an option of command evaluate"
  [[ $first -ne 8 || $last -ne 7 ]] || last=8  # so that --stage export runs, although the last stage is report by default
  check_nproc
  resolve_options
  if [[ $nnodes -gt 1 ]]; then
    [[ -n $rdzv ]] || fail "--nnodes needs --rdzv HOST:PORT, the same on every machine"
    [[ $force == false ]] || fail "--force with --nnodes: remove $exp_dir instead, on one machine"
    first=1 last=1
  fi
  [[ -n $other || $last -lt 8 ]] || requirements+=(requirements-export.txt)
  ensure_python "${requirements[@]}"
  read_config
  check_data
  done_dir=$exp_dir/.done log_dir=$exp_dir/log
  lang=$data_dir/$(name_tokens)
  if [[ -n $other || $last -ge 1 ]]; then
    [[ -d $exp_dir ]] || make_folder "$exp_dir"
    [[ $nnodes -eq 1 ]] || sharing=(--shared)  # the machines that train together
    lock 8 "$exp_dir/.lock" "${sharing[@]}"
  fi
  echo "corpus $corpus, experiment $exp_dir, configuration ${chosen:-$conf}${chosen:+, chosen to fit the data}${overrides[*]:+ ${overrides[*]}}"

  if [[ -n $other ]]; then
    other_command "$other"
    return
  fi
  if [[ $first -le 0 && $last -ge 0 ]]; then
    local optional=()
    [[ -z $corpus_dir ]] || optional+=(--corpus-dir "$corpus_dir")
    [[ -n $chosen ]] || optional+=(--conf "$conf")
    [[ $force == false ]] || optional+=(--force)
    prepare --corpus "$corpus" --data-dir "$data_dir" --nj "$nj" --dask "$dask" --python "$python" "${optional[@]}" \
      "${overrides[@]}"
    if [[ -f $chosen ]]; then  # prepare.sh chose it
      conf=$chosen
      read_config
      lang=$data_dir/$(name_tokens)
    fi
  fi

  name_audio
  other_corpora
  while IFS= read -r folder; do
    [[ -z $folder ]] || mixed+=(--input "$folder/cuts" --made-by "prepare.sh of that corpus" --watch "$folder/.done/source")
  done <<< "$others"
  [[ -z $others ]] || of_mix=(--config data.mix)
  stage train --config "model gradient loss optim train features augment lang data.train_parts data.dev_parts data.num_buckets" \
    --input "$lang/bpe.model" --made-by prepare --input "$lang/num_tokens" --made-by prepare \
    --input "$data_dir/cuts" --made-by prepare "${audio[@]}" "${of_mix[@]}" "${mixed[@]}" --output "$exp_dir/checkpoints" --clear "$exp_dir/checkpoints" \
    --clear "$exp_dir/tensorboard" --clear "$exp_dir/logger_run" --clear "$exp_dir/train.csv" --clear "$exp_dir/valid.csv" \
    --clear "$exp_dir/outliers.tsv" --clear "$exp_dir/bad" -- \
    run local.train --data-dir "$data_dir" --exp-dir "$exp_dir" --nproc "$nproc" --nnodes "$nnodes" --rdzv "$rdzv"
  stage average --config average --input "$exp_dir/checkpoints" --made-by train --output "$exp_dir/averaged.pt" -- \
    run local.average --exp-dir "$exp_dir"
  if [[ $(value_of lm.train) == true ]]; then
    stage lm --config "lm train.seed data.dev_parts lang.normalise lang.rules" --input "$lang/bpe.model" --made-by prepare \
      --input "$lang/transcript.txt" --made-by prepare \
      --input "$data_dir/manifests" --made-by prepare --watch "$(value_of lm.text)" \
      --output "$exp_dir/lm/lm.pt" --output "$exp_dir/lm/bigram.arpa" --also "$exp_dir/lm/perplexity.json" --clear "$exp_dir/lm" -- \
      run local.train_lm --data-dir "$data_dir" --exp-dir "$exp_dir"
  elif [[ $first -le 3 && $last -ge 3 ]]; then
    echo "stage 3, lm: skipped: lm.train is false"
  fi
  [[ $(value_of decode.methods) != *fast_beam_search_LG* ]] || make_graph

  # What methods read besides the checkpoint, and the keys of the command line, which are not tuned.
  needed=(--watch "$data_dir/cuts" "${audio[@]}" --watch "$exp_dir/lm/lm.pt" --watch "$exp_dir/lm/bigram.arpa" --watch "$lang/graph/LG.npz"
    --watch "$(value_of decode.lm)" --watch "$(value_of decode.bigram)" --watch "$(value_of decode.ngram)"
    --watch "$(value_of decode.hotwords)" --input "$exp_dir/averaged.pt" --made-by average)
  if grep -qE '^tune\.[^ ]* \[[^]]' <<< "$config"; then
    tuning=true
    given=$(printf '%s\n' "${overrides[@]}" | grep -E '^(decode|average)\.' | tr '\n' ' ' || true)
    stage tune --config "tune decode average score data.dev_parts" --set "$given" "${needed[@]}" --there "$exp_dir/tuned.yaml" \
      --also "$exp_dir/tuned.pt" --also "$exp_dir/tune.tsv" -- \
      run local.tune --checkpoint "$exp_dir/averaged.pt" --data-dir "$data_dir" --exp-dir "$exp_dir"
    needed+=(--set "$given" --watch "$exp_dir/tuned.pt" --input "$exp_dir/tuned.yaml" --made-by tune)
  elif [[ $first -le 4 && $last -ge 4 ]]; then
    echo "stage 4, tune: skipped: section tune has no list"
  fi
  stage decode "${of_sets[@]}" "${of_mix[@]}" "${mixed[@]}" "${needed[@]}" --output "$exp_dir/decode" -- decode
  score_and_report --watch "$exp_dir/lm/perplexity.json"
  stage export --config "decode data.dev_parts" "${needed[@]}" --watch "$exp_dir/wer.json" --output "$exp_dir/export" -- \
    export_model
}

main "$@"; exit
