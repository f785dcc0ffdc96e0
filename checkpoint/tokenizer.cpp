#include "checkpoint/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/files.h"
#include "checkpoint/tokenizer_added.h"
#include "checkpoint/tokenizer_bpe.h"
#include "checkpoint/tokenizer_json.h"
#include "checkpoint/tokenizer_normalizer.h"
#include "checkpoint/tokenizer_pretokenizer.h"
#include "checkpoint/tokenizer_template.h"
#include "checkpoint/tokenizer_unicode.h"

namespace ptq::checkpoint {

// The order of work: added tokens in the raw text; normalizer on what lies between them; added tokens in the normalized text;
// pre-tokenizer; BPE in each piece; template.
struct Tokenizer::Impl {
  AddedTokenFinder raw_tokens, normalized_tokens;
  TokenizerNormalizer normalizer;
  PreTokenizer pre_tokenizer;
  TokenizerBpe model;
  TokenizerTemplate post_processor;
  int32_t highest_id = -1;

  void parse(const TokenizerJson& root);
  void add_tokens(const TokenizerJson& part);
  void encode_between(std::string_view text, bool is_text_start, std::vector<int32_t>& ids) const;
};

void Tokenizer::Impl::parse(const TokenizerJson& root) {
  // Truncation and padding are what a file happened to be saved with: transformers resets both on every call, and so they are not read.
  root.allow_keys(
      {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"});
  normalizer = TokenizerNormalizer::parse(root["normalizer"]);
  pre_tokenizer = PreTokenizer::parse(root["pre_tokenizer"]);
  post_processor = TokenizerTemplate::parse(root["post_processor"]);
  model = TokenizerBpe::parse(root["model"]);
  highest_id = model.highest_id();
  add_tokens(root["added_tokens"]);
}

void Tokenizer::Impl::add_tokens(const TokenizerJson& part) {
  for (AddedToken& token : parse_added_tokens(part)) {
    const auto known = model.find(token.content);
    if (known && *known != token.id) {
      throw part.error("'" + token.content + "' is token " + std::to_string(token.id) + " here and " + std::to_string(*known) +
                       " in model.vocab");
    }
    highest_id = std::max(highest_id, token.id);
    const std::string name = "'" + token.content + "'";
    if (token.is_normalized) {
      NormalizedText content = {token.content, false};
      normalizer.apply(content);
      token.content = std::move(content.text);
    }
    // Then the library's choice depends on the order of its tables.
    if (token.content.empty()) throw part.error("the normalizer leaves nothing of " + name);
    if (!(token.is_normalized ? normalized_tokens : raw_tokens).add(token))
      throw part.error("another token has the same text as " + name + (token.is_normalized ? " once normalized" : ""));
  }
}

void Tokenizer::Impl::encode_between(std::string_view text, bool is_text_start, std::vector<int32_t>& ids) const {
  NormalizedText normalized = {std::string(text), is_text_start};
  normalizer.apply(normalized);
  for (const auto& part : normalized_tokens.cut(normalized.text)) {
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    TextPieces pieces = {normalized.text.substr(part.begin, part.end - part.begin), {}};
    pieces.pieces.push_back({0, pieces.text.size(), normalized.is_text_start && part.begin == 0});
    pre_tokenizer.apply(pieces);
    for (const auto& piece : pieces.pieces) model.encode(pieces.view(piece), ids);
  }
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::open(const std::string& folder) {
  const std::string path = (std::filesystem::path(folder) / "tokenizer.json").string();
  if (!std::filesystem::exists(path)) {
    throw user_error("there is no tokenizer.json", path,
                     "give pre-tokenized data: .jsonl lines with \"input_ids\", or .safetensors with a tensor input_ids");
  }
  // Not the insertion-ordered JSON of files.h: looking a token up in its vocabulary would walk the whole vocabulary.
  nlohmann::json root;
  try {
    root = nlohmann::json::parse(read_text(path));
  } catch (const nlohmann::json::exception& failure) {
    throw data_error(std::string("not JSON: ") + failure.what(), path);
  }
  auto impl = std::make_unique<Impl>();
  impl->parse(TokenizerJson(root, path, ""));
  return Tokenizer(std::move(impl));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  if (const size_t at = find_invalid_utf8(text); at != std::string_view::npos)
    throw data_error("text to tokenize is not UTF-8 from byte " + std::to_string(at) + " on");
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  for (const auto& part : impl_->raw_tokens.cut(text)) {
    if (part.id >= 0)
      ids.push_back(part.id);
    else
      impl_->encode_between(text.substr(part.begin, part.end - part.begin), part.begin == 0, ids);
  }
  if (add_special_tokens) impl_->post_processor.apply(ids);
  return ids;
}

int64_t Tokenizer::vocab_size() const { return int64_t{impl_->highest_id} + 1; }

}  // namespace ptq::checkpoint
