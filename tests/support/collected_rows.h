#pragma once
// Calibration rows dealt over data ranks and shown to an ActivationCollector in micro-batches, as a sweep does it.

#include <algorithm>
#include <numeric>

#include "layers/model_spec.h"
#include "recipes/activation_collector.h"
#include "tests/support/reference_ops.h"

namespace ptq::test {

/// Unequal rows, not a multiple of 2 or 4.
inline const std::vector<int64_t> kRowLengths{5, 1, 9, 3, 7, 2, 4};

inline Tensor calibration_tokens(int64_t channels, DType dtype) {
  return random_tensor({std::accumulate(kRowLengths.begin(), kRowLengths.end(), int64_t{0}), channels}, dtype, 21, 2.0f);
}

/// What was collected of all rows by the ranks of data and stage, `places` rows of each data rank in a micro-batch.
inline recipes::InputStatistics collect(const Tensor& tokens, int64_t places, parallel::Communicator& data, parallel::Communicator& stage) {
  recipes::SearchSeconds seconds;
  recipes::ActivationCollector collector({[](const layers::LayerSpec&, int) {
                                            return recipes::InputNeeds{true, true, true};
                                          },
                                          [](const layers::LayerSpec&) { return false; }, &data, &stage, kRowLengths},
                                         seconds);
  layers::LayerSpec layer;
  const auto all = static_cast<int64_t>(kRowLengths.size());
  const int64_t ranks = data.size();
  std::vector<int64_t> first{0};
  for (const int64_t length : kRowLengths) first.push_back(first.back() + length);
  for (int64_t begin = 0; begin < all; begin += places * ranks) {
    const parallel::Range rows{begin, std::min(all, begin + places * ranks)};
    std::vector<int64_t> lengths;
    std::vector<Tensor> pieces;
    for (int64_t row = rows.begin + data.rank(); row < rows.end; row += ranks) {
      lengths.push_back(kRowLengths[static_cast<size_t>(row)]);
      pieces.push_back(tokens.rows(first[static_cast<size_t>(row)], first[static_cast<size_t>(row) + 1]));
    }
    layers::Batch batch = layers::make_batch(begin + data.rank(), lengths);
    batch.row_step = ranks;
    batch.all_rows = rows;
    const Tensor x = Tensor::empty({batch.tokens(), tokens.dim(1)}, tokens.dtype());
    std::byte* out = x.raw();
    for (const Tensor& piece : pieces) out = std::copy(piece.raw(), piece.raw() + piece.bytes(), out);
    collector.linear_input(layer, 0, x, batch);
  }
  return collector.take(layer, 0, {.channels = true, .gram = true, .sample = true});
}

/// All of it, bit by bit.
inline bool same_statistics(const recipes::InputStatistics& a, const recipes::InputStatistics& b) {
  bool same =
      same_bits(a.amax, b.amax) && same_bits(a.mean_abs, b.mean_abs) && same_bits(a.sample, b.sample) && a.gram.size() == b.gram.size();
  for (size_t i = 0; same && i < a.gram.size(); ++i) same = same_bits(a.gram[i].values, b.gram[i].values);
  return same;
}

}  // namespace ptq::test
