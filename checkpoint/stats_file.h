#pragma once
// Calibration statistics in HDF5 (serial library, one file per writer, readable with h5py): a tree of named lists of numbers and texts.
// Every file begins with a digest of itself; no change of a single bit goes unnoticed.

#include <map>
#include <string>
#include <vector>

#include "checkpoint/stats_reader.h"
#include "checkpoint/stats_writer.h"

namespace ptq::checkpoint {

struct Stats {
  /// "model.layers.0.self_attn.q_proj/input_amax" -> values; a '/' makes an HDF5 group.
  std::map<std::string, std::vector<float>> arrays;
  /// The same of integers that have to be exact; no name is in both.
  std::map<std::string, std::vector<int64_t>> integers;
  /// Name -> another statistics file, beside this one or below: the name stands for all that is in it. Whoever opens this file with h5py
  /// finds it there; read_stats leaves it alone.
  std::map<std::string, std::string> links;
  /// Attributes of the root: fingerprints, versions.
  std::map<std::string, std::string> attributes;
};

/// Everything at once, by StatsWriter. The same statistics make the same bytes.
void write_stats(const std::string& path, const Stats& stats);
/// Everything but links, by StatsReader.
Stats read_stats(const std::string& path);

}  // namespace ptq::checkpoint
