#pragma once
// A file of statistics as it grows; see checkpoint/stats_file.h.

#include <memory>
#include <span>
#include <string>

namespace ptq::checkpoint {

/// A statistics file written piece by piece: what was put is on its way to the file and not kept. Nothing appears at the path before
/// finish(): until then it is PATH.tmp. Every method throws a system Error with HDF5's words.
class StatsWriter {
 public:
  explicit StatsWriter(const std::string& path);
  ~StatsWriter();
  StatsWriter(const StatsWriter&) = delete;
  StatsWriter& operator=(const StatsWriter&) = delete;

  /// Names are not empty, have no empty part, no part "." and no NUL, and none is also a group.
  void put(const std::string& name, std::span<const float> values);
  void put(const std::string& name, std::span<const int64_t> values);
  void put(const std::string& name, std::span<const double> values);
  void put_link(const std::string& name, const std::string& file);
  void put_attribute(const std::string& name, const std::string& text);
  /// Seals, fsyncs and renames: a reader sees all of it or nothing.
  void finish();

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace ptq::checkpoint
