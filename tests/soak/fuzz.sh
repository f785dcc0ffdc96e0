#!/usr/bin/env bash
# Every reader of untrusted bytes on damaged files for ten minutes, under AddressSanitizer and UndefinedBehaviorSanitizer.
#   tests/soak/fuzz.sh [SECONDS]    for each reader; default 600
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.."

cmake --preset asan >build/asan.configure.log || { cat build/asan.configure.log; exit 1; }
cmake --build --preset asan --target fuzz_test -- --quiet
cd build/asan
mapfile -t readers < <(bin/fuzz_test --gtest_list_tests | awk '/^[^ ].*\.$/ { suite = $1 } /^  / { print suite $1 }')
# Two at a time: each is one thread.
printf '%s\n' "${readers[@]}" | PTQ_FUZZ_SECONDS=${1:-600} UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
  xargs -P 2 -I '{}' bin/fuzz_test '--gtest_filter={}' --gtest_brief=1
