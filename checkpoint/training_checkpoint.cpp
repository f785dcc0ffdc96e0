#include "checkpoint/training_checkpoint.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <string_view>

#include "checkpoint/file_set.h"
#include "checkpoint/files.h"
#include "checkpoint/hf_shards.h"
#include "checkpoint/megatron_args.h"
#include "checkpoint/megatron_legacy_store.h"
#include "checkpoint/reader.h"
#include "checkpoint/tar_index.h"
#include "checkpoint/torch_dist_store.h"
#include "checkpoint/zarr_store.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace fs = std::filesystem;

namespace {

constexpr const char* kLatest = "latest_checkpointed_iteration.txt";

/// How the arrays of one checkpoint may be stored.
struct StoreKind {
  std::string_view name;
  bool (*accepts)(const FileSet& files);
  std::unique_ptr<ArrayStore> (*open)(const FileSet& files, const std::string& path);
};

/// Refuses what the args of a distributed checkpoint rule out.
void check_common(const FileSlice& file) {
  const ByteSlice slice = ByteSlice::of_slice(file);
  if (TorchFile::accepts(slice)) read_megatron_args(TorchFile(slice));
}

/// As a function of the type that all stores have.
std::unique_ptr<ArrayStore> open_torch_dist(const FileSet& files, const std::string& path) { return TorchDistStore::open(files, path); }

constexpr std::array kStores{
    StoreKind{"torch_dist", TorchDistStore::accepts, open_torch_dist},
    StoreKind{"zarr", ZarrStore::accepts, ZarrStore::open},
    StoreKind{"mp_rank", MegatronLegacyStore::accepts, MegatronLegacyStore::open},
};

/// `instead`: names of what is there.
Error without_weights(const std::vector<std::string>& instead, const std::string& path) {
  return data_error("the checkpoint holds no weights of a model" + (instead.empty() ? "" : ", only " + first_names(instead)), path,
                    "give the checkpoint of the model, not of its optimizer: with model_optim_rng.pt in every mp_rank folder, or with keys "
                    "such as decoder.layers...");
}

bool is_folder(const std::string& path) {
  std::error_code failed;
  return fs::is_directory(path, failed);
}

/// Whether something in the folder has such a name.
bool has_entry(const std::string& folder, std::string_view beginning) {
  std::error_code failed;
  for (fs::directory_iterator entry(folder, failed); !failed && entry != fs::directory_iterator(); entry.increment(failed))
    if (entry->path().filename().string().starts_with(beginning)) return true;
  return false;
}

/// A folder whose own files are the arrays.
bool holds_arrays(const std::string& folder) {
  const std::string description = folder + "/metadata.json";
  if (exists(description) && read_text(description).find("\"sharded_backend\"") != std::string::npos) return true;
  return has_entry(folder, "mp_rank_") || has_entry(folder, "tp_rank_") || exists(folder + "/model_weights.ckpt");
}

std::string existing_folder(const std::string& folder) { return is_folder(folder) ? folder : ""; }

/// The folder of the iteration that the root says is the latest: a number, or the word release.
std::string latest_iteration(const std::string& root) {
  const std::string file = root + "/" + kLatest;
  std::string word = read_text(file);
  word.erase(std::remove_if(word.begin(), word.end(), [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }), word.end());
  std::string name = word;
  if (word != "release") {
    int64_t number = -1;
    const auto parsed = std::from_chars(word.data(), word.data() + word.size(), number);
    if (parsed.ec != std::errc() || parsed.ptr != word.data() + word.size() || number < 0)
      throw data_error("the file says " + quoted_name(word) + ", which is neither an iteration nor the word release", file);
    const std::string digits = std::to_string(number);
    constexpr size_t kDigits = 7;
    name = "iter_" + std::string(kDigits - std::min(kDigits, digits.size()), '0') + digits;
  }
  if (!is_folder(root + "/" + name))
    throw data_error("the latest checkpoint is " + name + ", but there is no such folder", file,
                     "copy it there too, or give the folder of another iteration");
  return root + "/" + name;
}

TrainingCheckpoint of_iteration(const std::string& folder, bool is_bridge) {
  TrainingCheckpoint found;
  is_bridge = is_bridge || exists(folder + "/run_config.yaml");
  found.container = is_bridge ? "Megatron-Bridge" : "Megatron";
  found.weights = folder;
  if (has_hf_shards(folder + "/hf") && exists(folder + "/hf/config.json")) found.export_folder = folder + "/hf";
  found.tokenizer_folder = existing_folder(folder + "/tokenizer");
  return found;
}

TrainingCheckpoint of_nemo2(const std::string& folder) {
  if (exists(folder + "/weights/adapter_metadata.json") || exists(folder + "/adapter_metadata.json"))
    throw user_error("the checkpoint is an adapter, not a model", folder, "merge it into its base model first");
  return {"NeMo 2", folder + "/weights", "", existing_folder(folder + "/context/nemo_tokenizer")};
}

TrainingCheckpoint of_folder(const std::string& folder) {
  if (exists(folder + "/" + kLatest)) return of_iteration(latest_iteration(folder), exists(folder + "/latest_train_state.pt"));
  if (is_folder(folder + "/weights") && is_folder(folder + "/context")) return of_nemo2(folder);
  if (exists(folder + "/model_config.yaml")) return {"NeMo 1", folder, "", ""};
  if (!holds_arrays(folder)) return {};
  const fs::path parent = fs::path(folder).parent_path();
  if (fs::path(folder).filename() == "weights" && is_folder((parent / "context").string())) return of_nemo2(parent.string());
  return of_iteration(folder, false);
}

}  // namespace

TrainingCheckpoint find_training_checkpoint(const std::string& path) {
  std::error_code failed;
  if (fs::is_regular_file(path, failed)) {
    const bool is_archive = path.ends_with(".nemo") || looks_like_tar(path);
    return is_archive ? TrainingCheckpoint{"NeMo 1", path, "", ""} : TrainingCheckpoint{};
  }
  std::string folder = path;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  return is_folder(folder) && !has_hf_shards(folder) ? of_folder(folder) : TrainingCheckpoint{};
}

std::unique_ptr<ArrayStore> open_arrays(const TrainingCheckpoint& checkpoint, std::string& format) {
  const std::string& path = checkpoint.weights;
  FileSet files = is_folder(path) ? folder_files(path) : index_tar(path);
  if (FileSet inner = files_below(files, "model_weights"); checkpoint.container == "NeMo 1" && !inner.empty()) files = std::move(inner);
  std::string known;
  for (const StoreKind& store : kStores) {
    known += (known.empty() ? "" : ", ") + std::string(store.name);
    if (!store.accepts(files)) continue;
    format = checkpoint.container + " " + std::string(store.name);
    if (const auto common = files.find("common.pt"); common != files.end()) check_common(common->second);
    std::unique_ptr<ArrayStore> opened = store.open(files, path);
    if (opened->arrays().empty()) throw without_weights(opened->left_out(), path);
    return opened;
  }
  std::vector<std::string> optimizers;
  for (const auto& [name, file] : files)
    if (name.ends_with("/distrib_optim.pt")) optimizers.push_back(name);
  if (!optimizers.empty()) throw without_weights(optimizers, path);
  throw user_error("a " + checkpoint.container + " checkpoint whose weights are in none of the known layouts: " + known, path,
                   "check that the copy is complete");
}

}  // namespace ptq::checkpoint
