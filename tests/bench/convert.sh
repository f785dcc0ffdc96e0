#!/usr/bin/env bash
# Converting without calibration against the disk: weights-only NVFP4 of a 4.4 GB checkpoint beside cp + sync of the same folder, page
# cache dropped before each, three alternating runs. Needs root to drop the cache.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/convert
mkdir -p "$work"
[ -e "$work/model/config.json" ] || "$bin/make_model" "$work/model" 4096 10 14336 32 8 128 4096
bytes=$(cat "$work"/model/*.safetensors | wc -c)
recipe() {
    cat >"$work/recipe.yaml" <<END
model: {path: $work/model}
quantization: {format: w4a16_nvfp4, method: minmax}
output: {path: $work/output, overwrite: true, verify: $1}
END
}
drop() { rm -rf "$work/output" "$work/copy"; sync; echo 3 >/proc/sys/vm/drop_caches; }
seconds() { local begin; begin=$(date +%s.%N); "$@" >/dev/null; awk "BEGIN { print $(date +%s.%N) - $begin }"; }
copy() { cp -r "$work/model" "$work/copy"; sync -f "$work/copy"; }
median() { sort -n | sed -n 2p; }
for run in 1 2 3; do
    drop; c=$(seconds copy); echo "$c" >>"$work/copy.$$"
    recipe false; drop; r=$(seconds "$bin/ptq-runner" "$work/recipe.yaml" --quiet); echo "$r" >>"$work/run.$$"
    recipe true; drop; v=$(seconds "$bin/ptq-runner" "$work/recipe.yaml" --quiet); echo "$v" >>"$work/verified.$$"
    awk -v b="$bytes" -v c="$c" -v r="$r" -v v="$v" 'BEGIN { printf "cp + sync %.2f s (%.2f GB/s)   converting %.2f s (%.2f GB/s)   with verify %.2f s\n", c, b / c / 1e9, r, b / r / 1e9, v }'
done
awk -v c="$(median <"$work/copy.$$")" -v r="$(median <"$work/run.$$")" -v v="$(median <"$work/verified.$$")" 'BEGIN {
    printf "medians: converting reaches %.2f x the bytes/s of cp + sync (with verify %.2f x); bar 0.50\n", c / r, c / v }'
rm -rf "$work"/*.$$ "$work/output" "$work/copy"
