#!/usr/bin/env bash
# Quantizes a small model under a real Slurm: four nodes on this machine (tests/slurm-lab), one rank, 2 x 2 ranks and 4 x 1 ranks.
# All must write the same bytes, and a user error must end the job with exit code 2 on every rank.
#   tests/e2e/srun.sh [PROGRAM]
# Exit status: 0 passed, 1 failed, 77 skipped, with the reason (the lab makes name spaces, which needs root).
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."
program=$(readlink -f "${1:-build/cpu/bin/ptq-runner}")

skip() { echo "skipped: $*"; exit 77; }
fail() { echo "FAILED: $*"; exit 1; }

skip_where_no_lab_can_be() {
  [ "$(id -u)" = 0 ] || skip "the Slurm lab needs root"
  local package
  for package in slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge iproute2 openmpi-bin libopenmpi-dev; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || skip "the package $package is not installed"
  done
  timeout 20 unshare --net --pid --uts --ipc --mount --propagation slave --fork --kill-child \
    sh -c 'mount -t tmpfs tmpfs /dev/shm && ip link add br0 type bridge' 2>/dev/null || skip "this machine does not let root make name spaces and bridges"
}

start_lab() {
  export SLURM_LAB_STATE SLURM_LAB_SHARE=$PWD SLURM_LAB_GPUS=0
  SLURM_LAB_STATE=$(mktemp -d /tmp/ptq-slurm-lab.XXXXXX)
  trap stop_lab EXIT
  trap 'exit 1' INT TERM
  timeout 120 tests/slurm-lab/up 4 >"$SLURM_LAB_STATE.up.log" 2>&1 || {
    cat "$SLURM_LAB_STATE.up.log"
    fail "the Slurm lab did not come up"
  }
  shared=$SLURM_LAB_STATE/shared # the one part of /tmp that all nodes see
}
stop_lab() {
  timeout 60 tests/slurm-lab/down >/dev/null || echo "the Slurm lab in $SLURM_LAB_STATE did not go down"
  rm -rf "$SLURM_LAB_STATE" "$SLURM_LAB_STATE".*
}

write_recipe() {
  cat >"$shared/recipe.yaml" <<END
model: {path: $PWD/tests/fixtures/llama}
calibration: {data: $PWD/tests/fixtures/selfgen.jsonl, samples: 8, sequence_length: 128, pack: true}
quantization: {preset: nvfp4, kv_cache: fp8}
output: {path: $shared/unset}
END
}

# on_nodes NODES RANKS_PER_NODE ARGUMENT...: the program under srun. Every wait has an end: for nodes, for the job, and for srun itself.
on_nodes() {
  local nodes=$1 ranks_per_node=$2
  shift 2
  OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none \
    timeout -k 10 150 "$SLURM_LAB_STATE/bin/srun" --mpi=pmix -K --immediate=30 --cpu-bind=none \
    -N "$nodes" --ntasks-per-node="$ranks_per_node" "$program" "$@"
}

# quantize LABEL NODES RANKS_PER_NODE [key=value ...]: writes $shared/LABEL, and $shared/LABEL.sha256 of the files at its top level.
quantize() {
  local label=$1 nodes=$2 ranks_per_node=$3 status=0 start=$SECONDS
  shift 3
  on_nodes "$nodes" "$ranks_per_node" "$shared/recipe.yaml" output.path="$shared/$label" "$@" >"$shared/$label.log" 2>&1 || status=$?
  [ $status = 0 ] || { tail -n 40 "$shared/$label.log"; fail "$label: exit status $status"; }
  (cd "$shared/$label" && find . -maxdepth 1 -type f -print0 | sort -z | xargs -0 sha256sum) >"$shared/$label.sha256"
  [ -s "$shared/$label.sha256" ] || fail "$label: no files were written"
  echo "$label: $nodes nodes x $ranks_per_node ranks: $(wc -l <"$shared/$label.sha256") files in $((SECONDS - start)) s"
}
same_bytes() {
  diff "$shared/$1.sha256" "$shared/$2.sha256" || fail "$1 and $2 differ in the files above"
}

[ -x "$program" ] || fail "there is no program $program: build it first"
skip_where_no_lab_can_be
start_lab
write_recipe

quantize one_rank 1 1
quantize two_by_two 2 2 parallel.tensor=2
quantize four_nodes 4 1
same_bytes one_rank two_by_two
same_bytes one_rank four_nodes

status=0
on_nodes 2 2 "$shared/recipe.yaml" output.path="$shared/never" quantization.no_such_key=1 >"$shared/never.log" 2>&1 || status=$?
[ $status = 2 ] || { tail -n 40 "$shared/never.log"; fail "an unknown key of the recipe: exit status $status, not 2"; }
[ "$(grep -c '^error:' "$shared/never.log")" = 1 ] || { cat "$shared/never.log"; fail "an unknown key of the recipe: not one message"; }
echo "passed: the same bytes from 1, 2 x 2 and 4 x 1 ranks; a user error ends all ranks with 2"
