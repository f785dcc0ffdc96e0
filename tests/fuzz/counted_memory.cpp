#include "tests/fuzz/counted_memory.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {
std::atomic<size_t> held{0}, peak{0}, base{0};

void* counted(void* memory) {
  if (!memory) throw std::bad_alloc();
  const size_t now = held += malloc_usable_size(memory);
  size_t most = peak;
  while (now > most && !peak.compare_exchange_weak(most, now)) {
  }
  return memory;
}
void released(void* memory) {
  if (memory) held -= malloc_usable_size(memory);
  std::free(memory);
}
}  // namespace

namespace ptq::test {
void restart_peak_memory() { peak = base = held.load(); }
size_t peak_memory() { return peak - base; }
}  // namespace ptq::test

void* operator new(size_t bytes) { return counted(std::malloc(bytes ? bytes : 1)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted(std::aligned_alloc(static_cast<size_t>(alignment), (bytes + static_cast<size_t>(alignment) - 1) /
                                                                        static_cast<size_t>(alignment) * static_cast<size_t>(alignment)));
}
// std::stable_sort asks for memory so and frees it with the plain delete: both have to be of one kind.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  try {
    return operator new(bytes);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* memory) noexcept { released(memory); }
void operator delete(void* memory, size_t) noexcept { released(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { released(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { released(memory); }
