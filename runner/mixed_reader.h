#pragma once
// One checkpoint whose tensors lie in several: what a mix of candidate formats is before it is written.

#include <map>
#include <memory>
#include <string>

#include "checkpoint/reader.h"

namespace ptq::runner {

/// By tensor name, the checkpoint that has it; those outlive the reader. Its folder is the first one's.
std::unique_ptr<checkpoint::Reader> open_mixed(const std::map<std::string, const checkpoint::Reader*>& tensors);

}  // namespace ptq::runner
