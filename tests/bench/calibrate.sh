#!/usr/bin/env bash
# The main job's speed against the machine's own: FP8 of a 251.7 M-parameter Llama shape, 16 × 512 tokens, beside a 4096³ f32 product of
# oneDNN in the same run (rate R). Prints the forward sweep's rate as a fraction of R, the whole run against 4.0 TFLOP ÷ R, and peak RSS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/calibrate
mkdir -p "$work"
[ -e "$work/model/data.safetensors" ] || "$bin/make_model" "$work/model" 1024 16 4096 16 4 64 4096 16 512
cat >"$work/recipe.yaml" <<END
model: {path: $work/model}
calibration: {data: $work/model/data.safetensors, samples: 16, sequence_length: 512, pack: false}
quantization: {preset: fp8}
output: {path: $work/output, overwrite: true}
END
# Linears of a layer: 2·1024·1024 + 2·256·1024 + 3·4096·1024 weights, 2 FLOP each a token, 16 layers.
flop=$(awk 'BEGIN { print 2 * 8192 * 16 * (2*1024*1024 + 2*256*1024 + 3*4096*1024) }')
printf '%8s %14s %12s %10s %16s %10s\n' "R" "forward" "forward/R" "whole" "whole/(4.0 T/R)" "peak RSS"
for run in 1 2 3; do
    rate=$("$bin/library_rate")
    rm -rf "$work/output"
    begin=$(date +%s.%N)
    "$bin/ptq-runner" "$work/recipe.yaml" --quiet
    end=$(date +%s.%N)
    log=$work/output/ptq-runner/run.jsonl
    forward=$(sed -n 's/.*"phase":"sweep".*"forward_seconds":\([0-9.e-]*\).*/\1/p' "$log")
    peak=$(sed -n 's/.*"phase":"verified".*"peak_bytes":\([0-9]*\).*/\1/p' "$log")
    awk -v r="$rate" -v f="$forward" -v flop="$flop" -v w="$(awk "BEGIN { print $end - $begin }")" -v p="$peak" 'BEGIN {
        printf "%5.0f GF/s %9.0f GF/s %12.2f %8.2f s %16.2f %6.2f GiB\n", r, flop / f / 1e9, flop / f / 1e9 / r, w, w / (4000 / r), p / 2^30 }'
done
echo "bars: forward/R at least 0.85, whole/(4.0 T/R) at most 1.35, peak RSS at most 0.40 GiB"
