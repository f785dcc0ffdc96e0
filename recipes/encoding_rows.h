#pragma once
// What encoding.cpp is made of: the bytes of one matrix, and of experts stacked in one tensor. For recipes/encoding.cpp alone.

#include <vector>

#include "recipes/encoding.h"

namespace ptq::recipes {

/// weight [rows, in] -> the kRows parts of an nn.Linear. row_scales undefined: the min-max ones.
std::vector<Tensor> encode_matrix(const Encoding& encoding, const Tensor& weight, const Tensor& row_scales, const LinearScales& scales,
                                  kernels::Fp8Quotient quotient);
/// And back: [rows, in] f32.
Tensor decode_matrix(const Encoding& encoding, int64_t in, const std::vector<Tensor>& parts, const LinearScales& scales);

/// weight [experts, in, out] -> parts [experts, ...]: each expert is turned to [out, in], encoded as a matrix, and what lies along `in`
/// turned back. row_scales undefined, or [experts, ...].
std::vector<Tensor> encode_stacked(const Encoding& encoding, const layers::LinearSpec& linear, const Tensor& weight,
                                   const Tensor& row_scales, const LinearScales& scales);
/// The inverse, but for the order: [experts, out, in] f32.
Tensor decode_stacked(const Encoding& encoding, const layers::LinearSpec& linear, const std::vector<Tensor>& parts,
                      const LinearScales& scales);

}  // namespace ptq::recipes
