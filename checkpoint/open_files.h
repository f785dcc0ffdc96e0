#pragma once
// The weight files of one folder, or one archive, opened when they are first read from and kept open up to a limit: a checkpoint of a
// large training run has thousands of them, more than a process may hold open. Any thread may ask.

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "checkpoint/weight_file.h"

namespace ptq::checkpoint {

class OpenFiles {
 public:
  /// `root`: the folder, or the archive, which is its only file and is called "".
  explicit OpenFiles(std::string root, size_t most_open = 64) : root_(std::move(root)), most_open_(most_open) {}

  std::string path(const std::string& file) const { return file.empty() ? root_ : root_ + "/" + file; }
  /// A file by its name in the folder. Throws a data Error where it had another length when it was first opened.
  std::shared_ptr<const WeightFile> open(const std::string& file);

 private:
  struct Known {
    int64_t bytes = 0;
    std::shared_ptr<const WeightFile> opened;        ///< empty where it was closed again
    std::list<std::string>::iterator recently_used;  ///< its place in the list, while it is open
  };
  std::string root_;
  size_t most_open_;
  std::mutex mutex_;
  std::map<std::string, Known> known_;
  std::list<std::string> open_;  ///< most recently used first
};

}  // namespace ptq::checkpoint
