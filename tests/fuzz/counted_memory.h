#pragma once
// How much memory the program holds through operator new, which a test binary that links counted_memory.cpp counts.

#include <cstddef>

namespace ptq::test {

/// Starts a new count of the peak from what is held now.
void restart_peak_memory();
/// The most bytes held since then, beyond what was held then.
size_t peak_memory();

}  // namespace ptq::test
