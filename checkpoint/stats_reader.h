#pragma once
// A look into a file of statistics; see checkpoint/stats_file.h.

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ptq::checkpoint {

/// A statistics file of which only what is asked for is read.
class StatsReader {
 public:
  /// kKnown: the caller knows that the file is sound, because someone has checked it a moment ago.
  enum class Digest { kChecked, kKnown };
  /// Checks the digest, which reads the whole file. Throws a system Error for a file that cannot be opened, a data Error for one that is no
  /// statistics file or is damaged.
  explicit StatsReader(const std::string& path, Digest digest = Digest::kChecked);
  ~StatsReader();
  StatsReader(const StatsReader&) = delete;
  StatsReader& operator=(const StatsReader&) = delete;

  /// Of all lists of numbers.
  std::vector<std::string> names() const;
  bool has(const std::string& name) const;
  bool has_integers(const std::string& name) const;
  /// Throws a data Error for a name that is not in the file or another kind of numbers.
  std::vector<float> floats(const std::string& name) const;
  std::vector<int64_t> integers(const std::string& name) const;
  std::vector<double> doubles(const std::string& name) const;
  /// The same into memory of the caller; also a data Error when there are not exactly so many.
  void floats(const std::string& name, std::span<float> values) const;
  std::map<std::string, std::string> attributes() const;
  const std::string& path() const;

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace ptq::checkpoint
