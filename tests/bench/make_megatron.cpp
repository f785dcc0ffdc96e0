// Writes a Llama-shaped Hugging Face checkpoint again as Megatron-core saves it while training: torch_dist, layers stacked, a file for each
// rank, tensor- and pipeline-parallel shards, the vocabulary padded. Usage:
//   make_megatron MODEL FOLDER tensor_ranks pipeline_ranks

#include <fmt/format.h>

#include <cstdio>
#include <fstream>

#include "checkpoint/files.h"
#include "checkpoint/reader.h"
#include "tests/support/make_dist_checkpoint.h"

using namespace ptq;

namespace {

struct Model {
  int64_t hidden, layers, intermediate, heads, kv_heads, head_dim, vocab;
};

class Writer {
 public:
  Writer(const checkpoint::Reader& reader, const Model& model, std::string folder, int64_t tensor_ranks, int64_t pipeline_ranks)
      : reader_(reader), model_(model), folder_(std::move(folder)), tensor_(tensor_ranks), pipeline_(pipeline_ranks) {}

  void write() {
    checkpoint::make_folder(folder_);
    const int64_t padded = (model_.vocab + 128 * tensor_ - 1) / (128 * tensor_) * (128 * tensor_);
    vocabulary("embedding.word_embeddings.weight", "model.embed_tokens.weight", padded, 0);
    for (int64_t l = 0; l < model_.layers; ++l) layer(l);
    vocabulary("output_layer.weight", "lm_head.weight", padded, pipeline_ - 1);
    put("decoder.final_layernorm.weight", {model_.hidden}, {0}, {model_.hidden}, rows("model.norm.weight", 0, 1), 0, pipeline_ - 1);
    std::vector<test::DistArray> arrays;
    for (auto& [name, array] : arrays_) arrays.push_back(std::move(array));
    checkpoint::write_text(folder_ + "/.metadata", test::dist_metadata(arrays));
    checkpoint::write_text(folder_ + "/metadata.json",
                           R"({"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"})");
  }

 private:
  using Bytes = std::string;

  /// Rows [begin, end) of a tensor, as they lie; a vector is one row.
  Bytes rows(const std::string& name, int64_t begin, int64_t end) const {
    const checkpoint::TensorEntry& entry = reader_.at(name);
    if (entry.shape.size() == 1) end = entry.rows();
    Bytes bytes(static_cast<size_t>((end - begin) * entry.row_bytes()), '\0');
    reader_.read_rows(entry, begin, end, reinterpret_cast<std::byte*>(bytes.data()));
    return bytes;
  }
  /// Columns [begin, end) of a matrix.
  Bytes columns(const std::string& name, int64_t begin, int64_t end) const {
    const checkpoint::TensorEntry& entry = reader_.at(name);
    const Bytes whole = rows(name, 0, entry.rows());
    Bytes part;
    for (int64_t r = 0; r < entry.rows(); ++r)
      part.append(whole, static_cast<size_t>(r * entry.row_bytes() + 2 * begin), static_cast<size_t>(2 * (end - begin)));
    return part;
  }

  /// One shard into the file of its rank.
  void put(const std::string& name, const std::vector<int64_t>& shape, const std::vector<int64_t>& offsets,
           const std::vector<int64_t>& sizes, const Bytes& bytes, int64_t tensor_rank, int64_t stage) {
    const std::string file = "__" + std::to_string(stage * tensor_ + tensor_rank) + "_0.distcp";
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
    const auto elements = static_cast<int64_t>(bytes.size() / 2);
    const std::string slice =
        test::torch_file(test::pickled_tensor(test::pickled_storage("torch BFloat16Storage", "0", elements), 0, sizes, strides), {bytes});
    std::ofstream& stream = files_[file];
    if (!stream.is_open()) stream.open(folder_ + "/" + file, std::ios::binary);
    test::DistArray& array = arrays_[name];
    array.name = name;
    array.dtype = "bfloat16";
    array.shape = shape;
    array.chunks.push_back({.offsets = offsets,
                            .sizes = sizes,
                            .file = file,
                            .offset = static_cast<int64_t>(stream.tellp()),
                            .length = static_cast<int64_t>(slice.size())});
    stream.write(slice.data(), static_cast<std::streamsize>(slice.size()));
  }

  void vocabulary(const std::string& name, const std::string& tensor, int64_t padded, int64_t stage) {
    const int64_t share = padded / tensor_;
    for (int64_t t = 0; t < tensor_; ++t) {
      Bytes bytes = rows(tensor, std::min(model_.vocab, t * share), std::min(model_.vocab, (t + 1) * share));
      bytes.resize(static_cast<size_t>(share * model_.hidden * 2), '\0');
      put(name, {padded, model_.hidden}, {t * share, 0}, {share, model_.hidden}, bytes, t, stage);
    }
  }

  void layer(int64_t l) {
    const std::string from = "model.layers." + std::to_string(l) + ".", to = "decoder.layers.";
    const int64_t stage = l / (model_.layers / pipeline_), hidden = model_.hidden, all = model_.layers;
    const auto norm = [&](const std::string& name, const std::string& tensor) {
      put(to + name, {all, hidden}, {l, 0}, {1, hidden}, rows(from + tensor, 0, 1), 0, stage);
    };
    norm("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight");
    norm("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight");
    const int64_t groups = model_.kv_heads / tensor_, queries = model_.heads / model_.kv_heads, d = model_.head_dim;
    const int64_t group_rows = (queries + 2) * d, out = model_.kv_heads * group_rows;
    for (int64_t t = 0; t < tensor_; ++t) {
      Bytes bytes;
      for (int64_t g = t * groups; g < (t + 1) * groups; ++g)
        bytes += rows(from + "self_attn.q_proj.weight", g * queries * d, (g + 1) * queries * d) +
                 rows(from + "self_attn.k_proj.weight", g * d, (g + 1) * d) + rows(from + "self_attn.v_proj.weight", g * d, (g + 1) * d);
      put(to + "self_attention.linear_qkv.weight", {all, out, hidden}, {l, t * groups * group_rows, 0}, {1, groups * group_rows, hidden},
          bytes, t, stage);
      by_columns(to + "self_attention.linear_proj.weight", from + "self_attn.o_proj.weight", model_.heads * d, l, t, stage);
      by_columns(to + "mlp.linear_fc2.weight", from + "mlp.down_proj.weight", model_.intermediate, l, t, stage);
      const int64_t share = model_.intermediate / tensor_;
      for (const auto& [tensor, first] : {std::pair("mlp.gate_proj.weight", int64_t{0}), {"mlp.up_proj.weight", model_.intermediate}})
        put(to + "mlp.linear_fc1.weight", {all, 2 * model_.intermediate, hidden}, {l, first + t * share, 0}, {1, share, hidden},
            rows(from + tensor, t * share, (t + 1) * share), t, stage);
    }
  }

  void by_columns(const std::string& name, const std::string& tensor, int64_t in, int64_t l, int64_t t, int64_t stage) {
    const int64_t share = in / tensor_;
    put(name, {model_.layers, model_.hidden, in}, {l, 0, t * share}, {1, model_.hidden, share}, columns(tensor, t * share, (t + 1) * share),
        t, stage);
  }

  const checkpoint::Reader& reader_;
  Model model_;
  std::string folder_;
  int64_t tensor_, pipeline_;
  std::map<std::string, std::ofstream> files_;
  std::map<std::string, test::DistArray> arrays_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fputs("usage: make_megatron MODEL FOLDER tensor_ranks pipeline_ranks\n", stderr);
    return 2;
  }
  const auto reader = checkpoint::open_checkpoint(argv[1]);
  const auto config = checkpoint::read_json(std::string(argv[1]) + "/config.json");
  const auto number = [&](const char* key) { return config.at(key).get<int64_t>(); };
  const Model model{number("hidden_size"),         number("num_hidden_layers"), number("intermediate_size"), number("num_attention_heads"),
                    number("num_key_value_heads"), number("head_dim"),          number("vocab_size")};
  Writer(*reader, model, argv[2], std::atoll(argv[3]), std::atoll(argv[4])).write();
}
