#include "checkpoint/tokenizer_added.h"

#include <algorithm>

#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

namespace {

bool ends_with_word(std::string_view text) {
  size_t at = text.size();
  return !text.empty() && is_word(previous_character(text, at));
}

bool starts_with_word(std::string_view text) {
  size_t at = 0;
  return !text.empty() && is_word(next_character(text, at));
}

/// Start of the white space that ends at text[end].
size_t skip_space_left(std::string_view text, size_t end) {
  while (end > 0) {
    size_t previous = end;
    if (!is_white_space(previous_character(text, previous))) break;
    end = previous;
  }
  return end;
}

size_t skip_space_right(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    size_t next = begin;
    if (!is_white_space(next_character(text, next))) break;
    begin = next;
  }
  return begin;
}

uint64_t edge(int node, char byte) { return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte); }

}  // namespace

std::vector<AddedToken> parse_added_tokens(const TokenizerJson& part) {
  std::vector<AddedToken> tokens;
  if (part.is_null()) return tokens;
  for (const auto& item : part.items()) {
    item.allow_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.id = item["id"].id();
    token.content = item["content"].string();
    token.is_single_word = item["single_word"].boolean_or(false);
    token.strips_left = item["lstrip"].boolean_or(false);
    token.strips_right = item["rstrip"].boolean_or(false);
    token.is_normalized = item["normalized"].boolean_or(!item["special"].boolean_or(false));
    if (!token.content.empty()) tokens.push_back(std::move(token));
  }
  return tokens;
}

bool AddedTokenFinder::add(const AddedToken& token) {
  if (token_of_node_.empty()) token_of_node_.push_back(-1);
  int node = 0;
  for (const char byte : token.content) {
    int& child = node == 0 ? first_[static_cast<uint8_t>(byte)] : child_[edge(node, byte)];
    if (child == 0) {
      child = static_cast<int>(token_of_node_.size());
      token_of_node_.push_back(-1);
    }
    node = child;
  }
  int& owner = token_of_node_[static_cast<size_t>(node)];
  if (owner >= 0) return tokens_[static_cast<size_t>(owner)].id == token.id;
  owner = static_cast<int>(tokens_.size());
  tokens_.push_back(token);
  return true;
}

int AddedTokenFinder::longest_at(std::string_view text, size_t at, size_t& end) const {
  int found = -1;
  for (int node = first_[static_cast<uint8_t>(text[at++])]; node != 0;) {
    if (const int token = token_of_node_[static_cast<size_t>(node)]; token >= 0) {
      found = token;
      end = at;
    }
    if (at == text.size()) break;
    const auto child = child_.find(edge(node, text[at++]));
    if (child == child_.end()) break;
    node = child->second;
  }
  return found;
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::cut(std::string_view text) const {
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t at = 0; at < text.size() && !tokens_.empty();) {
    size_t end = at;
    const int index = longest_at(text, at, end);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at;
    at = end;  // the search goes on here whatever the flags say: a refused match is used up
    if (token.is_single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) continue;
    // A token of white space may start inside the space that the one before it took along. It is a second token all the same, unless it
    // takes space on its left too: what is taken is not taken twice, and then nothing of it may be left.
    if (token.strips_left) begin = std::max(skip_space_left(text, begin), done);
    if (token.strips_right) end = skip_space_right(text, end);
    if (begin >= end) continue;
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token.id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

}  // namespace ptq::checkpoint
