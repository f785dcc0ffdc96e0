#!/usr/bin/env bash
# Peak memory against depth: the same width at 8, 32 and 128 layers, 64 × 512 tokens, one rank, memory.host = 3 layers + hidden states.
# It must not grow with the number of layers.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/memory
mkdir -p "$work"
# measure WORDS LAYERS BUDGET QUANTIZATION SAMPLES TOKENS: runs the model that was made, prints its peak and what it is of the first's.
measure() {
    cat >"$work/recipe.yaml" <<END
model: {path: $work/model}
calibration: {data: $work/model/data.safetensors, samples: $5, sequence_length: $6, pack: false}
quantization: {$4}
memory: {host: $3}
output: {path: $work/output, overwrite: true}
END
    rm -rf "$work/output"
    "$bin/ptq-runner" "$work/recipe.yaml" --quiet
    local peak
    peak=$(sed -n 's/.*"phase":"verified".*"peak_bytes":\([0-9]*\).*/\1/p' "$work/output/ptq-runner/run.jsonl")
    first=${first:-$peak}
    awk -v w="$1" -v l="$2" -v p="$peak" -v f="$first" -v b="$3" 'BEGIN {
        printf "%s, %4d layers: peak RSS %7.1f MiB, %.3f x that of the first (budget %.1f MiB)\n", w, l, p / 2^20, p / f, b / 2^20 }'
    rm -rf "$work/model" "$work/output"
}
# hidden 1024, intermediate 4096: 15.2 M weights a layer in bf16; 64 × 512 × 1024 bf16 hidden states.
layer=$((2 * (2 * 1024 * 1024 + 2 * 256 * 1024 + 3 * 4096 * 1024)))
hidden=$((64 * 512 * 1024 * 2))
first=
for layers in ${PTQ_BENCH_LAYERS:-8 32 128}; do
    "$bin/make_model" "$work/model" 1024 $layers 4096 16 4 64 4096 64 512 >/dev/null
    measure fp8 $layers $((3 * layer + hidden)) "preset: fp8" 64 512
done
echo "bar: at most 1.100 x at 128 layers"
# Two candidates written, a backward sweep over kept inputs of layers, which spill where they do not fit.
first=
for layers in ${PTQ_BENCH_AUTO_LAYERS:-6 48}; do
    "$bin/make_model" "$work/model" 512 $layers 2048 8 2 64 2048 16 256 >/dev/null
    measure autoquantize $layers $((300 << 20)) "preset: auto, autoquantize: {effective_bits: 5.5, kl_checks: 1}" 16 256
done
