#include "runner/progress.h"

#include <algorithm>
#include <filesystem>

#include "checkpoint/files.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;
namespace fs = std::filesystem;

[[noreturn]] void damaged(const std::string& path) {
  throw data_error("what a run kept of its progress is damaged", path, "start over with --restart");
}

std::string part_path(const std::string& folder, size_t index) { return folder + "/part_" + std::to_string(index); }

}  // namespace

Progress::Progress(parallel::Communicator& world, std::string folder) : world_(world), folder_(std::move(folder)) {
  world_.on_root([&] { checkpoint::make_folder(folder_); });
  world_.together([&] { read(); });
}

void Progress::read() {
  const std::string path = folder_ + "/progress.json";
  if (!checkpoint::exists(path)) return;
  const Json json = checkpoint::read_json(path);
  try {
    layers_ = json.at("layers").get<int64_t>();
    done_ = json.at("done").get<bool>();
    digests_ = json.at("parts").get<std::vector<std::string>>();
  } catch (const nlohmann::json::exception&) {
    damaged(path);
  }
  for (size_t i = 0; i < digests_.size(); ++i) {
    parts_.push_back(checkpoint::read_text(part_path(folder_, i)));
    if (checkpoint::sha256_text(parts_.back()) != digests_[i]) damaged(part_path(folder_, i));
  }
}

std::string Progress::states(int64_t layers) const { return folder_ + "/states_" + std::to_string(layers); }

void Progress::advance(int64_t layers, bool done, const std::string& part) {
  digests_.push_back(checkpoint::sha256_text(part));
  layers_ = layers;
  done_ = done;
  world_.on_root([&] {
    checkpoint::write_text(part_path(folder_, digests_.size() - 1), part);
    checkpoint::replace_text(folder_ + "/progress.json", Json{{"layers", layers_}, {"done", done_}, {"parts", digests_}}.dump(2) + "\n");
    for (const auto& entry : fs::directory_iterator(folder_)) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("states_", 0) == 0 && (done || entry.path() != states(layers))) fs::remove(entry.path());
    }
  });
}

std::string progress_folder(const std::string& work) { return work + "/ptq-runner/progress"; }
std::string progress_folder(const std::string& work, const std::string& step) { return progress_folder(work) + "/" + step; }

bool has_progress(const std::string& work) {
  if (!checkpoint::exists(progress_folder(work))) return false;
  const auto steps = fs::directory_iterator(progress_folder(work));
  return std::any_of(begin(steps), end(steps),
                     [](const auto& step) { return checkpoint::exists(step.path().string() + "/progress.json"); });
}

}  // namespace ptq::runner
