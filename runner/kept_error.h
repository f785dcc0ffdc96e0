#pragma once
// Work between collectives must not throw past them: its first error is kept until all ranks agree on it.

#include <functional>
#include <new>
#include <optional>

#include "kernels/core/error.h"

namespace ptq::runner {

/// Runs `work` unless an error is kept already, and keeps the one that it throws.
inline void keep_error(std::optional<Error>& kept, const std::function<void()>& work) {
  if (kept) return;
  try {
    work();
  } catch (const Error& error) {
    kept = error;
  } catch (const std::bad_alloc&) {
    kept = system_error("out of memory", "", "lower memory.host or use more ranks");
  }
}

}  // namespace ptq::runner
