#!/usr/bin/env bash
# A searched job's speed against the machine's own: int4_awq of a 251.7 M-parameter Llama shape, 16 × 512 tokens, beside a 4096³ f32 product
# of oneDNN in the same run (rate R). Prints the whole run against 4.0 TFLOP ÷ R (the forward pass alone), where the time of the search
# went, and peak RSS. PTQ_BENCH_PRESETS: other presets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/calibrate
mkdir -p "$work"
[ -e "$work/model/data.safetensors" ] || "$bin/make_model" "$work/model" 1024 16 4096 16 4 64 4096 16 512
printf '%-12s %8s %8s %16s %8s %8s %8s %8s %9s %9s\n' preset R whole 'whole/(4.0 T/R)' forward Gram factors scales feedback 'peak RSS'
for preset in ${PTQ_BENCH_PRESETS:-int4_awq int4_awq int4_awq}; do
    cat >"$work/recipe.yaml" <<END
model: {path: $work/model}
calibration: {data: $work/model/data.safetensors, samples: 16, sequence_length: 512, pack: false}
quantization: {preset: $preset}
output: {path: $work/output, overwrite: true, dialect: $([ "$preset" = int4_awq ] && echo compressed-tensors || echo modelopt)}
END
    rate=$("$bin/library_rate")
    rm -rf "$work/output"
    begin=$(date +%s.%N)
    "$bin/ptq-runner" "$work/recipe.yaml" --quiet
    end=$(date +%s.%N)
    log=$work/output/ptq-runner/run.jsonl
    of() { sed -n "s/.*\"$1\":\([0-9.e-]*\).*/\1/p" <(grep "\"phase\":\"$2\"" "$log"); }
    awk -v preset="$preset" -v r="$rate" -v w="$(awk "BEGIN { print $end - $begin }")" -v f="$(of forward_seconds sweep)" \
        -v g="$(of gram_seconds search)" -v s="$(of factor_seconds search)" -v c="$(of scale_seconds search)" \
        -v e="$(of feedback_seconds search)" -v p="$(of peak_bytes verified)" 'BEGIN {
        printf "%-12s %3.0f GF/s %6.2f s %16.2f %6.2f s %6.2f s %6.2f s %6.2f s %7.2f s %5.2f GiB\n",
            preset, r, w, w / (4000 / r), f - g, g, s, c, e, p / 2^30 }'
done
echo "bar: whole/(4.0 T/R) at most 6 for int4_awq"
