#pragma once
// Calibration statistics in HDF5 (serial library, one file per writer, readable with h5py): a tree of named float arrays and texts.

#include <map>
#include <string>
#include <vector>

namespace ptq::checkpoint {

struct Stats {
  /// "model.layers.0.self_attn.q_proj/input_amax" -> values; a '/' makes an HDF5 group.
  std::map<std::string, std::vector<float>> arrays;
  /// Attributes of the root: fingerprints, versions.
  std::map<std::string, std::string> attributes;
};

/// Writes the file beside itself under a temporary name, fsyncs, renames. Throws a system Error with HDF5's words.
void write_stats(const std::string& path, const Stats& stats);
/// Throws a data Error for a file that is no such file.
Stats read_stats(const std::string& path);

}  // namespace ptq::checkpoint
