#pragma once
// How an exported checkpoint stores its linears, recognised from its tensors and, where those do not tell, from config.json's words.

#include <optional>

#include "recipes/encoding.h"
#include "recipes/kv_cache.h"
#include "recipes/other_dialects.h"
#include "runner/source_model.h"

namespace ptq::runner {

class StoredEncodings {
 public:
  /// Keeps references to the source's reader. Throws a data Error for words of compressed-tensors that are of no format here.
  explicit StoredEncodings(const SourceModel& source);
  /// How a linear is stored; unquantized where it is plain. Throws a data Error for layouts this version does not read.
  recipes::Encoding of(const layers::LinearSpec& linear) const;
  /// Scalars and vectors of a linear, read from the file.
  recipes::LinearScales scales(const recipes::Encoding& encoding, const layers::LinearSpec& linear) const;
  recipes::Dialect dialect() const { return dialect_; }

 private:
  bool fits(const recipes::Encoding& encoding, const layers::LinearSpec& linear) const;

  const checkpoint::Reader& reader_;
  recipes::Dialect dialect_ = recipes::Dialect::kModelOpt;
  std::optional<recipes::CompressedFormats> words_;
};

/// The KV cache of every attention block as config.json says it, in any dialect. Throws a data Error for formats that are not known here.
recipes::KvFormats stored_kv_formats(const checkpoint::Json& config, const layers::ModelSpec& model);
/// What is stored of one attention block. Throws a data Error where something is missing or of another shape.
recipes::KvScales read_kv_scales(const checkpoint::Reader& reader, recipes::Dialect dialect, recipes::KvFormat format,
                                 const layers::AttentionHeads& attention);

}  // namespace ptq::runner
