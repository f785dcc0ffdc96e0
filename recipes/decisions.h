#pragma once
// Which format every linear gets and why: the recipe's ignore list and rules laid over the model's linears.

#include <map>
#include <set>
#include <string>

#include "layers/model_spec.h"
#include "recipes/encoding.h"
#include "recipes/recipe.h"

namespace ptq::recipes {

struct Decision {
  Encoding encoding;
  std::string reason;       ///< "quantization.format", "ignore: lm_head", "rule 2: *.self_attn.*"
  bool is_ignored = false;  ///< by quantization.ignore: not even counted in the bits per weight
};

/// By module name, every linear of the layers and lm_head. A pattern of quantization.ignore without wildcards also matches names that end
/// in it after a dot. ModelOpt's INT4 has a pre_quant_scale beside the outputs of attention and of MLPs, ones where nothing is smoothed.
/// Throws a user Error for a rule that matches nothing (or only ignored modules), linears that servers fuse with different formats (all
/// routed experts of a layer are fused), and what layout_fault finds: a width that groups do not divide, experts stacked in one tensor.
std::map<std::string, Decision> decide_formats(const layers::ModelSpec& model, const Recipe& recipe);

/// Linears whose inputs no norm feeds: TensorRT-LLM asks for the pre_quant_scale of these in every INT4 checkpoint of ModelOpt's.
std::set<int> output_linears(const layers::LayerSpec& layer);
/// INT4 weights in ModelOpt's dialect?
bool is_modelopt_int4(const Encoding& encoding);

/// Does `pattern` (glob with * and ?, or re:regex, over the whole name) match?
bool matches(const std::string& pattern, const std::string& name);

/// Names of the linears of the layers that quantization.ignore leaves out.
std::set<std::string> ignored_modules(const layers::ModelSpec& model, const Recipe& recipe);
/// How the recipe stores linears of this format; without what belongs to single linears.
Encoding encoding_of(Format format, const Recipe& recipe);
/// Sets Encoding::pre_quant_scale of linears that have one, given all other decisions.
void decide_smoothing_vectors(const layers::ModelSpec& model, const Recipe& recipe, std::map<std::string, Decision>& decisions);

/// True when some decision or the KV cache needs activations observed.
bool needs_calibration(const std::map<std::string, Decision>& decisions, const Recipe& recipe);

}  // namespace ptq::recipes
