#include "checkpoint/torch_pickle.h"

#include <gtest/gtest.h>

#include <numeric>

#include "checkpoint/reader.h"
#include "tests/support/expect_error.h"
#include "tests/support/make_torch_file.h"
#include "tests/support/model_files.h"
#include "tests/support/shared_folder.h"

namespace ptq::checkpoint {
namespace {

using namespace std::string_literals;
using test::expect_error;
using test::pickled;
using test::pickled_call;
using test::pickled_dict;
using test::pickled_global;
using test::pickled_ints;
using test::pickled_storage;
using test::pickled_tensor;
using test::torch_file;

ByteSlice slice_of(const std::string& bytes) { return {std::make_shared<const std::string>(bytes), "a.pt"}; }

std::string read_whole(const TorchFile& file, const TorchTensor& tensor) {
  std::string bytes(static_cast<size_t>(tensor.bytes()), '\0');
  read_torch_rows(file.slice(), tensor, 0, tensor.rows(), reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

void expect_tensor_refused(const std::string& value, const std::string& words) {
  const TorchFile file(slice_of(torch_file(value, {std::string(24, 'x')})));
  expect_error(ErrorKind::kData, words, [&] { file.tensor(file.root(), "w"); });
}

const std::string kFloats = pickled_storage("torch FloatStorage", "0", 6);

TEST(TorchFile, FilesOfEveryKindHoldTheExpectedTensors) {
  PTQ_NEEDS_SHARED(shared);
  const std::string folder = shared + "/fixtures/input_formats/torch_misc/";
  const test::StoredTensors expected = test::read_tensors(folder + "expected.safetensors");

  for (const char* name : {"misc_zip.pt", "misc_zip_proto4.pt", "misc_legacy_nonzip.pt"}) {
    SCOPED_TRACE(name);
    const TorchFile file(ByteSlice::of_file(folder + name));
    size_t tensors = 0;
    for (const auto& [key, value] : file.root().entries()) {
      ASSERT_TRUE(TorchFile::is_tensor(value));
      const std::string tensor_name(key.text().value());
      SCOPED_TRACE(tensor_name);
      const TorchTensor tensor = file.tensor(value, tensor_name);
      const test::StoredTensor& wanted = expected.at(tensor_name);
      EXPECT_EQ(dtype_name(tensor.dtype), wanted.dtype);
      EXPECT_EQ(tensor.shape, wanted.shape);
      EXPECT_EQ(read_whole(file, tensor), wanted.bytes);
      for (int64_t row = 0; row < tensor.rows(); ++row) {
        std::string bytes(static_cast<size_t>(tensor.row_bytes()), '\0');
        read_torch_rows(file.slice(), tensor, row, row + 1, reinterpret_cast<std::byte*>(bytes.data()));
        EXPECT_EQ(bytes, wanted.bytes.substr(static_cast<size_t>(row) * bytes.size(), bytes.size()));
      }
      ++tensors;
    }
    EXPECT_GE(tensors, expected.size() - 1);  // the older stream has no FP8
    EXPECT_EQ(file.tensor(file.find({"whole"}), "whole").storage, file.tensor(file.find({"alias"}), "alias").storage);
  }
}

TEST(TorchFile, TrainingFilesAreWalkedByTheirKeys) {
  PTQ_NEEDS_SHARED(shared);
  const TorchFile file(ByteSlice::of_file(shared + "/fixtures/input_formats/legacy_llama_tp2/iter_0000005/mp_rank_01/model_optim_rng.pt"));

  EXPECT_EQ(file.find({"args", "tensor_model_parallel_size"}).integer(), 2);
  const PickleValue weight = file.find({"model", "embedding.word_embeddings.weight"});
  ASSERT_TRUE(TorchFile::is_tensor(weight));
  EXPECT_EQ(file.tensor(weight, "embedding").shape, (Shape{64, 32}));
  EXPECT_FALSE(file.find({"model", "absent", "deeper"}));
}

TEST(TorchFile, LargeTransposedTensorsAreGatheredFromSeveralReads) {
  constexpr int64_t kRows = 1500, kColumns = 2100;
  std::string bytes;
  for (int64_t i = 0; i < kRows * kColumns; ++i) bytes += test::little_endian(static_cast<uint64_t>(i), 4);
  const TorchFile file(slice_of(torch_file(
      pickled_tensor(pickled_storage("torch IntStorage", "0", kRows * kColumns), 0, {kColumns, kRows}, {1, kColumns}), {bytes})));
  const TorchTensor tensor = file.tensor(file.root(), "w");

  std::vector<int32_t> rows(static_cast<size_t>(1000 * kRows));
  read_torch_rows(file.slice(), tensor, 100, 1100, reinterpret_cast<std::byte*>(rows.data()));

  EXPECT_FALSE(tensor.is_contiguous);
  for (int64_t i = 0; i < 1000; ++i)
    for (int64_t j = 0; j < kRows; ++j) ASSERT_EQ(rows[static_cast<size_t>(i * kRows + j)], j * kColumns + 100 + i);
}

TEST(TorchFile, WrappersAreTakenOff) {
  const std::string plain = pickled_tensor(kFloats, 0, {2, 3}, {3, 1});
  const std::string parameter = pickled_call("torch._utils _rebuild_parameter", {plain, "\x88", "}"});
  const std::string with_attributes =
      pickled_call("torch._tensor _rebuild_from_type_v2",
                   {pickled_global("torch._utils _rebuild_tensor_v2"), pickled_global("torch Tensor"),
                    test::pickled_tuple({kFloats, "K\0"s, pickled_ints({6}), pickled_ints({1}), "\x89", "}"}), pickled_dict({})});
  const TorchFile file(slice_of(torch_file(test::pickled_list({parameter, with_attributes}), {std::string(24, 'x')})));

  EXPECT_EQ(file.tensor(file.root()[0], "w").shape, (Shape{2, 3}));
  EXPECT_EQ(file.tensor(file.root()[1], "w").shape, (Shape{6}));
}

TEST(TorchFile, TensorsThatDoNotFitTheirStorageAreRefused) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  expect_tensor_refused(pickled_tensor(kFloats, 0, {7}, {1}), "beyond its storage");
  expect_tensor_refused(pickled_tensor(kFloats, 1, {6}, {1}), "beyond its storage");
  expect_tensor_refused(pickled_tensor(kFloats, kHuge, {1}, {1}), "beyond its storage");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {2}, {kHuge}), "beyond its storage");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {2, 2, 2}, {3, 2, kHuge}), "beyond its storage");
  expect_tensor_refused(pickled_tensor(kFloats, -1, {1}, {1}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {-1}, {1}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {kHuge, kHuge}, {0, 0}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {kHuge, 4, 0}, {0, 0, 0}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {1, 1, 1, 1, 1, 1, 1, 1, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {6}, {}), "impossible shape");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {2}, {-1}), "impossible stride");
  expect_tensor_refused(pickled_tensor(kFloats, 0, {int64_t{1} << 40}, {0}), "repeats its numbers");
  expect_tensor_refused(pickled_tensor(pickled_storage("torch FloatStorage", "0", 7), 0, {1}, {1}), "not as long as it should be");
  expect_tensor_refused(pickled_tensor(pickled_storage("torch FloatStorage", "1", 6), 0, {1}, {1}), "storage '1', which is not there");
  expect_tensor_refused(pickled_tensor(pickled_storage("torch ComplexFloatStorage", "0", 3), 0, {1}, {1}), "ComplexFloatStorage");
  expect_tensor_refused(pickled_tensor("N", 0, {1}, {1}), "cannot be understood");
  expect_tensor_refused(pickled_call("torch._utils _rebuild_qtensor", {kFloats}), "_rebuild_qtensor");
  expect_tensor_refused("N", "no tensor");
}

TEST(TorchFile, ADimensionOfOneMayHaveAnyStride) {
  const TorchFile file(slice_of(
      torch_file(pickled_tensor(pickled_storage("torch ByteStorage", "0", 6), 1, {1, 2, 2}, {std::numeric_limits<int64_t>::max(), 1, 2}),
                 {"abcdef"})));

  EXPECT_EQ(read_whole(file, file.tensor(file.root(), "w")), "bdce");
}

TEST(TorchFile, TheOlderStreamIsCheckedToItsLastByte) {
  const std::string magic = test::whole_pickle("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"s);
  const auto stream = [&](const std::string& endian, const std::string& object, const std::string& tail) {
    return magic + test::whole_pickle("M\xe9\x03") + test::whole_pickle(pickled_dict({pickled("little_endian"), endian})) +
           test::whole_pickle(object) + test::whole_pickle(test::pickled_list({pickled("0")})) + tail;
  };
  const std::string tensor = pickled_tensor(kFloats, 0, {2, 3}, {3, 1}), data(24, 'x'), size = test::little_endian(6, 8);
  const TorchFile file(slice_of(stream("\x88", tensor, size + data)));
  EXPECT_EQ(read_whole(file, file.tensor(file.root(), "w")), data);

  const auto expect_refused = [&](const std::string& bytes, const std::string& words) {
    expect_error(ErrorKind::kData, words, [&] { TorchFile{slice_of(bytes)}; });
  };
  const std::string sound = stream("\x88", tensor, size + data);
  expect_refused(stream("\x89", tensor, size + data), "not little-endian");
  expect_refused(stream("\x88", tensor, size + data + "x"), "goes on behind");
  expect_refused(stream("\x88", tensor, test::little_endian(~0ull, 8) + data), "not as long");
  expect_refused(stream("\x88", "N", size + data), "does not say");
  for (size_t bytes = 0; bytes < sound.size(); ++bytes) EXPECT_THROW(TorchFile{slice_of(sound.substr(0, bytes))}, Error) << bytes;
}

}  // namespace
}  // namespace ptq::checkpoint
