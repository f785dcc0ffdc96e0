#pragma once
// What this program calls itself in its output.

namespace ptq::recipes {

inline constexpr const char* kProgram = "ptq-runner 0.1.0";

}  // namespace ptq::recipes
