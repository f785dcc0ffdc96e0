#!/usr/bin/env bash
# Four layers of DeepSeek-R1 in its own FP8 blocks (3 dense, 1 with all 256 experts, and the multi-token-prediction layer: 32 GB), 16 × 512
# tokens, memory.host = 6 GiB a rank: a layer of 11 GB goes through it a few experts at a time. FP8 and NVFP4 on 1 and 2 ranks, beside what
# the disk reads and writes. Skipped without the model's shape (../shared/shapes) and 70 GB of free disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bin=$PWD/build/cpu/bin
work=${PTQ_BENCH_FOLDER:-$PWD/build/bench}/moe
shapes=${PTQ_SHARED:-$PWD/../shared}/shapes
if [ ! -e "$shapes/hollow.py" ]; then
    echo "skipped: $shapes/hollow.py is not here, which makes a checkpoint of DeepSeek-R1's shape"
    exit 0
fi
mkdir -p "$work"
if [ ! -e "$work/model/model.safetensors.index.json" ]; then
    free=$(df --output=avail -B1 "$work" | tail -1)
    if [ "$free" -lt 70000000000 ]; then
        echo "skipped: $((free / 1000000000)) GB of free disk at $work, 70 GB needed"
        exit 0
    fi
    rm -rf "$work/model"
    python3 "$shapes/hollow.py" "$shapes/DeepSeek-R1" "$work/model" --layers 4 --fill
fi
python3 - "$work/ids.safetensors" <<'END'
import json, random, struct, sys
random.seed(1)
ids = struct.pack("<8192i", *(random.randrange(129280) for _ in range(8192)))
header = json.dumps({"input_ids": {"dtype": "I32", "shape": [16, 512], "data_offsets": [0, len(ids)]}}).encode()
header += b" " * (-len(header) % 8)
open(sys.argv[1], "wb").write(struct.pack("<Q", len(header)) + header + ids)
END
bytes=$(cat "$work"/model/*.safetensors | wc -c)
drop() { rm -rf "$work/output" "$work/copy"; sync; { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || true; }
seconds() { local begin; begin=$(date +%s.%N); "$@" >/dev/null 2>&1; awk "BEGIN { print $(date +%s.%N) - $begin }"; }
shard=$(ls -S "$work"/model/*.safetensors | head -1)
drop
read_rate=$(awk "BEGIN { print $(stat -c %s "$shard") / $(seconds dd if="$shard" of=/dev/null bs=16M iflag=direct) }")
write_rate=$(awk "BEGIN { print $(stat -c %s "$shard") / $(seconds dd if="$shard" of="$work/copy" bs=16M oflag=direct conv=fsync) }")
awk -v r="$read_rate" -v w="$write_rate" 'BEGIN { printf "disk: reads %.2f GB/s, reads and writes %.2f GB/s\n", r / 1e9, w / 1e9 }'
for preset in ${PTQ_BENCH_PRESETS:-fp8 nvfp4}; do
    for ranks in ${PTQ_BENCH_RANKS:-1 2}; do
        cat >"$work/recipe.yaml" <<END
model: {path: $work/model}
calibration: {data: $work/ids.safetensors, samples: 16, sequence_length: 512, pack: false}
quantization: {preset: $preset}
parallel: {expert: $ranks}
memory: {host: 6GiB}
output: {path: $work/output, overwrite: true, verify: ${PTQ_BENCH_VERIFY:-true}}
END
        drop
        taken=$(seconds tests/support/mpirun.sh "$ranks" "$bin/ptq-runner" "$work/recipe.yaml" --quiet)
        log=$work/output/ptq-runner/run.jsonl
        peak=$(sed -n 's/.*"peak_bytes_of_any_rank":\([0-9]*\).*/\1/p' "$log")
        sweep=$(sed -n 's/.*"phase":"sweep".*"seconds_total":\([0-9.]*\).*/\1/p' "$log")
        transferred=$(sed -n 's/.*"phase":"transferred".*"bytes_read":\([0-9]*\),"bytes_written":\([0-9]*\).*/\1 \2/p' "$log")
        # The run has summed every file already; what tells of ranks and times is left out.
        sum=$(grep -E '^ +"[^"]*\.(safetensors|json)": "[0-9a-f]{64}"' "$work/output/ptq-runner/manifest.json" | grep -v ptq-runner/ | sha256sum | cut -c1-16)
        awk -v p="$preset" -v n="$ranks" -v t="$taken" -v s="$sweep" -v peak="$peak" -v io="$transferred" -v r="$read_rate" -v w="$write_rate" -v sum="$sum" 'BEGIN {
            split(io, b, " ")
            floor = b[1] / r + b[2] / w
            printf "%-5s on %d rank(s): %.0f s, sweep of 4 layers %.0f s = %.0f tokens/s, %.2f GB/s read and written, %.2f of what the disk alone would take; peak RSS %.2f GiB a rank (budget 6.00); output %s\n",
                p, n, t, s, 8192 / s, (b[1] + b[2]) / t / 1e9, floor / t, peak / 2^30, sum }'
    done
done
rm -rf "$work/output" "$work/copy"
