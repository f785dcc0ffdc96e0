#pragma once
// Number formats by their definitions, a search over all values instead of bit tricks, and the quantizers of kernels/ops.h as plain loops
// over them. For tests only: slow and single-threaded.

#include <cstdint>
#include <vector>

#include "kernels/ops.h"

namespace ptq::test {

/// The code whose value is nearest to x, ties to the even code; beyond ±448 the largest. -0 keeps its sign. x is not NaN.
uint8_t nearest_e4m3(float x);
enum class Ties { kEven, kTowardZero };
/// The same for E2M1. kEven: the sign of x < 0; kTowardZero, as MXFP4 weights are written: the sign of x <= 0.
uint8_t nearest_e2m1(float x, Ties ties);
/// The nearest integer of [lowest, highest], ties to even.
int nearest_integer(float x, int lowest, int highest);
/// The least code of 0 ... 254 whose power of two is at least x.
uint8_t least_e8m0(float x);
float e8m0_value(uint8_t code);

/// Normal weights with the awkward ones sprinkled in, by stretches of 16: zeros of both signs, subnormals, huge values, exact ties.
Tensor awkward_weights(DType dtype, int64_t rows, int64_t columns);
/// The bytes of a tensor of any dtype.
std::vector<uint8_t> raw_bytes(const Tensor& tensor);

/// max |x| of every block in row-major order of blocks.
std::vector<float> block_amaxes(const Tensor& x, const kernels::ScaleBlock& block);
/// amax/format_max of each, 1 for 0.
std::vector<float> scales_of(const std::vector<float>& amaxes, float format_max);

enum class Element { kE4M3, kInt8, kInt4 };
float largest(Element element);
struct Quantized {
  std::vector<uint8_t> codes;  ///< [O, C], two's complement for the integers
  std::vector<float> values;   ///< [O, C], dequantized
};
/// Every element divided by its block's scale.
Quantized quantize_blocks(const Tensor& w, const std::vector<float>& scales, const kernels::ScaleBlock& block, Element element);

struct QuantizedMx {
  std::vector<uint8_t> codes;   ///< [O, C], unpacked
  std::vector<uint8_t> scales;  ///< [O, C/32]
  std::vector<float> values;    ///< [O, C], dequantized
};
QuantizedMx quantize_mxfp8(const Tensor& w);
QuantizedMx quantize_mxfp4(const Tensor& w, Ties ties);

/// Neighbouring codes to bytes, the even one in the low nibble.
std::vector<uint8_t> pack_nibbles(const std::vector<uint8_t>& codes);

}  // namespace ptq::test
