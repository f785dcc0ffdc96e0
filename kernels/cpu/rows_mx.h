#pragma once
// Quantizers of the microscaling formats: blocks of 32 columns with an E8M0 scale each. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/block_amax.h"
#include "kernels/cpu/e2m1_lanes.h"
#include "kernels/cpu/e4m3_lanes.h"
#include "kernels/cpu/rows_convert.h"
#include "kernels/format/e2m1.h"
#include "kernels/format/e4m3.h"
#include "kernels/format/e8m0.h"

namespace ptq::kernels::cpu {
namespace {

constexpr int kMxBlock = 32;  // columns that share an E8M0 scale
constexpr int kMxGroup = 32;  // blocks whose scales are made together

/// The scales of up to kMxGroup blocks: the least powers of two under which no element exceeds format_max.
PTQ_INLINE void make_mx_scales(const float* values, int blocks, float format_max, uint8_t* scales) {
  float amaxes[kMxGroup];
  amaxes_of_blocks<kMxBlock>(values, blocks, amaxes);
  for (int block = 0; block < blocks; ++block) scales[block] = E8M0::encode(amaxes[block] / format_max);
}

/// values /= the scales of their blocks.
PTQ_INLINE void divide_by_mx_scales(float* values, int blocks, const uint8_t* scales) {
  for (int i = 0; i < blocks * kMxBlock; i += 16) {
    const Lanes<float> factor = Lanes<float>::all(E8M0::decode(E8M0::reciprocal(scales[i / kMxBlock])));
    (Lanes<float>::load(values + i) * factor).store(values + i);
  }
}
/// values *= the scales of their blocks.
PTQ_INLINE void multiply_by_mx_scales(float* values, int blocks, const uint8_t* scales) {
  for (int i = 0; i < blocks * kMxBlock; i += 16)
    (Lanes<float>::load(values + i) * Lanes<float>::all(E8M0::decode(scales[i / kMxBlock]))).store(values + i);
}

/// Reads a row in groups of blocks, makes the scales, and calls body(first column, blocks, their values divided by their scales).
template <class Body>
PTQ_INLINE void each_mx_group(const void* w, Source source, int64_t count, float format_max, uint8_t* scales, Body body) {
  read_as(w, source, [&](auto reader) {
    const int64_t blocks = count / kMxBlock;
    for (int64_t first = 0; first < blocks; first += kMxGroup) {
      const int group = static_cast<int>(blocks - first < kMxGroup ? blocks - first : kMxGroup);
      float values[kMxGroup * kMxBlock];
      for (int i = 0; i < group * kMxBlock; ++i) values[i] = reader[first * kMxBlock + i];
      make_mx_scales(values, group, format_max, scales + first);
      // The next group is read in one go: asked for here, it is under way while this one is computed.
      const auto* const next = reader.values + (first + kMxGroup < blocks ? first + kMxGroup : first) * kMxBlock;
      for (int i = 0; i < group * kMxBlock; i += 16) __builtin_prefetch(next + i);
      divide_by_mx_scales(values, group, scales + first);
      body(first * kMxBlock, group, values);
    }
  });
}

// GCC vectorizes these only on their own: a loop over the 32 elements of a block it unrolls first, and within a nest of loops it gives up.
[[gnu::noinline]] void encode_e4m3(const float* values, int64_t count, uint8_t* codes) {
  encode_e4m3(F32Reader{values}, count, codes, [](auto x) { return x; });
}
[[gnu::noinline]] void decode_e4m3(const uint8_t* codes, int64_t count, float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] = E4M3::decode(codes[i]);
}
[[gnu::noinline]] void round_to_e4m3(float* values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = E4M3::decode(E4M3::encode(values[i]));
}

void quantize_mxfp8(const void* w, Source source, int64_t count, uint8_t* codes, uint8_t* scales) {
  each_mx_group(w, source, count, E4M3::kMax, scales,
                [&](int64_t begin, int blocks, const float* values) { encode_e4m3(values, blocks * kMxBlock, codes + begin); });
}

void quantize_mxfp4(const void* w, Source source, int64_t count, uint8_t* packed, uint8_t* scales) {
  each_mx_group(w, source, count, E2M1::kMax, scales, [&](int64_t begin, int blocks, const float* values) {
    for (int i = 0; i < blocks * kMxBlock; i += 16) {
      const Lanes<float> lanes = Lanes<float>::load(values + i);
      BlockCodes codes;
      for (int p = 0; p < kParts; ++p) codes.part[p] = encode_e2m1_ties_to_zero(lanes.part[p]);
      pack_block(codes, packed + (begin + i) / 2);
    }
  });
}

void dequantize_mxfp8(const uint8_t* codes, const uint8_t* scales, int64_t count, float* w) {
  for (int64_t begin = 0; begin < count; begin += kMxGroup * kMxBlock) {
    const int columns = static_cast<int>(count - begin < kMxGroup * kMxBlock ? count - begin : kMxGroup * kMxBlock);
    decode_e4m3(codes + begin, columns, w + begin);
    multiply_by_mx_scales(w + begin, columns / kMxBlock, scales + begin / kMxBlock);
  }
}

void dequantize_mxfp4(const uint8_t* packed, const uint8_t* scales, int64_t count, float* w) {
  for (int64_t i = 0; i < count; i += 16) decode_block(unpack_block(packed + i / 2), E8M0::decode(scales[i / kMxBlock]), w + i);
}

/// Calls body(values, columns) on groups of blocks divided by their scales, and multiplies what it leaves there by them.
template <class Body>
PTQ_INLINE void fake_quantize_mx(float* x, int64_t count, float format_max, Body body) {
  for (int64_t begin = 0; begin < count; begin += kMxGroup * kMxBlock) {
    const int columns = static_cast<int>(count - begin < kMxGroup * kMxBlock ? count - begin : kMxGroup * kMxBlock);
    uint8_t scales[kMxGroup];
    make_mx_scales(x + begin, columns / kMxBlock, format_max, scales);
    divide_by_mx_scales(x + begin, columns / kMxBlock, scales);
    body(x + begin, columns);
    multiply_by_mx_scales(x + begin, columns / kMxBlock, scales);
  }
}

void fake_quantize_mxfp8(float* x, int64_t count) { fake_quantize_mx(x, count, E4M3::kMax, round_to_e4m3); }

void fake_quantize_mxfp4(float* x, int64_t count) {
  fake_quantize_mx(x, count, E2M1::kMax, [](float* values, int columns) {
    for (int i = 0; i < columns; i += 16) {
      Lanes<float> lanes = Lanes<float>::load(values + i);
      for (int p = 0; p < kParts; ++p) lanes.part[p] = decode_e2m1(encode_e2m1(lanes.part[p]));
      lanes.store(values + i);
    }
  });
}

}  // namespace
}  // namespace ptq::kernels::cpu
