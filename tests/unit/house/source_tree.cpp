#include "tests/unit/house/source_tree.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

namespace fs = std::filesystem;

namespace ptq::test {

namespace {

const std::set<std::string> kTextSuffixes = {".h",     ".cpp", ".cu",   ".cuh",    ".sh",   ".txt",
                                             ".cmake", ".md",  ".yaml", ".sbatch", ".html", ".py"};
const std::set<std::string> kTextNames = {"dev", "run", ".clang-format", ".clang-tidy", ".gitignore", "CMakePresets.json"};
const std::set<std::string> kDataFolders = {"tests/fixtures", "tests/golden", "tests/slurm-lab"};

bool is_text(const fs::path& path) {
  return kTextSuffixes.contains(path.extension().string()) || kTextNames.contains(path.filename().string());
}

void add(const fs::path& file, std::vector<SourceFile>& files) {
  if (!is_text(file)) return;
  SourceFile& added = files.emplace_back();
  added.path = file.lexically_relative(PTQ_SOURCE_DIR).generic_string();
  std::istringstream text(read_text(added.path));
  for (std::string line; std::getline(text, line);) added.lines.push_back(line);
}

}  // namespace

bool SourceFile::is_code() const {
  return path.ends_with(".h") || path.ends_with(".cpp") || path.ends_with(".cu") || path.ends_with(".cuh");
}

std::string SourceFile::room() const {
  const size_t slash = path.find('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

std::vector<SourceFile> source_tree() {
  const fs::path root = PTQ_SOURCE_DIR;
  std::vector<SourceFile> files;
  for (const auto& entry : fs::directory_iterator(root))
    if (entry.is_regular_file()) add(entry.path(), files);
  for (const char* folder : {"runner", "recipes", "layers", "kernels", "parallel", "checkpoint", "tests", "cmake", "slurm", ".ci"}) {
    for (auto entry = fs::recursive_directory_iterator(root / folder); entry != fs::recursive_directory_iterator(); ++entry) {
      if (kDataFolders.contains(entry->path().lexically_relative(root).generic_string()))
        entry.disable_recursion_pending();
      else if (entry->is_regular_file())
        add(entry->path(), files);
    }
  }
  std::sort(files.begin(), files.end(), [](const SourceFile& a, const SourceFile& b) { return a.path < b.path; });
  return files;
}

std::string read_text(const std::string& path) {
  std::ifstream file(fs::path(PTQ_SOURCE_DIR) / path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace ptq::test
