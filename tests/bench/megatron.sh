#!/usr/bin/env bash
# The same job from a training checkpoint as Megatron-core writes it (torch_dist, tensor 4 x pipeline 2, 4.5 GB) and from the Hugging Face
# form of the same model: weights-only NVFP4, page cache dropped before each, three alternating runs; then peak memory. Needs root to drop
# the cache.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/megatron
mkdir -p "$work"
[ -e "$work/model/config.json" ] || "$bin/make_model" "$work/model" 4096 10 14336 32 8 128 4000
[ -e "$work/megatron/.metadata" ] || "$bin/make_megatron" "$work/model" "$work/megatron" 4 2
recipe() {
    cat >"$work/$1.yaml" <<END
model: {$2}
quantization: {format: w4a16_nvfp4, method: minmax}
memory: {host: 900MiB}
output: {path: $work/$1, overwrite: true, verify: false}
END
}
recipe from_hf "path: $work/model"
recipe from_megatron "path: $work/megatron, config: $work/model"
drop() { rm -rf "$work/$1"; sync; echo 3 >/proc/sys/vm/drop_caches; }
seconds() { local begin; begin=$(date +%s.%N); "$bin/ptq-runner" "$work/$1.yaml" --quiet; awk "BEGIN { print $(date +%s.%N) - $begin }"; }
median() { sort -n | sed -n 2p; }
for run in 1 2 3; do
    for source in from_hf from_megatron; do
        drop $source
        s=$(seconds $source)
        echo "$s" >>"$work/$source.$$"
        echo "$source: $s s"
    done
done
cmp "$work/from_hf/model.safetensors" "$work/from_megatron/model.safetensors"
peak=$(sed -n 's/.*"phase":"finished".*"peak_bytes_of_any_rank":\([0-9]*\).*/\1/p' "$work/from_megatron/ptq-runner/run.jsonl")
awk -v h="$(median <"$work/from_hf.$$")" -v m="$(median <"$work/from_megatron.$$")" -v p="$peak" 'BEGIN {
    printf "same bytes; medians: from Megatron %.2f s, from Hugging Face %.2f s: %.2f x (bar 1.30); peak RSS %.0f MiB (bar 1024)\n",
        m, h, m / h, p / 2^20 }'
rm -rf "$work"/*.$$ "$work/from_hf" "$work/from_megatron"
