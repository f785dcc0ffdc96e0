#pragma once
// The KV cache's format layer by layer, as AutoQuantize chooses it: what every candidate would keep of a token, in the words that the
// linears' decision has. Keys and values of an attention block have one format.

#include "checkpoint/files.h"
#include "recipes/kv_cache.h"
#include "recipes/sensitivity.h"

namespace ptq::recipes {

/// What quantization.autoquantize.kv_cache chooses from, every score 0. One group is an attention block, in model order: its weights are
/// the numbers that a server caches of one token, kv_heads · (head_dim + v_head_dim), or one latent vector and the rotated part of the keys
/// for latent attention; an option's bits are what they take, scales of NVFP4 included. Throws user Errors: a format that a block cannot
/// have, no attention block at all.
KvSensitivity kv_choice(const layers::ModelSpec& model, const Recipe& recipe);

/// A mix as the export takes it.
KvFormats kv_formats_of(const KvSensitivity& choice, const Mix& mix);

/// What report.json says: bits that were asked for and reached, and for every block its format and options.
checkpoint::Json kv_report(const KvSensitivity& choice, const Mix& mix, double budget);

}  // namespace ptq::recipes
