#pragma once
// The weight files of one folder, opened when they are first read from and kept open up to a limit: a checkpoint of a large training run
// has thousands of them, more than a process may hold open. Any thread may ask.

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
  explicit OpenFiles(std::string folder, size_t most_open = 64) : folder_(std::move(folder)), most_open_(most_open) {}

  std::string path(const std::string& file) const { return folder_ + "/" + file; }
  /// A file by its name in the folder. Throws a data Error where it had another length when it was first opened.
  std::shared_ptr<const WeightFile> open(const std::string& file);

 private:
  struct Known {
    int64_t bytes = 0;
    std::shared_ptr<const WeightFile> opened;        ///< empty where it was closed again
    std::list<std::string>::iterator recently_used;  ///< its place in the list, while it is open
  };
  std::string folder_;
  size_t most_open_;
  std::mutex mutex_;
  std::map<std::string, Known> known_;
  std::list<std::string> open_;  ///< most recently used first
};

}  // namespace ptq::checkpoint
