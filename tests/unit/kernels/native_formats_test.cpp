#include "kernels/native_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/support/reference_ops.h"
#include "tests/support/shared_folder.h"
#include "tests/unit/kernels/isa_guard.h"

namespace ptq::kernels {
namespace {

std::vector<uint8_t> random_bytes(int64_t count, uint64_t seed) {
  std::vector<uint8_t> bytes(static_cast<size_t>(count));
  std::mt19937_64 random(seed);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}
/// The same number, or both NaN.
bool agree(uint16_t bits, float expected) {
  return std::isnan(expected) ? std::isnan(to_float(BF16{bits})) : bits == to_bf16(expected).bits;
}

/// A safetensors file and its tensors' bytes; only for files that are known to be sound.
struct SafetensorsFile {
  nlohmann::json header;
  std::string data;
  explicit SafetensorsFile(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    uint64_t length = 0;
    file.read(reinterpret_cast<char*>(&length), sizeof(length));
    std::string text(length, ' ');
    file.read(text.data(), static_cast<std::streamsize>(length));
    header = nlohmann::json::parse(text);
    data.assign(std::istreambuf_iterator<char>(file), {});
  }
  template <class T>
  std::vector<T> read(const std::string& name) const {
    const auto begin = header.at(name)["data_offsets"][0].get<size_t>(), end = header.at(name)["data_offsets"][1].get<size_t>();
    std::vector<T> values((end - begin) / sizeof(T));
    std::memcpy(values.data(), data.data() + begin, end - begin);
    return values;
  }
  std::vector<int64_t> shape(const std::string& name) const { return header.at(name)["shape"].get<std::vector<int64_t>>(); }
};

// ---- FP8 with a scale per block

std::vector<uint16_t> decode(const std::vector<uint8_t>& codes, int64_t first_row, const std::vector<float>& scales,
                             const BlockFp8& shape) {
  std::vector<uint16_t> out(codes.size(), 0x1234);
  decode_block_fp8(codes.data(), first_row, static_cast<int64_t>(codes.size()) / shape.columns, scales.data(), shape, out.data());
  return out;
}

TEST(BlockFp8, EveryCodeIsItsValueTimesTheScaleRoundedOnce) {
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> scales = {1.0f, -1.0f, 0.0f, 1e-38f, 1e-42f, 3e38f, infinity, nan, std::bit_cast<float>(0x7fffffffu)};
  for (int i = 0; i < 200; ++i) scales.push_back(0.001f * std::exp2(0.1f * static_cast<float>(i)) * 1.2345f);

  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    for (const float scale : scales) {
      const std::vector<uint16_t> out = decode(codes, 0, {scale}, {.block_rows = 1, .block_columns = 256, .columns = 256});
      for (size_t i = 0; i < 256; ++i) ASSERT_TRUE(agree(out[i], test::e4m3_value(codes[i]) * scale)) << scale << ", code " << i;
    }
  }
}

TEST(BlockFp8, PartialBlocksAtTheEdgesHaveTheirOwnScales) {
  for (const BlockFp8& shape : {BlockFp8{.columns = 300}, BlockFp8{.block_rows = 7, .block_columns = 13, .columns = 41},
                                BlockFp8{.block_rows = 64, .block_columns = 1, .columns = 5}, BlockFp8{.columns = 31}}) {
    const int64_t rows = 2 * shape.block_rows + 3, grid_columns = (shape.columns + shape.block_columns - 1) / shape.block_columns;
    const std::vector<uint8_t> codes = random_bytes(rows * shape.columns, 1);
    const std::vector<float> scales = test::values_of(test::random_tensor({3 * grid_columns}, DType::kF32, 2));
    for (const cpu::Isa isa : test::available_isas()) {
      const test::IsaGuard guard(isa);

      const std::vector<uint16_t> out = decode(codes, 0, scales, shape);

      for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < shape.columns; ++c) {
          const auto at = static_cast<size_t>(r * shape.columns + c);
          const float scale = scales[static_cast<size_t>(r / shape.block_rows * grid_columns + c / shape.block_columns)];
          ASSERT_TRUE(agree(out[at], test::e4m3_value(codes[at]) * scale)) << r << ", " << c;
        }
    }
  }
}

TEST(BlockFp8, AnyCutIntoRowsGivesTheSameBits) {
  const BlockFp8 shape{.block_rows = 16, .block_columns = 32, .columns = 70};
  const int64_t rows = 53, grid_columns = 3;
  const std::vector<uint8_t> codes = random_bytes(rows * shape.columns, 3);
  const std::vector<float> scales = test::values_of(test::random_tensor({4 * grid_columns}, DType::kF32, 4));
  const std::vector<uint16_t> whole = decode(codes, 0, scales, shape);

  for (const int64_t first : {0, 1, 15, 16, 17, 50})
    for (const int64_t last : {51, 53}) {
      const std::vector<uint8_t> part(codes.begin() + first * shape.columns, codes.begin() + last * shape.columns);
      const std::vector<float> from_its_blocks(scales.begin() + first / shape.block_rows * grid_columns, scales.end());

      const std::vector<uint16_t> out = decode(part, first, from_its_blocks, shape);

      EXPECT_TRUE(std::equal(out.begin(), out.end(), whole.begin() + first * shape.columns)) << first;
    }
}

TEST(BlockFp8, GivesThePublishedCheckpointsWeights) {
  PTQ_NEEDS_SHARED(shared);
  const std::string folder = shared + "/fixtures/input_formats/hf_dsv3_fp8_block/";
  const SafetensorsFile model(folder + "model.safetensors"), expected(folder + "expected_bf16.safetensors");
  int compared = 0;
  for (const auto& [name, entry] : model.header.items()) {
    if (name == "__metadata__" || entry["dtype"] != "F8_E4M3") continue;

    const std::vector<uint16_t> out =
        decode(model.read<uint8_t>(name), 0, model.read<float>(name + "_scale_inv"), {.columns = model.shape(name)[1]});

    EXPECT_EQ(out, expected.read<uint16_t>(name)) << name;
    ++compared;
  }
  EXPECT_GT(compared, 30);
}

TEST(BlockFp8, GivesAPublishedWeightOfFourBlocks) {
  PTQ_NEEDS_SHARED(shared);
  const SafetensorsFile file(shared + "/fixtures/input_formats/hf_dsv3_fp8_block/multiblock_130x132.safetensors");

  const std::vector<uint16_t> out = decode(file.read<uint8_t>("w.weight"), 0, file.read<float>("w.weight_scale_inv"), {.columns = 132});

  const std::vector<float> expected = file.read<float>("expected_f32");
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], to_bf16(expected[i]).bits) << i;
}

// ---- MXFP4

void expect_as_defined(const std::vector<uint8_t>& blocks, const std::vector<uint8_t>& scales, int64_t rows, int64_t columns) {
  for (const cpu::Isa isa : test::available_isas()) {
    const test::IsaGuard guard(isa);
    std::vector<uint16_t> out(static_cast<size_t>(rows * columns), 0x1234);

    decode_mxfp4_transposed(blocks.data(), scales.data(), rows, columns, out.data());

    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const uint8_t byte = blocks[static_cast<size_t>((r * columns + c) / 2)],
                      scale = scales[static_cast<size_t>(r * (columns / 32) + c / 32)];
        const float power = scale == 255 ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0f, scale - 127);
        const float expected = test::e2m1_value(c % 2 ? byte >> 4 : byte & 15) * power;
        ASSERT_TRUE(agree(out[static_cast<size_t>(c * rows + r)], expected)) << r << ", " << c << ", scale " << static_cast<int>(scale);
      }
  }
}

TEST(Mxfp4, EveryCodeUnderEveryScaleIsExact) {
  std::vector<uint8_t> scales(256), blocks(256 * 16);
  for (size_t s = 0; s < 256; ++s) {
    scales[s] = static_cast<uint8_t>(s);
    for (size_t i = 0; i < 16; ++i) blocks[s * 16 + i] = static_cast<uint8_t>(17 * i ^ (s & 1 ? 0x50 : 0));
  }

  expect_as_defined(blocks, scales, 256, 32);
}

TEST(Mxfp4, AnyNumberOfRowsAndBlocks) {
  for (const int64_t rows : {1, 31, 33, 300})
    for (const int64_t columns : {32, 96, 320})
      expect_as_defined(random_bytes(rows * columns / 2, 5), random_bytes(rows * columns / 32, 6), rows, columns);
}

TEST(Mxfp4, GivesThePublishedParameterInItsOrientation) {
  PTQ_NEEDS_SHARED(shared);
  const SafetensorsFile file(shared + "/fixtures/input_formats/mxfp4/mxfp4.safetensors");
  const std::vector<uint8_t> blocks = file.read<uint8_t>("gate_up_proj_blocks"), scales = file.read<uint8_t>("gate_up_proj_scales");
  const std::vector<float> transposed = file.read<float>("expected_hf_param"), in_rows = file.read<float>("expected_rows_in");
  const std::vector<int64_t> shape = file.shape("gate_up_proj_blocks");  // [experts, O, C/32, 16]
  const int64_t rows = shape[1], columns = shape[2] * 32, elements = rows * columns;

  for (int64_t expert = 0; expert < shape[0]; ++expert) {
    std::vector<uint16_t> out(static_cast<size_t>(elements));
    decode_mxfp4_transposed(blocks.data() + expert * elements / 2, scales.data() + expert * elements / 32, rows, columns, out.data());
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = 0; r < rows; ++r) {
        const float value = to_float(BF16{out[static_cast<size_t>(c * rows + r)]});
        ASSERT_EQ(value, transposed[static_cast<size_t>(expert * elements + c * rows + r)]);
        ASSERT_EQ(value, in_rows[static_cast<size_t>(expert * elements + r * columns + c)]);
      }
  }
}

}  // namespace
}  // namespace ptq::kernels
