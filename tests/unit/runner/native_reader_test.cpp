#include "runner/native_reader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>

#include "layers/models/models.h"
#include "tests/support/expect_error.h"
#include "tests/support/memory_reader.h"
#include "tests/support/model_files.h"
#include "tests/support/reference_ops.h"
#include "tests/support/shared_folder.h"
#include "tests/support/temporary_folder.h"

namespace ptq::runner {
namespace {

using checkpoint::Json;
using checkpoint::Reader;
using test::MemoryReader;

Tensor random_codes(Shape shape, DType dtype, uint64_t seed) {
  const Tensor tensor = Tensor::empty(std::move(shape), dtype);
  std::mt19937_64 random(seed);
  for (int64_t i = 0; i < tensor.numel(); ++i) {
    auto code = static_cast<uint8_t>(random());
    if (dtype == DType::kF8E4M3 && (code & 0x7f) == 0x7f) code = 0;  // NaN
    if (dtype == DType::kF8E8M0) code = static_cast<uint8_t>(100 + code % 50);
    tensor.data<uint8_t>()[i] = code;
  }
  return tensor;
}

Tensor random_scales(Shape shape, uint64_t seed) { return test::random_tensor(std::move(shape), DType::kF32, seed, 0.01f); }

Json fp8_config(int64_t block_rows, int64_t block_columns) {
  return {{"quantization_config", {{"quant_method", "fp8"}, {"fmt", "e4m3"}, {"weight_block_size", {block_rows, block_columns}}}}};
}

const Json kMxfp4Config{{"quantization_config", {{"quant_method", "mxfp4"}, {"modules_to_not_convert", {"lm_head"}}}}};

/// A model of one layer with these linears; only their names matter here.
layers::ModelSpec model_with(const std::vector<std::string>& modules, bool stacked = false) {
  layers::ModelSpec model;
  layers::LayerSpec layer;
  for (const std::string& module : modules) {
    layers::LinearSpec linear{module, 1, 1};
    if (stacked) linear.expert = layers::kAllExperts;
    layer.linears.push_back(linear);
  }
  model.layers.push_back(layer);
  return model;
}

/// `weight` [O, C] in blocks, its scales in a file of their own.
std::unique_ptr<MemoryReader> fp8_reader(const std::string& weight, int64_t rows, int64_t columns, int64_t block_rows,
                                         int64_t block_columns) {
  auto reader = std::make_unique<MemoryReader>();
  reader->add(weight, random_codes({rows, columns}, DType::kF8E4M3, 1), "model-1.safetensors");
  reader->add(weight + "_scale_inv",
              random_scales({(rows + block_rows - 1) / block_rows, (columns + block_columns - 1) / block_columns}, 2),
              "model-2.safetensors");
  return reader;
}

Tensor rows_of(const Reader& reader, const std::string& name, int64_t begin, int64_t end) {
  const checkpoint::TensorEntry& entry = reader.at(name);
  Shape shape = entry.shape;
  shape[0] = end - begin;
  Tensor rows = Tensor::empty(shape, entry.dtype);
  reader.read_rows(entry, begin, end, rows.raw());
  return rows;
}

// ---- FP8 in blocks

TEST(BlockFp8Reader, WidensAnyRunOfRows) {
  // 37 rows in blocks of 2: more than are decoded at a time. Otherwise partial blocks at both edges, or one block larger than all.
  for (const auto& [block_rows, block_columns] : {std::pair<int64_t, int64_t>{2, 7}, {8, 16}, {128, 128}, {37, 41}, {1, 1}}) {
    auto source = fp8_reader("l.up.weight", 37, 41, block_rows, block_columns);
    const Tensor codes = source->read("l.up.weight"), scales = source->read("l.up.weight_scale_inv");
    std::vector<uint16_t> expected;
    for (int64_t r = 0; r < 37; ++r)
      for (int64_t c = 0; c < 41; ++c) {
        const float scale = scales.data<float>()[r / block_rows * scales.dim(1) + c / block_columns];
        expected.push_back(to_bf16(test::e4m3_value(codes.data<uint8_t>()[r * 41 + c]) * scale).bits);
      }

    const auto reader = open_native(std::move(source), fp8_config(block_rows, block_columns), model_with({"l.up"}));

    EXPECT_EQ(reader->at("l.up.weight").dtype, DType::kBF16);
    EXPECT_EQ(reader->at("l.up.weight").shape, (Shape{37, 41}));
    EXPECT_EQ(reader->at("l.up.weight").bytes, 37 * 41 * 2);
    for (int64_t begin = 0; begin <= 37; ++begin)
      for (int64_t end = begin; end <= 37; ++end) {
        const Tensor rows = rows_of(*reader, "l.up.weight", begin, end);
        EXPECT_EQ(std::memcmp(rows.raw(), expected.data() + begin * 41, static_cast<size_t>(rows.bytes())), 0) << begin << " to " << end;
      }
  }
}

TEST(BlockFp8Reader, HidesTheScalesOfWhatItWidensAndNothingElse) {
  auto source = fp8_reader("l.up.weight", 4, 4, 2, 2);
  source->add("l.norm.weight", test::random_tensor({4}, DType::kBF16, 3));
  source->add("l.down.weight", test::random_tensor({4, 4}, DType::kBF16, 4));  // not quantized by its publisher
  source->add("mtp.up.weight", random_codes({4, 4}, DType::kF8E4M3, 5));       // no part of the model that is described
  source->add("mtp.up.weight_scale_inv", random_scales({2, 2}, 6));
  const Tensor mtp = source->read("mtp.up.weight"), norm = source->read("l.norm.weight");

  const auto reader = open_native(std::move(source), fp8_config(2, 2), model_with({"l.up", "l.down"}));

  std::vector<std::string> names;
  for (const auto& [name, entry] : reader->tensors()) {
    EXPECT_EQ(entry.name, name);
    names.push_back(name);
  }
  EXPECT_EQ(names, (std::vector<std::string>{"l.down.weight", "l.norm.weight", "l.up.weight", "mtp.up.weight", "mtp.up.weight_scale_inv"}));
  EXPECT_EQ(reader->at("mtp.up.weight").dtype, DType::kF8E4M3);
  EXPECT_TRUE(test::same_bits(reader->read("mtp.up.weight"), mtp));
  EXPECT_TRUE(test::same_bits(reader->read("l.norm.weight"), norm));
  EXPECT_EQ(reader->format(), "memory");
  EXPECT_EQ(reader->folder(), "memory");
  EXPECT_EQ(reader->companion_files(), std::vector<std::string>{"config.json"});
}

TEST(BlockFp8Reader, CountsTheBytesOfTheFilesNotOfWhatTheyBecome) {
  auto source = fp8_reader("l.up.weight", 10, 6, 4, 4);
  source->add("l.norm.weight", test::random_tensor({6}, DType::kBF16, 3));
  const auto reader = open_native(std::move(source), fp8_config(4, 4), model_with({"l.up"}));
  EXPECT_EQ(reader->bytes_read(), 0);

  rows_of(*reader, "l.up.weight", 3, 9);

  EXPECT_EQ(reader->bytes_read(), 6 * 6 + 3 * 2 * 4) << "six rows of codes and three of the grid";
  reader->read("l.norm.weight");
  EXPECT_EQ(reader->bytes_read(), 60 + 12);
}

TEST(BlockFp8Reader, NeedsTheScalesOfEveryWeight) {
  auto source = fp8_reader("l.up.weight", 4, 4, 2, 2);
  source->remove("l.up.weight_scale_inv");

  test::expect_error(ErrorKind::kData, "its scales l.up.weight_scale_inv are not in the checkpoint",
                     [&] { open_native(std::move(source), fp8_config(2, 2), model_with({"l.up"})); });
}

TEST(BlockFp8Reader, TheGridMustBeTheWeights) {
  for (const Shape& grid : {Shape{1, 2}, Shape{2, 1}, Shape{3, 2}, Shape{4}, Shape{2, 2, 1}, Shape{}}) {
    auto source = fp8_reader("l.up.weight", 3, 4, 2, 2);
    source->add("l.up.weight_scale_inv", random_scales(grid, 1));

    test::expect_error(ErrorKind::kData, "needs F32 [2, 2]",
                       [&] { open_native(std::move(source), fp8_config(2, 2), model_with({"l.up"})); });
  }
}

TEST(BlockFp8Reader, TheScalesMustBeF32) {
  for (const DType dtype : {DType::kBF16, DType::kF8E8M0, DType::kI32}) {
    auto source = fp8_reader("l.up.weight", 3, 4, 2, 2);
    source->add("l.up.weight_scale_inv", Tensor::zeros({2, 2}, dtype));

    test::expect_error(ErrorKind::kData, "is " + std::string(dtype_name(dtype)) + " [2, 2]",
                       [&] { open_native(std::move(source), fp8_config(2, 2), model_with({"l.up"})); });
  }
}

TEST(BlockFp8Reader, AScaleThatIsNoNumberIsDamage) {
  for (const float damaged : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto source = fp8_reader("l.up.weight", 6, 4, 2, 2);
    const Tensor scales = source->read("l.up.weight_scale_inv");
    scales.data<float>()[3] = damaged;  // of rows 2 and 3
    source->add("l.up.weight_scale_inv", scales, "model-2.safetensors");
    const auto reader = open_native(std::move(source), fp8_config(2, 2), model_with({"l.up"}));

    EXPECT_NO_THROW(rows_of(*reader, "l.up.weight", 0, 2));
    EXPECT_NO_THROW(rows_of(*reader, "l.up.weight", 4, 6));
    test::expect_error(ErrorKind::kData, "l.up.weight_scale_inv", [&] { rows_of(*reader, "l.up.weight", 3, 4); });
    test::expect_error(ErrorKind::kData, "model-2.safetensors", [&] { reader->read("l.up.weight"); });
  }
}

TEST(BlockFp8Reader, TheBlockMustHaveASizeThatMakesSense) {
  for (const char* size : {"[128]", "[128, 128, 128]", "[0, 128]", "[128, -1]", "[128.0, 128]", "[\"128\", 128]", "128", "{}", "[]",
                           "[4611686018427387904, 128]", "[128, 9223372036854775807]", "[128, 18446744073709551615]"}) {
    Json config = fp8_config(2, 2);
    config["quantization_config"]["weight_block_size"] = Json::parse(size);

    SCOPED_TRACE(size);
    test::expect_error(ErrorKind::kData, "quantization_config.weight_block_size",
                       [&] { open_native(fp8_reader("l.up.weight", 4, 4, 2, 2), config, model_with({"l.up"})); });
  }
}

TEST(BlockFp8Reader, OtherFormatsOfAWeightAreNotItsBusiness) {
  auto source = fp8_reader("l.up.weight", 4, 4, 2, 2);
  source->add("l.down.weight", Tensor::zeros({4, 4}, DType::kF8E5M2));

  const auto reader = open_native(std::move(source), fp8_config(2, 2), model_with({"l.up", "l.down"}));

  EXPECT_EQ(reader->at("l.down.weight").dtype, DType::kF8E5M2) << "for the check of all tensors to refuse";
}

TEST(BlockFp8Reader, GivesThePublishedCheckpointsWeights) {
  PTQ_NEEDS_SHARED(shared);
  const test::TemporaryFolder folder;
  const std::string from = shared + "/fixtures/input_formats/hf_dsv3_fp8_block/";
  test::write_file(folder / "config.json", test::read_file(from + "config.json"));
  test::write_file(folder / "model.safetensors", test::read_file(from + "model.safetensors"));
  const test::StoredTensors expected = test::read_tensors(from + "expected_bf16.safetensors");
  const Json config = checkpoint::read_json(folder / "config.json");
  const layers::ModelSpec model = layers::describe_model(layers::Config(config, folder / "config.json"));
  // All in one file, and cut so that many a weight's scales are in another one.
  for (const int shards : {1, 5}) {
    if (shards > 1) test::split_into_shards(folder.path(), shards);

    const auto reader = open_native(checkpoint::open_checkpoint(folder.path()), config, model);

    EXPECT_EQ(reader->tensors().size(), expected.size());
    for (const auto& [name, tensor] : expected) {
      const Tensor read = reader->read(name);
      EXPECT_EQ(dtype_name(read.dtype()), tensor.dtype) << name;
      EXPECT_EQ(read.shape(), tensor.shape) << name;
      ASSERT_EQ(static_cast<size_t>(read.bytes()), tensor.bytes.size()) << name;
      EXPECT_EQ(std::memcmp(read.raw(), tensor.bytes.data(), tensor.bytes.size()), 0) << name;
    }
  }
}

TEST(BlockFp8Reader, GivesAPublishedWeightWithPartialBlocks) {
  PTQ_NEEDS_SHARED(shared);
  const test::StoredTensors file = test::read_tensors(shared + "/fixtures/input_formats/hf_dsv3_fp8_block/multiblock_130x132.safetensors");
  const auto tensor_of = [&](const std::string& name, DType dtype) {
    const test::StoredTensor& stored = file.at(name);
    const Tensor tensor = Tensor::empty(stored.shape, dtype);
    std::memcpy(tensor.raw(), stored.bytes.data(), stored.bytes.size());
    return tensor;
  };
  auto source = std::make_unique<MemoryReader>();
  source->add("w.weight", tensor_of("w.weight", DType::kF8E4M3));
  source->add("w.weight_scale_inv", tensor_of("w.weight_scale_inv", DType::kF32));
  const Tensor expected = tensor_of("expected_f32", DType::kF32);

  const auto reader = open_native(std::move(source), fp8_config(128, 128), model_with({"w"}));

  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 130}, {127, 129}, {128, 130}, {129, 130}}) {
    const Tensor rows = rows_of(*reader, "w.weight", begin, end);
    for (int64_t i = 0; i < rows.numel(); ++i)
      ASSERT_EQ(rows.data<BF16>()[i].bits, to_bf16(expected.data<float>()[begin * 132 + i]).bits) << begin << ", " << i;
  }
}

// ---- MXFP4

std::unique_ptr<MemoryReader> mxfp4_reader(const Shape& blocks, const Shape& scales) {
  auto reader = std::make_unique<MemoryReader>();
  reader->add("l.gate_up_blocks", random_codes(blocks, DType::kU8, 1), "model-1.safetensors");
  Tensor codes = random_codes(scales, DType::kF8E8M0, 2).as(scales, DType::kU8);
  reader->add("l.gate_up_scales", codes, "model-2.safetensors");
  return reader;
}

TEST(Mxfp4Reader, ShowsEachExpertTransposed) {
  auto source = mxfp4_reader({3, 10, 2, 16}, {3, 10, 2});
  source->add("l.gate_up_bias", test::random_tensor({3, 10}, DType::kBF16, 3));
  const Tensor blocks = source->read("l.gate_up_blocks"), scales = source->read("l.gate_up_scales");
  const layers::ModelSpec model = model_with({"l.gate_up"}, true);

  const auto reader = open_native(std::move(source), kMxfp4Config, model);

  ASSERT_TRUE(reader->find("l.gate_up"));
  EXPECT_EQ(reader->tensors().size(), 2u) << "neither blocks nor scales";
  const checkpoint::TensorEntry& entry = reader->at("l.gate_up");
  EXPECT_EQ(entry.name, "l.gate_up");
  EXPECT_EQ(entry.dtype, DType::kBF16);
  EXPECT_EQ(entry.shape, (Shape{3, 64, 10}));
  EXPECT_EQ(entry.bytes, 3 * 64 * 10 * 2);
  for (int64_t begin = 0; begin <= 3; ++begin)
    for (int64_t end = begin; end <= 3; ++end) {
      const Tensor experts = rows_of(*reader, "l.gate_up", begin, end);
      for (int64_t e = begin; e < end; ++e)
        for (int64_t o = 0; o < 10; ++o)
          for (int64_t c = 0; c < 64; ++c) {
            const uint8_t byte = blocks.data<uint8_t>()[((e * 10 + o) * 64 + c) / 2];
            const float value =
                std::ldexp(test::e2m1_value(c % 2 ? byte >> 4 : byte & 15), scales.data<uint8_t>()[(e * 10 + o) * 2 + c / 32] - 127);
            ASSERT_EQ(to_float(experts.data<BF16>()[((e - begin) * 64 + c) * 10 + o]), value) << e << ", " << o << ", " << c;
          }
    }
}

TEST(Mxfp4Reader, CountsTheBytesOfTheFiles) {
  const auto reader = open_native(mxfp4_reader({3, 10, 2, 16}, {3, 10, 2}), kMxfp4Config, model_with({"l.gate_up"}, true));

  rows_of(*reader, "l.gate_up", 1, 3);

  EXPECT_EQ(reader->bytes_read(), 2 * 10 * 2 * (16 + 1));
}

TEST(Mxfp4Reader, ExpertsStoredAsBf16StayThat) {
  auto source = mxfp4_reader({3, 10, 2, 16}, {3, 10, 2});
  const Tensor whole = test::random_tensor({3, 64, 10}, DType::kBF16, 3);
  source->add("l.gate_up", whole);

  const auto reader = open_native(std::move(source), kMxfp4Config, model_with({"l.gate_up"}, true));

  EXPECT_TRUE(test::same_bits(reader->read("l.gate_up"), whole));
}

TEST(Mxfp4Reader, BlocksAndScalesMustFit) {
  const layers::ModelSpec model = model_with({"l.gate_up"}, true);
  for (const Shape& blocks : {Shape{3, 10, 32}, Shape{3, 10, 2, 8}, Shape{3, 10, 2, 16, 1}})
    test::expect_error(ErrorKind::kData, "not U8 [experts, rows, columns/32, 16]", [&] {
      open_native(mxfp4_reader(blocks, {3, 10, 2}), kMxfp4Config, model);
    });
  for (const Shape& scales : {Shape{3, 10}, Shape{3, 10, 3}, Shape{2, 10, 2}, Shape{3, 10, 2, 1}})
    test::expect_error(ErrorKind::kData, "its blocks need U8 [3, 10, 2]", [&] {
      open_native(mxfp4_reader({3, 10, 2, 16}, scales), kMxfp4Config, model);
    });
  {
    auto source = mxfp4_reader({3, 10, 2, 16}, {3, 10, 2});
    source->add("l.gate_up_scales", Tensor::zeros({3, 10, 2}, DType::kF32));
    test::expect_error(ErrorKind::kData, "is F32 [3, 10, 2]", [&] { open_native(std::move(source), kMxfp4Config, model); });
  }
  {
    auto source = mxfp4_reader({3, 10, 2, 16}, {3, 10, 2});
    source->add("l.gate_up_blocks", Tensor::zeros({3, 10, 2, 16}, DType::kI8));
    test::expect_error(ErrorKind::kData, "l.gate_up_blocks", [&] { open_native(std::move(source), kMxfp4Config, model); });
  }
  auto source = mxfp4_reader({3, 10, 2, 16}, {3, 10, 2});
  source->remove("l.gate_up_scales");
  test::expect_error(ErrorKind::kData, "l.gate_up_scales", [&] { open_native(std::move(source), kMxfp4Config, model); });
}

// ---- which checkpoints are what

TEST(OpenNative, OtherModelsKeepTheirReader) {
  for (const char* config : {"{}", R"({"quantization_config": null})", R"({"quantization_config": {"quant_method": "awq"}})",
                             R"({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}})"}) {
    auto source = fp8_reader("l.up.weight", 4, 4, 2, 2);
    const Reader* const before = source.get();

    EXPECT_EQ(open_native(std::move(source), Json::parse(config), model_with({"l.up"})).get(), before) << config;
  }
}

TEST(NativeQuantization, IsWhatThePublisherShipped) {
  const auto native = [](const char* config) { return native_quantization(Json::parse(config)); };

  EXPECT_EQ(native("{}"), "");
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})"), "fp8");
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": "mxfp4"}})"), "mxfp4");
  EXPECT_EQ(native(R"({"text_config": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}})"), "fp8");
  // The same words without blocks are a tool's per-tensor FP8.
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": "fp8"}})"), "");
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": null}})"), "");
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}})"), "");
  EXPECT_EQ(native(R"({"quantization_config": {"quant_method": 8, "weight_block_size": [128, 128]}})"), "");
}

TEST(QuantizedBy, NamesTheToolAndWhatItMade) {
  const auto tool = [](const char* config) { return quantized_by(Json::parse(config)); };

  EXPECT_EQ(tool("{}"), "");
  EXPECT_EQ(tool(R"({"quantization_config": null})"), "");
  EXPECT_EQ(tool(R"({"quantization_config": {}})"), "");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}})"), "modelopt (NVFP4)");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "awq", "bits": 4}})"), "awq");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "gptq", "bits": 4}})"), "gptq");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}})"),
            "compressed-tensors (pack-quantized)");
  EXPECT_EQ(tool(R"({"compression_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}})"),
            "compressed-tensors (float-quantized)");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})"), "fp8");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "mxfp4"}})"), "mxfp4");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_algo": "FP8"}})"), "an unnamed tool (FP8)");
  EXPECT_EQ(tool(R"({"quantization_config": {"bits": 4}})"), "an unnamed tool");
  EXPECT_EQ(tool(R"({"text_config": {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}})"),
            "compressed-tensors (pack-quantized)");
  EXPECT_EQ(tool(R"({"quantization_config": {"quant_method": "awq"}, "text_config": {"quantization_config": {"quant_method": "fp8"}}})"),
            "awq")
      << "the model's own goes first";
}

}  // namespace
}  // namespace ptq::runner
