#include "checkpoint/megatron_ranks.h"

#include <algorithm>
#include <map>
#include <regex>
#include <tuple>

#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

const std::regex& rank_name() {
  static const std::regex name(
      R"((?:mp_rank_(\d{1,6})(?:_(\d{1,6}))?(?:_(\d{1,6}))?|tp_rank_(\d{1,6})_pp_rank_(\d{1,6}))/(?:model_optim_rng\.pt|model_rng\.pt|model_weights\.ckpt))");
  return name;
}

MegatronRank rank_of(const std::string& name, const FileSlice& file, const MegatronArgs& args) {
  MegatronRank rank;
  rank.file = file;
  std::smatch match;
  if (!std::regex_match(name, match, rank_name())) return rank;  // model_weights.ckpt: one rank had it all
  const auto number = [&](size_t group) { return match[group].matched ? std::stoll(match[group].str()) : 0; };
  rank.tensor = number(match[4].matched ? 4 : 1);
  const bool second_is_expert = !match[3].matched && args.pipeline <= 1 && args.expert > 1;
  rank.pipeline = match[5].matched ? number(5) : second_is_expert ? 0 : number(2);
  rank.expert = second_is_expert ? number(2) : number(3);
  return rank;
}

/// Experts may be shared by another number x of tensor ranks than the t of all else. In a pipeline stage, rank r is tensor rank r mod t,
/// has part r mod x of its experts' tensors and is rank r / x of the experts. One of each pair (part, rank of the experts) writes, the
/// first, so r < x e, into the folder of (r mod t, r / x). Where x > t, several write into one folder; where x e < t, nobody writes the
/// last tensor ranks' weights. In all other cases each folder is one rank's, and no weight is missing, but there are x e folders and not t
/// e.
void check_expert_tensor(const MegatronArgs& args, const std::string& path) {
  if (args.experts == 0 || args.expert_tensor == 0 || args.tensor == 0) return;
  const std::string trained = "the checkpoint was trained with expert_tensor_parallel_size = " + std::to_string(args.expert_tensor) +
                              ", expert_model_parallel_size = " + std::to_string(args.expert) +
                              " and tensor_model_parallel_size = " + std::to_string(args.tensor);
  constexpr const char* kFix = "save the run's model again with --ckpt-format torch_dist, which keeps all of it";
  if (args.expert_tensor > args.tensor)
    throw user_error(trained + ": several ranks wrote other parts of experts into one mp_rank folder, where only the last one's are left",
                     path, kFix);
  if (args.expert_tensor * std::max<int64_t>(1, args.expert) < args.tensor)
    throw user_error(trained + ": some tensor ranks wrote no mp_rank folder, and their weights are not there", path, kFix);
}

}  // namespace

bool is_megatron_rank_file(const std::string& name) { return name == "model_weights.ckpt" || std::regex_match(name, rank_name()); }

MegatronRanks find_megatron_ranks(const FileSet& files, const MegatronArgs& args, const std::string& path) {
  check_expert_tensor(args, path);
  MegatronRanks found;
  for (const auto& [name, file] : files) {
    if (!is_megatron_rank_file(name)) continue;
    const MegatronRank rank = rank_of(name, file, args);
    found.tensor = std::max(found.tensor, rank.tensor + 1);
    found.pipeline = std::max(found.pipeline, rank.pipeline + 1);
    found.expert = std::max(found.expert, rank.expert + 1);
    found.ranks.push_back(rank);
  }
  const auto place = [](const MegatronRank& rank) { return std::tuple(rank.pipeline, rank.expert, rank.tensor); };
  std::sort(found.ranks.begin(), found.ranks.end(), [&](const auto& a, const auto& b) { return place(a) < place(b); });
  const auto check = [&](int64_t said, int64_t there, const std::string& key) {
    if (said > 0 && said != there)
      throw data_error(
          "the checkpoint's args say " + key + " = " + std::to_string(said) + ", but there are the files of " + std::to_string(there), path,
          "copy the checkpoint again, with the folders of all ranks");
  };
  check(args.tensor, found.tensor, "tensor_model_parallel_size");
  check(args.pipeline, found.pipeline, "pipeline_model_parallel_size");
  check(args.expert, found.expert, "expert_model_parallel_size");
  found.expert_tensor = args.experts > 0 && args.expert_tensor > 0 ? args.expert_tensor : found.tensor;
  std::map<std::tuple<int64_t, int64_t, int64_t>, MegatronRank*> places;
  for (MegatronRank& rank : found.ranks)
    if (!places.emplace(place(rank), &rank).second) throw data_error("two folders are of one rank: " + where_of(rank.file), path);
  for (int64_t pipeline = 0; pipeline < found.pipeline; ++pipeline)
    for (int64_t expert = 0; expert < found.expert; ++expert)
      for (int64_t part = 0; part < found.expert_tensor; ++part) {
        const int64_t tensor = (expert * found.expert_tensor + part) % found.tensor;
        const auto rank = places.find({pipeline, expert, tensor});
        if (rank == places.end())
          throw data_error("the folder of tensor rank " + std::to_string(tensor) + ", pipeline rank " + std::to_string(pipeline) +
                               ", expert rank " + std::to_string(expert) + " is missing",
                           path, "copy the checkpoint again, with the folders of all ranks");
        rank->second->expert_tensor = part;
        places.erase(rank);
      }
  if (!places.empty())
    throw data_error("a folder is of a rank that the checkpoint's args leave no room for: " + where_of(places.begin()->second->file), path,
                     "copy the checkpoint again, into an empty folder");
  return found;
}

}  // namespace ptq::checkpoint
