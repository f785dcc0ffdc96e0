#pragma once
// How large a range of values a scale covers, when that is not the largest magnitude seen: clipping a few outliers buys resolution for
// everything else.

#include <cstdint>
#include <span>

#include "recipes/encoding.h"

namespace ptq::recipes {

/// The magnitude that `percentile` per cent of those counted (kernels::count_magnitudes) are not above, to the next bin's edge; at most
/// amax.
float percentile_amax(std::span<const int64_t> counts, double percentile, float amax);
/// The range of least squared error for values so distributed, rounded as the format rounds inputs under one scale (FP8 per tensor, INT8);
/// amax for formats that scale blocks at run time.
float mse_amax(Format format, std::span<const int64_t> counts, float amax);

/// Do rows, groups or blocks of this format's weights have scales of their own?
bool has_row_range(Format format);
/// As minmax_row_scales, but of each scale's weights the best of 13 ranges from 0.4 to 1 times their largest (NVFP4: up to 1.5 times), by
/// squared error. weight [rows, in].
Tensor mse_row_scales(const Encoding& encoding, const Tensor& weight, const LinearScales& scales);

}  // namespace ptq::recipes
