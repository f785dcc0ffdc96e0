#pragma once
// Checkpoints of training runs: where in a Megatron, Megatron-Bridge or NeMo folder or archive the weights lie, and which store reads them.
// They carry no config.json: what opens them as a model brings one.

#include <memory>
#include <string>

#include "checkpoint/array_store.h"

namespace ptq::checkpoint {

/// What a path leads to. Found from names alone.
struct TrainingCheckpoint {
  std::string container;         ///< "Megatron", "Megatron-Bridge", "NeMo 1", "NeMo 2"; "" where there is nothing of the kind
  std::string weights;           ///< the folder or archive that holds the arrays
  std::string export_folder;     ///< a complete Hugging Face export of the same weights beside them; "" without
  std::string tokenizer_folder;  ///< the tokenizer that was saved with them; "" without
};

/// Follows a path - the root of a run, one iteration of it, a NeMo folder or file, its weights/ - to a training checkpoint.
/// Throws a data Error for a root that names an iteration that is not there, a user Error for an adapter without its base model.
TrainingCheckpoint find_training_checkpoint(const std::string& path);

/// Opens its arrays. `format` becomes what it is called: "NeMo 2 torch_dist". Throws a user Error where no store knows the layout, a
/// data Error where there are no weights (an optimizer's state only), and what the store throws for damaged files.
std::unique_ptr<ArrayStore> open_arrays(const TrainingCheckpoint& checkpoint, std::string& format);

}  // namespace ptq::checkpoint
