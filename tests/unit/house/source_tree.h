#pragma once
// The project's own files as the house tests read them: what people wrote, without what was built, fetched or recorded.

#include <string>
#include <vector>

namespace ptq::test {

struct SourceFile {
  std::string path;                ///< from the root of the project, e.g. "kernels/core/dtype.h"
  std::vector<std::string> lines;  ///< without their newlines

  bool is_code() const;  ///< C++ or CUDA
  /// The first component of the path; "" for files at the root.
  std::string room() const;
};

/// Every text file of the rooms, tests, cmake and slurm folders, and of the root. Without tests/fixtures and tests/golden (data) and
/// tests/slurm-lab (taken over as it is).
std::vector<SourceFile> source_tree();

/// The whole text of a file of the project, by its path from the root; "" where there is none.
std::string read_text(const std::string& path);

}  // namespace ptq::test
