#pragma once
// Which modules servers are told to leave alone: the exclude patterns of an export of one format, made from names and judged by how the
// servers read them.

#include <set>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace ptq::recipes {

/// ModelOpt's summary of unquantized module names: the shortest prefix glob that no quantized module matches. Sorted, unique.
std::vector<std::string> summarize_excluded(const std::vector<std::string>& unquantized, const std::vector<std::string>& quantized);

/// The modules that own a matrix among tensors outside the spec, sorted: of "x.weight" and of other names, such as stacked experts', "x".
std::vector<std::string> matrix_modules(const std::vector<checkpoint::OutputTensor>& tensors);

/// Quantized modules that some server would leave out by these patterns, and unquantized ones that some server would not: a sentence each.
/// vLLM matches the whole name by glob, or any substring of it; SGLang by glob the name or any dotted component; TensorRT-LLM by glob the
/// name or any dotted suffix.
std::vector<std::string> exclusion_faults(const std::vector<std::string>& patterns, const std::set<std::string>& quantized,
                                          const std::set<std::string>& unquantized);

}  // namespace ptq::recipes
