#pragma once
// Quantizers of one row. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/block_amax.h"
#include "kernels/cpu/e2m1_lanes.h"
#include "kernels/cpu/e4m3_lanes.h"
#include "kernels/cpu/rows_convert.h"
#include "kernels/format/e4m3.h"

namespace ptq::kernels::cpu {
namespace {

constexpr int kBlock = 16;  // columns that share an NVFP4 block scale
constexpr int kGroup = 64;  // blocks whose scales are made together

/// The scales of up to kGroup blocks: their codes, and what values are divided by.
struct GroupScales {
  uint8_t codes[kGroup];
  float scales[kGroup];

  PTQ_INLINE void make(const float* values, int blocks, float scale_2) {
    const float six_scale_2 = 6.0f * scale_2;
    float amaxes[kGroup];
    amaxes_of_blocks<kBlock>(values, blocks, amaxes);
    for (int block = 0; block < blocks; ++block) {
      const float r = amaxes[block] / six_scale_2;
      const float positive = r == 0.0f ? 1.0f : r;  // a block of zeros, or an underflow
      const float raised = positive < 0x1p-9f ? 0x1p-9f : positive;
      codes[block] = E4M3::encode(raised < E4M3::kMax ? raised : E4M3::kMax);
    }
    decode(codes, blocks, scale_2);
  }
  PTQ_INLINE void decode(const uint8_t* block_scales, int blocks, float scale_2) {
    for (int block = 0; block < blocks; ++block) scales[block] = E4M3::decode(block_scales[block]) * scale_2;
  }
};

void quantize_fp8(const void* w, Source source, int64_t count, float scale, bool bf16_quotient, uint8_t* codes) {
  read_as(w, source, [&](auto reader) {
    if (bf16_quotient)
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t quotient = static_cast<uint32_t>(bf16_bits(reader[i] / scale)) << 16;
        codes[i] = E4M3::encode(__builtin_bit_cast(float, quotient));
      }
    else
      encode_e4m3(reader, count, codes, [scale](auto x) { return x / scale; });
  });
}

/// Codes of whole blocks; make_scales(scales, values, first block, blocks) gives the scales of up to kGroup of them.
template <class MakeScales>
PTQ_INLINE void quantize_nvfp4_blocks(const void* w, Source source, int64_t count, uint8_t* packed, MakeScales make_scales) {
  read_as(w, source, [&](auto reader) {
    const int64_t blocks = count / kBlock;
    for (int64_t first = 0; first < blocks; first += kGroup) {
      const int group = static_cast<int>(blocks - first < kGroup ? blocks - first : kGroup);
      float values[kGroup * kBlock];
      for (int i = 0; i < group * kBlock; ++i) values[i] = reader[first * kBlock + i];
      GroupScales scales;
      make_scales(scales, values, first, group);
      for (int block = 0; block < group; ++block) {
        // The next group is read in one go: asked for here, it is under way while this one is computed.
        __builtin_prefetch(reader.values + (first + block) * kBlock + (first + kGroup < blocks ? kGroup * kBlock : 0));
        pack_block(encode_block(values + block * kBlock, scales.scales[block]), packed + (first + block) * (kBlock / 2));
      }
    }
  });
}

void quantize_nvfp4(const void* w, Source source, int64_t count, float scale_2, uint8_t* packed, uint8_t* block_scales) {
  quantize_nvfp4_blocks(w, source, count, packed, [&](GroupScales& scales, const float* values, int64_t first, int blocks) {
    scales.make(values, blocks, scale_2);
    for (int block = 0; block < blocks; ++block) block_scales[first + block] = scales.codes[block];
  });
}

void quantize_nvfp4_static(const void* w, Source source, int64_t count, const uint8_t* block_scales, float scale_2, uint8_t* packed) {
  quantize_nvfp4_blocks(w, source, count, packed, [&](GroupScales& scales, const float*, int64_t first, int blocks) {
    scales.decode(block_scales + first, blocks, scale_2);
  });
}

void dequantize_fp8(const uint8_t* codes, int64_t count, float scale, float* w) {
  for (int64_t i = 0; i < count; ++i) w[i] = E4M3::decode(codes[i]) * scale;
}

void dequantize_nvfp4(const uint8_t* packed, const uint8_t* block_scales, int64_t count, float scale_2, float* w) {
  const int64_t blocks = count / kBlock;
  for (int64_t first = 0; first < blocks; first += kGroup) {
    const int group = static_cast<int>(blocks - first < kGroup ? blocks - first : kGroup);
    GroupScales scales;
    scales.decode(block_scales + first, group, scale_2);
    for (int64_t block = 0; block < group; ++block)
      decode_block(unpack_block(packed + (first + block) * (kBlock / 2)), scales.scales[block], w + (first + block) * kBlock);
  }
}

void fake_quantize_fp8(float* x, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) x[i] = E4M3::decode(E4M3::encode(x[i] / scale)) * scale;
}

void fake_quantize_nvfp4(float* x, int64_t count, float scale_2) {
  const int64_t blocks = count / kBlock;
  for (int64_t first = 0; first < blocks; first += kGroup) {
    const int group = static_cast<int>(blocks - first < kGroup ? blocks - first : kGroup);
    float* const values = x + first * kBlock;
    // Zeros stay zeros under any scale, so the 1.0 that the exporter stores for a block of zeros makes no difference here.
    GroupScales scales;
    scales.make(values, group, scale_2);
    for (int block = 0; block < group; ++block) {
      float* const at = values + block * kBlock;
      decode_block(encode_block(at, scales.scales[block]), scales.scales[block], at);
    }
  }
}

}  // namespace
}  // namespace ptq::kernels::cpu
