#include "runner/publication.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <sstream>

#include "runner/machine.h"
#include "runner/progress.h"

namespace ptq::runner {

namespace {

using checkpoint::Json;

std::optional<std::string> complete_fingerprint(const std::string& folder) {
  const std::string path = folder + "/ptq-runner/manifest.json";
  if (!checkpoint::exists(path)) return std::nullopt;
  try {
    return checkpoint::read_json(path).value("fingerprint", "");
  } catch (const Error&) {
    return std::nullopt;
  }
}

constexpr const char* kLock = "/ptq-runner/lock";
constexpr const char* kIdentity = "/run.json";

/// Throws a user Error naming what differs when the progress below `work` is of another run.
void check_identity(const std::string& work, const std::map<std::string, std::string>& identity) {
  const Json theirs = checkpoint::read_json(progress_folder(work) + kIdentity);
  std::string differs;
  for (const auto& [what, fingerprint] : identity)
    if (!theirs.is_object() || !theirs.contains(what) || theirs.at(what) != fingerprint) differs += (differs.empty() ? "" : ", ") + what;
  if (!differs.empty())
    throw user_error("the work folder holds an unfinished run that differs in its " + differs, work,
                     "run it as it was to go on with it, or with --restart to give it up");
}

/// Removes all of it but the lock file, which stays in its place, held.
void empty_work_folder(const std::string& work) {
  for (const auto& entry : std::filesystem::directory_iterator(work)) {
    if (entry.path().filename() != "ptq-runner") checkpoint::remove_tree(entry.path().string());
  }
  for (const auto& entry : std::filesystem::directory_iterator(work + "/ptq-runner"))
    if (entry.path().string() != work + kLock) checkpoint::remove_tree(entry.path().string());
}

/// Whoever took the work folder over writes into it now.
void leave_to_another_run() {
  std::fputs("error: this run was silent for so long that another one took its work folder over\n", stderr);
  ::_exit(static_cast<int>(ErrorKind::kSystem));
}

std::string parent_of(const std::string& path) {
  const auto parent = std::filesystem::absolute(path).parent_path();
  return parent.empty() ? "/" : parent.string();
}

}  // namespace

bool check_output_folder(const recipes::Recipe& recipe, const std::string& fingerprint) {
  const std::string& output = recipe.output_path;
  // Replacing an output must never replace what it is made from, or a folder that holds it.
  const std::string source = std::filesystem::weakly_canonical(recipe.model_path).string() + "/";
  const std::string target = std::filesystem::weakly_canonical(output).string() + "/";
  if (source.rfind(target, 0) == 0 || target.rfind(source, 0) == 0)
    throw user_error("the output folder and the source lie in each other", recipe.where("output.path") + " = " + output,
                     "choose an output.path outside of model.path");
  if (!checkpoint::exists(output)) return false;
  const auto made_by = complete_fingerprint(output);
  if (made_by == fingerprint) return true;
  if (!recipe.overwrite)
    throw user_error(
        made_by ? "the output folder is there already, made from another recipe, source or data" : "the output folder is there already",
        recipe.where("output.path") + " = " + output, "choose another output.path, or set output.overwrite: true to replace it");
  return false;
}

WorkFolder make_work_folder(const std::string& work, const std::string& output, int64_t tensor_bytes,
                            const std::map<std::string, std::string>& identity, bool restart) {
  checkpoint::make_folder(parent_of(output));
  if (checkpoint::exists(work) && !checkpoint::exists(work + "/ptq-runner"))
    throw user_error("there is a folder in the place of the work folder that this program did not make", work, "move it away");
  checkpoint::make_folder(work + "/ptq-runner");
  Lease lease = Lease::take(work + kLock, work, leave_to_another_run);
  if (!restart && has_progress(work)) {
    check_identity(work, identity);
    return {std::move(lease), true};
  }
  empty_work_folder(work);
  if (const int64_t free = checkpoint::free_bytes(parent_of(output)); free < tensor_bytes) {
    checkpoint::remove_tree(work);
    throw system_error("the disk is too full: the output needs " + human_bytes(static_cast<double>(tensor_bytes)) + ", " +
                           human_bytes(static_cast<double>(free)) + " are free",
                       parent_of(output), "free disk space or choose another output.path");
  }
  checkpoint::make_folder(progress_folder(work));
  checkpoint::replace_text(progress_folder(work) + kIdentity, Json(identity).dump(2) + "\n");
  return {std::move(lease), false};
}

void write_companions(const std::string& work, const SourceModel& source, const ExportPlan& plan) {
  for (const auto& [name, path] : source.companions) {
    if (name == "config.json" || name == "hf_quant_config.json" || name.rfind("ptq-runner/", 0) == 0) continue;
    if (name == "generation_config.json") {
      const Json original = checkpoint::read_json(path), accepted = recipes::generation_config(original);
      if (accepted != original) {
        checkpoint::write_text(work + "/" + name, accepted.dump(2) + "\n");
        continue;
      }
    }
    checkpoint::copy_file(path, work + "/" + name);
  }
  checkpoint::write_text(work + "/config.json", recipes::quantized_config(source.config, plan.metadata).dump(4) + "\n");
  if (const auto words = recipes::hf_quant_config(plan.metadata))
    checkpoint::write_text(work + "/hf_quant_config.json", words->dump(4) + "\n");
  if (const std::string index = plan.layout.index_json(); !index.empty())
    checkpoint::write_text(work + "/model.safetensors.index.json", index);
}

Json hash_files(parallel::Communicator& world, const std::string& work) {
  std::string mine;
  world.together([&] {
    const auto files = checkpoint::list_files(work);
    for (size_t i = 0; i < files.size(); ++i)
      if (static_cast<int>(i % static_cast<size_t>(world.size())) == world.rank() && files[i] != "ptq-runner/run.jsonl" &&
          files[i] != "ptq-runner/manifest.json" && "/" + files[i] != kLock)
        mine += checkpoint::sha256_file(work + "/" + files[i]) + " " + files[i] + "\n";
  });
  std::vector<std::pair<std::string, std::string>> sums;
  for (const auto& text : world.gather_texts(mine)) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) sums.emplace_back(line.substr(65), line.substr(0, 64));
  }
  std::sort(sums.begin(), sums.end());
  Json files = Json::object();
  for (const auto& [name, sum] : sums) files[name] = sum;
  return files;
}

void publish_output(const std::string& work, const recipes::Recipe& recipe, Lease& lease) {
  checkpoint::sync_tree(work);
  const bool replaces = checkpoint::exists(recipe.output_path);
  if (replaces && !recipe.overwrite)
    throw user_error("the output folder appeared while this run was working", recipe.output_path, "move it away and run again");
  replaces ? checkpoint::publish_over(work, recipe.output_path) : checkpoint::publish(work, recipe.output_path);
  lease.remove(recipe.output_path + kLock);
}

}  // namespace ptq::runner
