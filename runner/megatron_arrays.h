#pragma once
// The arrays of a Megatron-core checkpoint by their places in the model, whatever the framework around it called them: NeMo puts
// "module." or "model." before every name, homogeneous layers are stacked in a dimension of their own, others have numbers.

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/array_store.h"

namespace ptq::runner {

/// An array, or what is left of it after indices into its leading dimensions.
struct SourceArray {
  const checkpoint::ArrayEntry* array = nullptr;
  Shape index;  ///< into the leading dimensions
  Shape shape;  ///< the other ones

  /// Entry `i` of the first of the other dimensions.
  SourceArray at(int64_t i) const;
};

/// How the names of one layer begin: "decoder.layers.3." where layers have numbers, "decoder.layers." and entry 3 of `count` where they are
/// stacked.
struct LayerNames {
  std::string numbered, stacked;
  int64_t number = 0, count = 0;
};

class MegatronArrays {
 public:
  /// Throws a data Error for two arrays of one name but for "module." and "model.".
  explicit MegatronArrays(const checkpoint::ArrayStore& store);

  const checkpoint::ArrayStore& store() const { return store_; }
  bool has(const std::string& name) const { return by_name_.contains(name); }
  /// Whether any name begins so.
  bool has_any(const std::string& prefix) const;
  /// The array of a whole name. Counts as used from then on.
  std::optional<SourceArray> find(const std::string& name);
  /// The array of a layer. Throws a data Error for stacked layers of another count than the model's.
  std::optional<SourceArray> find(const LayerNames& layer, const std::string& name);
  /// Arrays that nobody asked for, under their full names, but for those that hold no weights: see ignored().
  std::vector<std::string> unused() const;
  /// What training needs and a served model does not, sorted: extra states, tables of rotary frequencies, counters, whatever the store
  /// left out.
  const std::vector<std::string>& ignored() const { return ignored_; }

 private:
  const checkpoint::ArrayStore& store_;
  std::map<std::string, const checkpoint::ArrayEntry*> by_name_;
  std::set<const checkpoint::ArrayEntry*> used_;
  std::vector<std::string> ignored_;
};

}  // namespace ptq::runner
