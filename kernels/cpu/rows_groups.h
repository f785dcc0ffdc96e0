#pragma once
// Quantizers of one row with a scale for each group of its columns: FP8, INT8 and INT4. Private to each rows_*.cpp, as lanes.h.

#include "kernels/cpu/e4m3_lanes.h"
#include "kernels/cpu/rows_convert.h"
#include "kernels/format/e4m3.h"
#include "kernels/format/int4.h"
#include "kernels/format/int8.h"

namespace ptq::kernels::cpu {
namespace {

/// Calls body(first column, columns, group) for each group of a row; the last one may be short.
template <class Body>
PTQ_INLINE void each_group(int64_t count, int64_t group, Body body) {
  for (int64_t begin = 0, g = 0; begin < count; begin += group, ++g) body(begin, count - begin < group ? count - begin : group, g);
}

void max_magnitudes(const void* x, Source source, int64_t count, int64_t group, float* amaxes) {
  read_as(x, source, [&](auto reader) {
    using Reader = decltype(reader);
    each_group(count, group, [&](int64_t begin, int64_t columns, int64_t g) {
      uint32_t bits = max_magnitude(reader.values + begin, source, columns);
      if constexpr (!__is_same(Reader, F32Reader)) {
        const auto narrow_bits = static_cast<uint16_t>(bits);
        bits = __builtin_bit_cast(uint32_t, Reader{&narrow_bits}[0]);
      }
      const uint32_t before = __builtin_bit_cast(uint32_t, amaxes[g]);
      amaxes[g] = __builtin_bit_cast(float, bits > before ? bits : before);
    });
  });
}

/// INT8 or INT4 codes of groups, each element divided by its group's scale.
template <class Format>
PTQ_INLINE void quantize_groups(const void* w, Source source, int64_t count, int64_t group, const float* scales, int8_t* codes) {
  read_as(w, source, [&](auto reader) {
    each_group(count, group, [&](int64_t begin, int64_t columns, int64_t g) {
      const float scale = scales[g];
      const auto from = decltype(reader){reader.values + begin};
      int8_t* const to = codes + begin;
      for (int64_t i = 0; i < columns; ++i) to[i] = Format::encode(from[i] / scale);
    });
  });
}

template <class Format, class Code>
PTQ_INLINE void dequantize_groups(const Code* codes, int64_t count, int64_t group, const float* scales, float* w) {
  each_group(count, group, [&](int64_t begin, int64_t columns, int64_t g) {
    const float scale = scales[g];
    for (int64_t i = begin; i < begin + columns; ++i) w[i] = Format::decode(codes[i]) * scale;
  });
}

/// scale_of_amax of kernels/ops.h.
PTQ_INLINE float scale_of(float amax, float format_max) {
  const float raised = amax < 0x1p-126f ? 0x1p-126f : amax;
  return amax == 0.0f ? 1.0f : raised / format_max;
}

template <class Format>
PTQ_INLINE void fake_quantize_groups(float* x, int64_t count, int64_t group) {
  each_group(count, group, [&](int64_t begin, int64_t columns, int64_t) {
    float* const values = x + begin;
    const float amax = __builtin_bit_cast(float, max_magnitude(values, Source::kF32, columns));
    const float scale = scale_of(amax, Format::kMax);
    for (int64_t i = 0; i < columns; ++i) values[i] = Format::decode(Format::encode(values[i] / scale)) * scale;
  });
}

void quantize_fp8_groups(const void* w, Source source, int64_t count, int64_t group, const float* scales, uint8_t* codes) {
  read_as(w, source, [&](auto reader) {
    each_group(count, group, [&](int64_t begin, int64_t columns, int64_t g) {
      const float scale = scales[g];
      encode_e4m3(decltype(reader){reader.values + begin}, columns, codes + begin, [scale](auto x) { return x / scale; });
    });
  });
}
void quantize_int8_groups(const void* w, Source source, int64_t count, int64_t group, const float* scales, int8_t* codes) {
  quantize_groups<INT8>(w, source, count, group, scales, codes);
}
void quantize_int4_groups(const void* w, Source source, int64_t count, int64_t group, const float* scales, int8_t* codes) {
  quantize_groups<INT4>(w, source, count, group, scales, codes);
}
void dequantize_fp8_groups(const uint8_t* codes, int64_t count, int64_t group, const float* scales, float* w) {
  dequantize_groups<E4M3>(codes, count, group, scales, w);
}
void dequantize_int_groups(const int8_t* codes, int64_t count, int64_t group, const float* scales, float* w) {
  dequantize_groups<INT8>(codes, count, group, scales, w);
}
void fake_quantize_fp8_groups(float* x, int64_t count, int64_t group) { fake_quantize_groups<E4M3>(x, count, group); }
void fake_quantize_int8_groups(float* x, int64_t count, int64_t group) { fake_quantize_groups<INT8>(x, count, group); }

void fake_quantize_int8(float* x, int64_t count, float scale) {
  for (int64_t i = 0; i < count; ++i) x[i] = INT8::decode(INT8::encode(x[i] / scale)) * scale;
}

void pack_int4_pair(const int8_t* even, const int8_t* odd, int64_t count, uint8_t* packed) {
  for (int64_t i = 0; i < count; ++i) packed[i] = static_cast<uint8_t>((even[i] & 15) | (odd[i] & 15) << 4);
}
void unpack_int4_pair(const uint8_t* packed, int64_t count, int8_t* even, int8_t* odd) {
  for (int64_t i = 0; i < count; ++i) {
    // A nibble moved to the top of a byte and back brings its sign along.
    even[i] = static_cast<int8_t>(static_cast<int8_t>(static_cast<uint8_t>(packed[i] << 4)) >> 4);
    odd[i] = static_cast<int8_t>(static_cast<int8_t>(packed[i]) >> 4);
  }
}

void pack_int4_words(const int8_t* codes, int64_t count, int32_t* words) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    // Eight bytes to eight nibbles by folding neighbours together: bytes, then pairs, then quadruples.
    uint64_t eight;
    __builtin_memcpy(&eight, codes + i, sizeof(eight));
    eight = ((eight & 0x0f0f0f0f0f0f0f0fu) ^ 0x0808080808080808u);  // + 8, modulo 16
    eight = (eight | eight >> 4) & 0x00ff00ff00ff00ffu;
    eight = (eight | eight >> 8) & 0x0000ffff0000ffffu;
    words[i / 8] = static_cast<int32_t>(static_cast<uint32_t>(eight | eight >> 16));
  }
  if (i == count) return;
  uint32_t word = 0;
  for (int64_t k = i; k < count; ++k) word |= static_cast<uint32_t>((codes[k] & 15) ^ 8) << 4 * (k - i);
  words[i / 8] = static_cast<int32_t>(word);
}
void unpack_int4_words(const int32_t* words, int64_t count, int8_t* codes) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    // The folding of pack_int4_words, backwards.
    uint64_t eight = static_cast<uint32_t>(words[i / 8]);
    eight = (eight | eight << 16) & 0x0000ffff0000ffffu;
    eight = (eight | eight << 8) & 0x00ff00ff00ff00ffu;
    eight = (eight | eight << 4) & 0x0f0f0f0f0f0f0f0fu;
    // - 8 in every byte: codes below 8 get their upper half filled. The carry-free form of (byte ^ 8) with its sign drawn out.
    const uint64_t flipped = eight ^ 0x0808080808080808u, negative = (flipped >> 3) & 0x0101010101010101u;
    eight = flipped | ((negative << 8) - (negative << 4));
    __builtin_memcpy(codes + i, &eight, sizeof(eight));
  }
  for (; i < count; ++i) codes[i] = static_cast<int8_t>(static_cast<int32_t>(static_cast<uint32_t>(words[i / 8]) >> 4 * (i % 8) & 15u) - 8);
}

}  // namespace
}  // namespace ptq::kernels::cpu
