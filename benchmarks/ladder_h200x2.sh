#!/usr/bin/env bash
# Fidelity of the ladder in one sitting on a machine of two GPUs.
#   benchmarks/ladder_h200x2.sh OUT
out=$1
export OMP_NUM_THREADS=8
run="python3 benchmarks/ladder.py quality"
(
  export CUDA_VISIBLE_DEVICES=0
  timeout 420 $run --set curves --seconds 330 -o $out/curves.json
  timeout 120 $run --set schedules --seconds 80 -o $out/schedules.json
) >$out/gpu0.txt 2>&1 &
(
  export CUDA_VISIBLE_DEVICES=1
  timeout 260 $run --set methods --levels 0.45,0.3 --seconds 230 -o $out/methods.json
  timeout 100 $run --set "shift 3" --settings 3x20 --seconds 80 -o $out/shift3.json
  timeout 100 $run --set "shift 12" --settings 12x20 --seconds 80 -o $out/shift12.json
  timeout 60 $run --set rungs --settings 5x8 --seconds 50 -o $out/steps8.json
  timeout 120 $run --set rungs --settings 5x50 --seeds 1 --seconds 90 -o $out/steps50.json
) >$out/gpu1.txt 2>&1 &
wait
cat $out/gpu0.txt $out/gpu1.txt
tar czf $out/quality.tgz -C $out --exclude=quality.tgz .
find $out -name '*.json' -delete -o -name '*.txt' -delete
