#include "checkpoint/stats_file.h"

namespace ptq::checkpoint {

void write_stats(const std::string& path, const Stats& stats) {
  StatsWriter writer(path);
  for (const auto& [name, values] : stats.arrays) writer.put(name, std::span<const float>(values));
  for (const auto& [name, values] : stats.integers) writer.put(name, std::span<const int64_t>(values));
  for (const auto& [name, file] : stats.links) writer.put_link(name, file);
  for (const auto& [name, text] : stats.attributes) writer.put_attribute(name, text);
  writer.finish();
}

Stats read_stats(const std::string& path) {
  const StatsReader reader(path);
  Stats stats;
  for (const std::string& name : reader.names()) {
    if (reader.has_integers(name))
      stats.integers[name] = reader.integers(name);
    else
      stats.arrays[name] = reader.floats(name);
  }
  stats.attributes = reader.attributes();
  return stats;
}

}  // namespace ptq::checkpoint
