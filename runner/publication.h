#pragma once
// The output folder's life: a work folder beside it, the files that are not weights, checksums, and the one rename by which it appears.

#include <map>
#include <string>
#include <vector>

#include "checkpoint/files.h"
#include "parallel/communicator.h"
#include "recipes/recipe.h"
#include "runner/export_plan.h"
#include "runner/lease.h"

namespace ptq::runner {

/// True when recipe.output_path is there, complete, and has this fingerprint. Throws a user Error when something else is there and
/// output.overwrite is not set.
bool check_output_folder(const recipes::Recipe& recipe, const std::string& fingerprint);

struct WorkFolder {
  Lease lease;           ///< held as long as it lives
  bool resumes = false;  ///< it holds the progress of this very run
};

/// Makes a work folder with ptq-runner/ inside, or takes over the one that a stopped run of the same `identity` (what it is -> its
/// fingerprint) left; what made no progress, or with `restart`, is emptied. Throws a user Error when a running job holds it, when it holds
/// the progress of another run, or when `work` is something else; a system Error when it cannot be made or the disk has less than
/// `tensor_bytes` free for a new one.
WorkFolder make_work_folder(const std::string& work, const std::string& output, int64_t tensor_bytes,
                            const std::map<std::string, std::string>& identity, bool restart);

/// config.json, hf_quant_config.json, the index, generation_config.json and every other file of the source that is not weights.
void write_companions(const std::string& work, const SourceModel& source, const ExportPlan& plan);

/// {file: SHA-256} of every file below `work` but run.jsonl, the lock and the manifest itself, hashed by all ranks. Collective.
checkpoint::Json hash_files(parallel::Communicator& world, const std::string& work);

/// The output appears, everything in it on disk before: one rename, or one exchange with an older output that recipe.overwrite gives up.
/// Only then does `lease` end, so that nobody takes the work folder for an abandoned one.
void publish_output(const std::string& work, const recipes::Recipe& recipe, Lease& lease);

}  // namespace ptq::runner
