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

/// Writes the file beside itself under the temporary name PATH.tmp, fsyncs, renames: a reader sees all of it or nothing. The same
/// statistics make the same bytes. Names are not empty, have no empty part, no part "." and no NUL, and no array is also a group.
/// Throws a system Error with HDF5's words.
void write_stats(const std::string& path, const Stats& stats);
/// Checks the digest write_stats put before the HDF5 part first: no change of a single bit goes unnoticed.
/// Throws a system Error for a file that cannot be opened, a data Error for one that is no statistics file or is damaged.
Stats read_stats(const std::string& path);

}  // namespace ptq::checkpoint
