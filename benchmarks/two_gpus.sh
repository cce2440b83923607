#!/usr/bin/env bash
# What several GPUs of one machine gain, in one sitting of five minutes at most on two H200.
#   benchmarks/two_gpus.sh OUT [GPUS] [--tiny]      (--tiny: on CPUs, that it runs)
# Times and memory; ladder_h200x2.sh measures another thing on two GPUs, fidelity.
# Rows are written as they are measured, so what a timeout ends keeps those that it has.
out=$(realpath -m "$1") gpus=${2:-2} tiny=$3
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit 1
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} NCCL_NVLS_ENABLE=0

on_all() { # SECONDS NAME SCRIPT ARGUMENTS...
  local seconds=$1 name=$2
  shift 2
  echo "== $name, after $SECONDS s"
  timeout -k 5 "$seconds" python3 -m torch.distributed.run --standalone --nproc-per-node "$gpus" \
    "$@" $tiny -o "$out/$name.json" 2>>"$out/log.txt" || echo "$name ended with status $?"
}

on_all 60 context_parallel_trained_heads benchmarks/context_parallel.py \
  --layers 4 --presets balanced --uneven balanced:shuffled,adaspa:shuffled
on_all $((290 - SECONDS)) whole_runs_compiled benchmarks/whole_runs.py wan2.1-14b \
  --layers 1 --steps 12 --warm 4 --compile --presets balanced,balanced:int8 --by ulysses,ring
echo "done after $SECONDS s"
