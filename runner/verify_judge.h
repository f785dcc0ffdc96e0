#pragma once
// What the parts of verification share: the list of claims, and a tensor's bytes in pieces. For runner/verify*.cpp alone.

#include <algorithm>
#include <string>
#include <vector>

#include "recipes/kv_cache.h"
#include "runner/stored_encoding.h"
#include "runner/verify.h"

namespace ptq::runner {

class Judge {
 public:
  explicit Judge(VerifyResult& result) : result_(result) {}
  void claim(bool holds, const std::string& otherwise) {
    ++result_.checks;
    if (!holds && result_.failures.size() < 100) result_.failures.push_back(otherwise);
  }
  void claims(size_t checks, const std::vector<std::string>& failures) {
    for (const auto& failure : failures) claim(false, failure);
    result_.checks += static_cast<int64_t>(checks - std::min(checks, failures.size()));
  }

 private:
  VerifyResult& result_;
};

/// Walks the bytes of a tensor in pieces of whole rows: visit(first row, row after the last, bytes).
template <class Visit>
void for_pieces(const checkpoint::Reader& reader, const checkpoint::TensorEntry& entry, const Visit& visit) {
  constexpr int64_t kPiece = int64_t{8} << 20;
  const int64_t rows = entry.rows();
  const int64_t row_bytes = rows > 0 ? entry.bytes / rows : 0;
  const int64_t step = std::max<int64_t>(1, row_bytes > 0 ? kPiece / row_bytes : rows);
  std::vector<std::byte> buffer;
  for (int64_t begin = 0; begin < rows; begin += step) {
    const int64_t end = std::min(rows, begin + step);
    buffer.resize(static_cast<size_t>((end - begin) * row_bytes));
    reader.read_rows(entry, begin, end, buffer.data());
    visit(begin, end, buffer);
  }
}

/// A linear as it is stored. `key` is the module that servers know it by: a layer's routed experts are one.
struct StoredLinear {
  const layers::LinearSpec* linear;
  std::string key;
  recipes::Encoding encoding;
};

/// The bytes of a linear: codes and scales of its rows, its vectors, and that there are no tensors of other formats.
void check_linear(const checkpoint::Reader& reader, const StoredLinear& stored, Judge& judge);
/// The scalars of one layer's linears, each read once, and which of them servers take for one.
void check_shared(const StoredEncodings& encodings, const std::vector<StoredLinear>& layer, Judge& judge);
/// The scales and biases of one attention block's KV cache.
void check_kv(const checkpoint::Reader& reader, recipes::Dialect dialect, recipes::KvFormat format, const layers::AttentionHeads& attention,
              Judge& judge);

/// The method of the recipe that made this folder; "" where it is not there.
std::string method_of(const std::string& folder);
/// Do methods that smooth write this format?
bool takes_factors(recipes::Format format);
/// config.json but for the words of quantization, tokenizers and all other files: as the source has them.
void check_companions(const std::string& folder, const SourceModel& exported, const SourceModel& original, Judge& judge);

/// Tensors of a layer that are not quantized but may have taken smoothing factors: norms, routers, biases.
std::vector<std::string> folded_names(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored);
/// pre_quant_scale where a server asks for it though nothing may have been smoothed.
void check_stored_factors(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, Judge& judge);
/// That what those took is what a fold can be.
void check_folds(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const checkpoint::Reader& exported,
                 const checkpoint::Reader& source, Judge& judge);

// verify_scaled.cpp

/// Tensors of a layer that AutoQuantize's folds may have scaled though they are not quantized: norms, routers, linears, biases.
std::vector<std::string> scaled_names(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored);
/// That they are the source's times powers of two, by row and by column, and that what one gave up the other took, where both are plain.
void check_scaled(const layers::LayerSpec& layer, const std::vector<StoredLinear>& stored, const checkpoint::Reader& exported,
                  const checkpoint::Reader& source, Judge& judge);

}  // namespace ptq::runner
