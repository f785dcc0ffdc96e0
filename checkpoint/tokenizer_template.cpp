#include "checkpoint/tokenizer_template.h"

namespace ptq::checkpoint {

TokenizerTemplate TokenizerTemplate::parse(const TokenizerJson& part) {
  TokenizerTemplate result;
  if (!part.is_null()) result.parse_part(part, 0);
  return result;
}

void TokenizerTemplate::parse_part(const TokenizerJson& part, int depth) {
  // Real files nest once; a damaged one must not exhaust the stack.
  if (depth > 16) throw part.error("sequences nested too deep");
  const std::string type = part["type"].string();
  if (type == "Sequence") {
    part.allow_keys({"processors"});
    for (const auto& item : part["processors"].items()) parse_part(item, depth + 1);
    return;
  }
  if (type == "ByteLevel") {
    part.allow_keys({"add_prefix_space", "trim_offsets", "use_regex"});
    return;
  }
  if (type != "TemplateProcessing") throw part["type"].error("unknown post-processor '" + type + "'");

  part.allow_keys({"single", "pair", "special_tokens"});
  std::vector<Slot> slots;
  for (const auto& item : part["single"].items()) {
    item.allow_keys({"SpecialToken", "Sequence"});
    if (const TokenizerJson sequence = item["Sequence"]; !sequence.is_null()) {
      if (sequence["id"].string() != "A") throw sequence["id"].error("the template of a single text has another one");
      slots.push_back({true, {}});
      continue;
    }
    const std::string name = item["SpecialToken"]["id"].string();
    const TokenizerJson token = part["special_tokens"][name];
    if (token.is_null()) throw item["SpecialToken"].error("special token '" + name + "' is not listed in special_tokens");
    Slot slot = {false, {}};
    for (const auto& id : token["ids"].items()) slot.ids.push_back(id.id());
    slots.push_back(std::move(slot));
  }
  templates_.push_back(std::move(slots));
}

void TokenizerTemplate::apply(std::vector<int32_t>& ids) const {
  for (const auto& slots : templates_) {
    std::vector<int32_t> filled;
    filled.reserve(ids.size() + slots.size());
    for (const Slot& slot : slots) {
      const std::vector<int32_t>& source = slot.is_text ? ids : slot.ids;
      filled.insert(filled.end(), source.begin(), source.end());
    }
    ids = std::move(filled);
  }
}

}  // namespace ptq::checkpoint
