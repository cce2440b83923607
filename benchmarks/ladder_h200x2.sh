#!/usr/bin/env bash
# The ladder in one sitting on a machine of two GPUs: whole runs on one, fidelity on the other.
#   benchmarks/ladder_h200x2.sh OUT
out=$1
export OMP_NUM_THREADS=8
(
  export CUDA_VISIBLE_DEVICES=0
  run="timeout 300 python3 benchmarks/whole_runs.py"
  $run wan-1.3b --layers 6 --presets balanced,fast -o $out/wan13b.json
  $run wan-2.2-a14b --layers 1 --presets balanced -o $out/wan22.json
  $run wan-14b --layers 1 --presets balanced,fast,semantic --compiled balanced,fast -o $out/wan14b.json
  timeout 60 python3 benchmarks/ladder.py calls --only "tiles 128;tiles 64" --densities 0.2 --steps 2 \
    --shapes wan-1.3b-480p,cogvideox-5b,flux-4k,hunyuanvideo-720p -o $out/calls.json
) >$out/whole.txt 2>&1 &
(
  export CUDA_VISIBLE_DEVICES=1
  run="python3 benchmarks/ladder.py quality"
  timeout 200 $run --set rungs --seeds 1 --seconds 170 -o $out/rungs.json
  timeout 120 $run --set methods --levels 0.3 --seconds 100 -o $out/methods30.json
  timeout 70 $run --set "shift 3" --settings 3x20 --seeds 1 -o $out/shift3.json
  timeout 70 $run --set "shift 12" --settings 12x20 --seeds 1 -o $out/shift12.json
) >$out/quality.txt 2>&1 &
wait
