#include "checkpoint/tokenizer_bpe.h"

#include <fmt/format.h>

#include <algorithm>

#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

namespace {

/// A rule is ["a", "b"], or "a b" in older files.
std::pair<std::string, std::string> parse_pair(const nlohmann::json& rule, const TokenizerJson& part, size_t index) {
  const auto malformed = [&] { return part.error(fmt::format("merge {} is not a pair of tokens", index)); };
  if (rule.is_array()) {
    if (rule.size() != 2 || !rule[0].is_string() || !rule[1].is_string()) throw malformed();
    return {rule[0].get<std::string>(), rule[1].get<std::string>()};
  }
  if (!rule.is_string()) throw malformed();
  const auto& text = rule.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) throw malformed();
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

TokenizerBpe TokenizerBpe::parse(const TokenizerJson& part) {
  // The first files had no type; then the merges tell.
  const TokenizerJson type = part["type"];
  const bool is_bpe = type.is_null() ? !part["merges"].is_null() : type.string() == "BPE";
  if (!is_bpe) throw type.error("unknown model" + (type.is_null() ? "" : " '" + type.string() + "'") + ": only BPE is supported");
  part.allow_keys({"vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                   "byte_fallback", "ignore_merges"});
  if (!part["dropout"].is_null()) throw part["dropout"].error("dropout makes ids random");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!part[key].is_null() && !part[key].string().empty()) throw part[key].error("subword prefixes and suffixes are not supported");

  TokenizerBpe model;
  model.parse_vocabulary(part["vocab"]);
  model.parse_merges(part["merges"]);
  if (const TokenizerJson unknown = part["unk_token"]; !unknown.is_null()) {
    model.unknown_token_ = unknown.string();
    model.unknown_id_ = model.find(*model.unknown_token_).value_or(-1);
  }
  model.has_byte_fallback_ = part["byte_fallback"].boolean_or(false);
  model.fuses_unknown_ = part["fuse_unk"].boolean_or(false);
  model.ignores_merges_ = part["ignore_merges"].boolean_or(false);
  return model;
}

void TokenizerBpe::parse_vocabulary(const TokenizerJson& part) {
  if (!part.value().is_object()) throw part.error("expected an object of tokens and ids");
  vocabulary_.reserve(part.value().size());
  basic_plane_.assign(0x10000, -1);
  for (const auto& [token, value] : part.value().items()) {
    const int32_t id = part.member(token, value).id();
    vocabulary_.emplace(token, id);
    highest_id_ = std::max(highest_id_, id);
    size_t end = 0;
    const uint32_t character = token.empty() ? 0x10000 : next_character(token, end);
    if (end == token.size() && character < basic_plane_.size()) basic_plane_[character] = id;
  }
  for (size_t byte = 0; byte < byte_ids_.size(); ++byte) byte_ids_[byte] = find(fmt::format("<0x{:02X}>", byte)).value_or(-1);
}

void TokenizerBpe::parse_merges(const TokenizerJson& part) {
  if (!part.value().is_array()) throw part.error("expected a list of pairs");
  merges_ = TokenizerMerges(part.value().size());
  uint32_t rank = 0;
  for (size_t i = 0; i < part.value().size(); ++i) {
    const nlohmann::json& rule = part.value()[i];
    // Some files carry the first line of merges.txt along.
    if (rule.is_string() && rule.get_ref<const std::string&>().starts_with("#version")) continue;
    const auto [left, right] = parse_pair(rule, part, i);
    const auto left_id = find(left), right_id = find(right), merged_id = find(left + right);
    if (!left_id || !right_id || !merged_id) throw part.error(fmt::format("merge {} has a token that is not in the vocabulary", i));
    merges_.set(*left_id, *right_id, {rank++, *merged_id});
  }
}

std::optional<int32_t> TokenizerBpe::find(std::string_view token) const {
  const auto found = vocabulary_.find(token);
  if (found == vocabulary_.end()) return std::nullopt;
  return found->second;
}

int32_t TokenizerBpe::id_of_character(uint32_t character, std::string_view text) const {
  return character < basic_plane_.size() ? basic_plane_[character] : find(text).value_or(-1);
}

void TokenizerBpe::encode(std::string_view piece, std::vector<int32_t>& ids) const {
  if (ignores_merges_) {
    if (const auto whole = find(piece)) {
      ids.push_back(*whole);
      return;
    }
  }
  static thread_local std::vector<int32_t> symbols;
  symbols.clear();
  append_characters(piece, symbols);
  merges_.apply(symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

/// All bytes of a character as <0xXX> tokens, or nothing and false.
bool TokenizerBpe::append_bytes(std::string_view character, std::vector<int32_t>& symbols) const {
  const auto id_of = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
  if (!std::all_of(character.begin(), character.end(), [&](char byte) { return id_of(byte) >= 0; })) return false;
  for (const char byte : character) symbols.push_back(id_of(byte));
  return true;
}

void TokenizerBpe::append_characters(std::string_view piece, std::vector<int32_t>& symbols) const {
  // An unknown token waits for the next known character, to be fused with further ones. Bytes do not end the wait, so it then comes
  // behind them: odd, but so do the ids of Hugging Face's library.
  bool is_unknown_waiting = false;
  for (size_t at = 0; at < piece.size();) {
    const size_t begin = at;
    const uint32_t character = next_character(piece, at);
    const std::string_view text = piece.substr(begin, at - begin);
    if (const int32_t id = id_of_character(character, text); id >= 0) {
      if (is_unknown_waiting) symbols.push_back(unknown_id_);
      is_unknown_waiting = false;
      symbols.push_back(id);
      continue;
    }
    if (has_byte_fallback_ && append_bytes(text, symbols)) continue;
    if (!unknown_token_) continue;  // without an unk_token such a character leaves no trace
    if (unknown_id_ < 0) throw data_error("the tokenizer's unk_token '" + *unknown_token_ + "' is not in its vocabulary");
    if (is_unknown_waiting && !fuses_unknown_) symbols.push_back(unknown_id_);
    is_unknown_waiting = true;
  }
  if (is_unknown_waiting) symbols.push_back(unknown_id_);
}

}  // namespace ptq::checkpoint
