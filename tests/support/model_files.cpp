#include "tests/support/model_files.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>

#include "checkpoint/files.h"
#include "kernels/core/dtype.h"

namespace ptq::test {

namespace {

namespace fs = std::filesystem;

uint64_t header_length(const std::string& file) {
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  return length;
}

std::string with_length(const std::string& header) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header;
}

template <class T>
void append_values(const std::string& bytes, std::vector<double>& values) {
  for (size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
    T value;
    std::memcpy(&value, bytes.data() + at, sizeof(T));
    values.push_back(static_cast<double>(value));
  }
}

}  // namespace

std::vector<double> StoredTensor::values() const {
  std::vector<double> found;
  if (dtype == "F32") append_values<float>(bytes, found);
  if (dtype == "I32") append_values<int32_t>(bytes, found);
  if (dtype == "I64") append_values<int64_t>(bytes, found);
  for (size_t at = 0; dtype == "BF16" && at < bytes.size(); at += 2) {
    BF16 value;
    std::memcpy(&value, bytes.data() + at, 2);
    found.push_back(to_float(value));
  }
  return found;
}

float StoredTensor::scalar() const {
  float value = 0;
  if (dtype != "F32" || bytes.size() != 4) throw std::runtime_error("no F32 scalar");
  std::memcpy(&value, bytes.data(), 4);
  return value;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) throw std::runtime_error("cannot write " + path);
}

Json read_json_file(const std::string& path) { return Json::parse(read_file(path)); }

void edit_json_file(const std::string& path, const std::function<void(Json&)>& edit) {
  Json json = read_json_file(path);
  edit(json);
  write_file(path, json.dump(2));
}

StoredTensors read_tensors(const std::string& path) {
  StoredTensors tensors;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".safetensors" && entry.path().filename().string().starts_with("model"))
        tensors.merge(read_tensors(entry.path().string()));
    return tensors;
  }
  const std::string file = read_file(path);
  const uint64_t length = header_length(file);
  const auto header = nlohmann::json::parse(file.substr(8, length));
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto begin = entry.at("data_offsets")[0].get<size_t>(), end = entry.at("data_offsets")[1].get<size_t>();
    tensors[name] = {entry.at("dtype"), entry.at("shape").get<std::vector<int64_t>>(), file.substr(8 + length + begin, end - begin)};
  }
  return tensors;
}

void write_tensors(const std::string& path, const StoredTensors& tensors) {
  Json header = Json::object();
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  write_file(path, with_length(header.dump()) + data);
}

int64_t tensor_bytes(const StoredTensors& tensors) {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) bytes += static_cast<int64_t>(tensor.bytes.size());
  return bytes;
}

void edit_tensors(const std::string& path, const std::function<void(StoredTensors&)>& edit) {
  StoredTensors tensors = read_tensors(path);
  edit(tensors);
  write_tensors(path, tensors);
}

void edit_safetensors_header(const std::string& path, const std::function<void(Json&)>& edit) {
  const std::string file = read_file(path);
  const uint64_t length = header_length(file);
  Json header = Json::parse(file.substr(8, length));
  edit(header);
  write_file(path, with_length(header.dump()) + file.substr(8 + length));
}

void copy_folder(const std::string& from, const std::string& to) {
  fs::copy(from, to, fs::copy_options::recursive);
  for (const auto& entry : fs::recursive_directory_iterator(to))
    fs::permissions(entry, fs::perms::owner_write, fs::perm_options::add);  // the material may be read-only
  fs::permissions(to, fs::perms::owner_write, fs::perm_options::add);
}

void split_into_shards(const std::string& folder, int shards) {
  const StoredTensors all = read_tensors(folder + "/model.safetensors");
  std::vector<StoredTensors> parts(static_cast<size_t>(shards));
  Json places = Json::object();
  size_t next = 0;
  for (const auto& [name, tensor] : all) {
    const size_t part = next++ * parts.size() / all.size();
    char file[64];
    std::snprintf(file, sizeof(file), "model-%05zu-of-%05d.safetensors", part + 1, shards);
    places[name] = file;
    parts[part][name] = tensor;
  }
  for (auto& part : parts)
    if (!part.empty()) write_tensors(folder + "/" + places.at(part.begin()->first).get<std::string>(), part);
  const Json index{{"metadata", {{"total_size", tensor_bytes(all)}}}, {"weight_map", places}};
  write_file(folder + "/model.safetensors.index.json", index.dump(2));
  fs::remove(folder + "/model.safetensors");
}

std::map<std::string, std::string> file_sums(const std::string& folder) {
  std::map<std::string, std::string> sums;
  for (const auto& entry : fs::directory_iterator(folder))
    if (!entry.is_directory()) sums[entry.path().filename().string()] = checkpoint::sha256_file(entry.path().string());
  return sums;
}

StoredTensor random_tensor(std::vector<int64_t> shape, float deviation, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0.0f, deviation);
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  StoredTensor tensor{"BF16", std::move(shape), std::string(static_cast<size_t>(2 * count), '\0')};
  for (int64_t i = 0; i < count; ++i) {
    const BF16 value = to_bf16(normal(random));
    std::memcpy(tensor.bytes.data() + 2 * i, &value, 2);
  }
  return tensor;
}

StoredTensor ones(int64_t count) {
  StoredTensor tensor{"BF16", {count}, {}};
  for (int64_t i = 0; i < count; ++i) tensor.bytes += std::string("\x80\x3f", 2);
  return tensor;
}

void make_tiny_llama(const std::string& folder, const TinyLlama& shape) {
  fs::create_directories(folder);
  const int64_t head_dim = shape.hidden / shape.heads, kv = shape.kv_heads * head_dim;
  const Json config{{"architectures", {"LlamaForCausalLM"}},
                    {"model_type", "llama"},
                    {"hidden_size", shape.hidden},
                    {"intermediate_size", shape.intermediate},
                    {"num_hidden_layers", shape.layers},
                    {"num_attention_heads", shape.heads},
                    {"num_key_value_heads", shape.kv_heads},
                    {"vocab_size", shape.vocab},
                    {"rms_norm_eps", 1e-5},
                    {"rope_theta", 10000.0},
                    {"max_position_embeddings", 1024},
                    {"tie_word_embeddings", false},
                    {"eos_token_id", 1}};
  write_file(folder + "/config.json", config.dump(2));

  std::mt19937_64 random(shape.seed);
  StoredTensors tensors;
  tensors["model.embed_tokens.weight"] = random_tensor({shape.vocab, shape.hidden}, 1.0f, random);
  tensors["lm_head.weight"] = random_tensor({shape.vocab, shape.hidden}, 0.1f, random);
  tensors["model.norm.weight"] = ones(shape.hidden);
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
      tensors[layer + name + ".weight"] = random_tensor({out, in}, 0.1f, random);
    };
    linear("self_attn.q_proj", shape.hidden, shape.hidden);
    linear("self_attn.k_proj", kv, shape.hidden);
    linear("self_attn.v_proj", kv, shape.hidden);
    linear("self_attn.o_proj", shape.hidden, shape.hidden);
    linear("mlp.gate_proj", shape.intermediate, shape.hidden);
    linear("mlp.up_proj", shape.intermediate, shape.hidden);
    linear("mlp.down_proj", shape.hidden, shape.intermediate);
    tensors[layer + "input_layernorm.weight"] = ones(shape.hidden);
    tensors[layer + "post_attention_layernorm.weight"] = ones(shape.hidden);
  }
  write_tensors(folder + "/model.safetensors", tensors);
}

std::string random_documents(int64_t rows, int64_t length, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string text;
  for (int64_t row = 0; row < rows; ++row) {
    text += R"({"input_ids": [)";
    for (int64_t i = 0; i < length; ++i) text.append(i ? ", " : "").append(std::to_string(random() % static_cast<uint64_t>(vocab)));
    text += "]}\n";
  }
  return text;
}

}  // namespace ptq::test
