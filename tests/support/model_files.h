#pragma once
// Checkpoints and calibration data for tests: made, copied, looked into and damaged. Reads safetensors on its own, not through the
// program's reader, so that a fault of one does not hide in the other. Trusts its input: only for files that are sound, or were.

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

namespace ptq::test {

using Json = nlohmann::ordered_json;

struct StoredTensor {
  std::string dtype;  ///< as safetensors says it: "BF16"
  std::vector<int64_t> shape;
  std::string bytes;

  bool operator==(const StoredTensor&) const = default;
  /// F32, BF16, I32 and I64 as numbers.
  std::vector<double> values() const;
  float scalar() const;
};
using StoredTensors = std::map<std::string, StoredTensor>;

std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);
Json read_json_file(const std::string& path);
void edit_json_file(const std::string& path, const std::function<void(Json&)>& edit);

/// Of one file, or of all files model*.safetensors of a folder.
StoredTensors read_tensors(const std::string& path);
void write_tensors(const std::string& path, const StoredTensors& tensors);
int64_t tensor_bytes(const StoredTensors& tensors);
/// Changes tensors of a file in place.
void edit_tensors(const std::string& path, const std::function<void(StoredTensors&)>& edit);
/// Changes the JSON header of a file and leaves the data as it is.
void edit_safetensors_header(const std::string& path, const std::function<void(Json&)>& edit);

void copy_folder(const std::string& from, const std::string& to);
/// Cuts the folder's model.safetensors into that many shards with an index.
void split_into_shards(const std::string& folder, int shards);
/// SHA-256 of every file right in the folder, by name; folders are left out.
std::map<std::string, std::string> file_sums(const std::string& folder);

/// BF16, normally distributed around 0.
StoredTensor random_tensor(std::vector<int64_t> shape, float deviation, std::mt19937_64& random);
/// BF16 [count].
StoredTensor ones(int64_t count);

struct TinyLlama {
  int64_t hidden = 64, intermediate = 96, layers = 2, heads = 4, kv_heads = 2, vocab = 128;
  uint64_t seed = 1;
};
/// A checkpoint of random bf16 weights, without a tokenizer.
void make_tiny_llama(const std::string& folder, const TinyLlama& shape = {});

/// JSONL of {"input_ids": [...]}: `rows` documents of `length` tokens, random in [0, vocab).
std::string random_documents(int64_t rows, int64_t length, int64_t vocab, uint64_t seed = 1);

}  // namespace ptq::test
