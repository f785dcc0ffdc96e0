#pragma once
// The output folder's life: a work folder beside it, the files that are not weights, checksums, and the one rename by which it appears.

#include <string>
#include <vector>

#include "checkpoint/stats_file.h"
#include "parallel/communicator.h"
#include "recipes/minmax.h"
#include "recipes/recipe.h"
#include "runner/export_plan.h"

namespace ptq::runner {

/// True when recipe.output_path is there, complete, and has this fingerprint. Throws a user Error when something else is there and
/// output.overwrite is not set.
bool check_output_folder(const recipes::Recipe& recipe, const std::string& fingerprint);

/// Makes an empty work folder with ptq-runner/ inside; a work folder that a killed run left is emptied. Returns its lock, held as long as
/// the descriptor is open. Throws a user Error when a running job holds it or `work` is something else, a system Error when it cannot be
/// made or the disk has less than `tensor_bytes` free.
checkpoint::Fd make_work_folder(const std::string& work, const std::string& output, int64_t tensor_bytes);

/// config.json, hf_quant_config.json, the index, generation_config.json and every other file of the source that is not weights.
void write_companions(const std::string& work, const SourceModel& source, const ExportPlan& plan);

/// Everyone's statistics in one; the same on every rank. Collective.
checkpoint::Stats gather_statistics(parallel::Communicator& world, const checkpoint::Stats& mine);
/// Lines "module\tnote" of all ranks, sorted.
std::vector<recipes::ScaleNote> parse_notes(const std::vector<std::string>& texts);

/// {file: SHA-256} of every file below `work` but run.jsonl, the lock and the manifest itself, hashed by all ranks. Collective.
checkpoint::Json hash_files(parallel::Communicator& world, const std::string& work);

/// The output appears, everything in it on disk before: one rename, or one exchange with an older output that recipe.overwrite gives up.
void publish_output(const std::string& work, const recipes::Recipe& recipe);

}  // namespace ptq::runner
