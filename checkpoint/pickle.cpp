#include "checkpoint/pickle.h"

#include <bit>
#include <charconv>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "checkpoint/pickle_opcodes.h"
#include "checkpoint/pickle_operands.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

using Id = PickleTree::Id;
using enum PickleOpcode;

class PickleMachine {
 public:
  PickleMachine(std::string_view text, const std::string& where, const PickleOptions& options)
      : read_(text), where_(where), options_(options) {}

  /// Runs up to and with STOP.
  ParsedPickle run() {
    for (;;) {
      begun_ = read_.position();
      const auto opcode = static_cast<PickleOpcode>(read_.number(1));
      if (opcode == kStop) break;
      if (!scalar(opcode) && !group(opcode) && !object(opcode) && !memo(opcode)) refuse(opcode);
      if (tree_.node_count() > options_.max_nodes) fail("it has more nodes than any checkpoint's");
    }
    tree_.set_root(pop());
    return {std::move(tree_), read_.position()};
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw data_error("the pickle cannot be read: at its byte " + std::to_string(begun_) + ", " + what, where_,
                     "the file is damaged or no checkpoint: download it again");
  }
  [[noreturn]] void refuse(PickleOpcode opcode) const {
    fail("opcode " + std::to_string(static_cast<int>(opcode)) + " is unknown or not allowed in a checkpoint");
  }

  // ---- the stack ----

  void push(Id id) { stack_.push_back(id); }
  /// Stack entries above the last mark: what an opcode may take.
  size_t available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  Id pop() {
    if (available() == 0) fail("a value is missing on the stack");
    const Id id = stack_.back();
    stack_.pop_back();
    return id;
  }
  Id top() const {
    if (available() == 0) fail("a value is missing on the stack");
    return stack_.back();
  }
  /// Takes what lies above the last mark, and the mark.
  std::vector<Id> pop_to_mark() {
    if (marks_.empty()) fail("a mark is missing on the stack");
    std::vector<Id> taken(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    if (marks_.size() < kStateMarks) dropping_ = false;
    return taken;
  }

  // ---- new nodes ----

  void push_data(PickleKind kind, uint64_t bytes) { push_data(kind, read_.take(bytes)); }
  void push_data(PickleKind kind, std::string_view data) {
    if (dropping_) return push(PickleTree::kDroppedNode);
    push(tree_.add_data(kind, data));
    if (kind == PickleKind::kString && marks_.size() == kStateMarks && !options_.drop_from_key.empty() && data == options_.drop_from_key)
      dropping_ = true;
  }
  void push_int(int64_t value) { push(dropping_ ? PickleTree::kDroppedNode : tree_.add_int(value)); }
  void push_float(double value) { push(dropping_ ? PickleTree::kDroppedNode : tree_.add_float(value)); }
  void push_group(PickleKind kind, const std::vector<Id>& children) {
    push(dropping_ ? PickleTree::kDroppedNode : tree_.add_group(kind, children.data(), children.size()));
  }
  /// A little-endian two's complement integer of any length.
  void push_long(uint64_t bytes) {
    const std::string_view data = read_.take(bytes);
    if (dropping_) return push(PickleTree::kDroppedNode);
    if (bytes > 8) return push_data(PickleKind::kBigInt, data);
    uint64_t value = bytes > 0 && (static_cast<unsigned char>(data.back()) & 0x80) != 0 ? ~uint64_t{0} : 0;
    std::memcpy(&value, data.data(), bytes);
    push_int(static_cast<int64_t>(value));
  }
  /// A line of text that is a number.
  template <class Number>
  Number parsed(std::string_view line) const {
    Number value{};
    const auto result = std::from_chars(line.data(), line.data() + line.size(), value);
    if (result.ec != std::errc() || result.ptr != line.data() + line.size()) fail("a number is not one, or does not fit 64 bits");
    return value;
  }

  // ---- opcodes, by what they make; each returns whether the opcode is one of its own ----

  bool scalar(PickleOpcode opcode) {
    switch (opcode) {
      case kNone:
        push(PickleTree::kNoneNode);
        return true;
      case kNewTrue:
        push(PickleTree::kTrueNode);
        return true;
      case kNewFalse:
        push(PickleTree::kFalseNode);
        return true;
      case kBinInt:
        push_int(static_cast<int32_t>(read_.number(4)));
        return true;
      case kBinInt1:
        push_int(static_cast<int64_t>(read_.number(1)));
        return true;
      case kBinInt2:
        push_int(static_cast<int64_t>(read_.number(2)));
        return true;
      case kLong1:
        push_long(read_.number(1));
        return true;
      case kLong4:
        push_long(read_.number(4));
        return true;
      case kInt: {
        const std::string_view line = read_.line();
        if (line == "00" || line == "01")  // how protocol 0 writes False and True
          push(line == "01" ? PickleTree::kTrueNode : PickleTree::kFalseNode);
        else
          push_int(parsed<int64_t>(line));
        return true;
      }
      case kLong: {
        std::string_view line = read_.line();
        if (line.ends_with('L')) line.remove_suffix(1);
        if (line.size() > kDecimalDigits && line.find_first_not_of("0123456789", line.starts_with('-')) == std::string_view::npos)
          push_data(PickleKind::kBigInt, line);
        else
          push_int(parsed<int64_t>(line));
        return true;
      }
      case kFloat:
        push_float(parsed<double>(read_.line()));
        return true;
      case kBinFloat:
        push_float(std::bit_cast<double>(__builtin_bswap64(read_.number(8))));
        return true;
      case kBinString:
      case kBinUnicode:
        push_data(PickleKind::kString, read_.number(4));
        return true;
      case kShortBinString:
      case kShortBinUnicode:
        push_data(PickleKind::kString, read_.number(1));
        return true;
      case kBinUnicode8:
        push_data(PickleKind::kString, read_.number(8));
        return true;
      case kShortBinBytes:
        push_data(PickleKind::kBytes, read_.number(1));
        return true;
      case kBinBytes:
        push_data(PickleKind::kBytes, read_.number(4));
        return true;
      case kBinBytes8:
      case kByteArray8:
        push_data(PickleKind::kBytes, read_.number(8));
        return true;
      default:
        return false;
    }
  }

  bool group(PickleOpcode opcode) {
    switch (opcode) {
      case kMark:
        marks_.push_back(stack_.size());
        return true;
      case kEmptyTuple:
        push(PickleTree::kEmptyTupleNode);
        return true;
      case kEmptyList:
        push_group(PickleKind::kList, {});
        return true;
      case kEmptyDict:
        push_group(PickleKind::kDict, {});
        return true;
      case kEmptySet:
        push_group(PickleKind::kSet, {});
        return true;
      case kTuple:
        push_group(PickleKind::kTuple, pop_to_mark());
        return true;
      case kTuple1:
      case kTuple2:
      case kTuple3: {
        std::vector<Id> items(static_cast<size_t>(opcode) - static_cast<size_t>(kTuple1) + 1);
        for (size_t i = items.size(); i-- > 0;) items[i] = pop();
        push_group(PickleKind::kTuple, items);
        return true;
      }
      case kList:
        push_group(PickleKind::kList, pop_to_mark());
        return true;
      case kFrozenSet:
        push_group(PickleKind::kSet, pop_to_mark());
        return true;
      case kDict: {
        const std::vector<Id> entries = pop_to_mark();
        if (entries.size() % 2 != 0) fail("a dict has a key without a value");
        push_group(PickleKind::kDict, entries);
        return true;
      }
      case kAppend:
        append({pop()}, PickleKind::kList);
        return true;
      case kAppends:
        append(pop_to_mark(), PickleKind::kList);
        return true;
      case kAddItems:
        append(pop_to_mark(), PickleKind::kSet);
        return true;
      case kSetItem: {
        const Id value = pop(), key = pop();
        append({key, value}, PickleKind::kDict);
        return true;
      }
      case kSetItems:
        append(pop_to_mark(), PickleKind::kDict);
        return true;
      default:
        return false;
    }
  }

  /// Appends to the container on top of the stack: one of `kind`, or a call, whose result is some class derived from it.
  void append(const std::vector<Id>& children, PickleKind kind) {
    const Id container = top();
    const PickleKind found = tree_.kind(container);
    if (found == PickleKind::kDropped) return;
    if (found != kind && found != PickleKind::kCall) fail("items are put into something that is no container");
    if (kind == PickleKind::kDict && children.size() % 2 != 0) fail("a dict has a key without a value");
    if (!tree_.append(container, children.data(), children.size(), kind)) fail("an object is used as two kinds of container");
  }

  bool object(PickleOpcode opcode) {
    switch (opcode) {
      case kGlobal: {
        const std::string_view module = read_.line(), name = read_.line();
        if (dropping_)
          push(PickleTree::kDroppedNode);
        else
          push_group(PickleKind::kGlobal, {tree_.add_data(PickleKind::kString, module), tree_.add_data(PickleKind::kString, name)});
        return true;
      }
      case kStackGlobal: {
        const Id name = pop(), module = pop();
        const auto is_text = [&](Id id) { return tree_.kind(id) == PickleKind::kString || tree_.kind(id) == PickleKind::kDropped; };
        if (!is_text(name) || !is_text(module)) fail("the name of a class is not text");
        push_group(PickleKind::kGlobal, {module, name});
        return true;
      }
      case kReduce:
      case kNewObj: {
        const Id args = pop(), callable = pop();
        push_call(callable, args);
        return true;
      }
      case kNewObjEx: {  // no class that is understood takes keyword arguments: they are left out
        pop();
        const Id args = pop(), callable = pop();
        push_call(callable, args);
        return true;
      }
      case kBuild: {
        const Id state = pop(), built = top();
        if (tree_.kind(built) == PickleKind::kDropped) return true;
        if (tree_.kind(built) != PickleKind::kCall) fail("a plain value is given a state");
        tree_.set_state(built, state);
        return true;
      }
      case kBinPersId:
        push_group(PickleKind::kPersistent, {pop()});
        return true;
      default:
        return false;
    }
  }

  void push_call(Id callable, Id args) { push(dropping_ ? PickleTree::kDroppedNode : tree_.add_call(callable, args)); }

  bool memo(PickleOpcode opcode) {
    switch (opcode) {
      case kProto:
        if (read_.number(1) > 5) fail("its protocol is newer than 5");
        return true;
      case kFrame:
        read_.number(8);  // frames only help readers of streams
        return true;
      case kPop:
        if (available() == 0 && !marks_.empty())
          marks_.pop_back();
        else
          pop();
        return true;
      case kPopMark:
        pop_to_mark();
        return true;
      case kDup:
        push(top());
        return true;
      case kPut:
        remember(parsed<uint64_t>(read_.line()));
        return true;
      case kBinPut:
        remember(read_.number(1));
        return true;
      case kLongBinPut:
        remember(read_.number(4));
        return true;
      case kMemoize:
        remember(memo_entries_);
        return true;
      case kGet:
        recall(parsed<uint64_t>(read_.line()));
        return true;
      case kBinGet:
        recall(read_.number(1));
        return true;
      case kLongBinGet:
        recall(read_.number(4));
        return true;
      default:
        return false;
    }
  }

  void remember(uint64_t index) {
    // Each entry took at least one byte to write: a larger index is no pickler's.
    if (index >= read_.position()) fail("a memo index is larger than the pickle");
    if (index >= memo_.size()) memo_.resize(index + 1, PickleTree::kMissingNode);
    memo_entries_ += memo_[index] == PickleTree::kMissingNode;
    memo_[index] = top();
  }
  void recall(uint64_t index) {
    if (index >= memo_.size() || memo_[index] == PickleTree::kMissingNode) fail("a memo entry is used that was not set");
    push(memo_[index]);
  }

  /// Decimal numbers of so many digits fit 64 bits.
  static constexpr size_t kDecimalDigits = 18;
  /// Marks open while the entries of the object's own state are written.
  static constexpr size_t kStateMarks = 1;

  PickleOperands read_;
  const std::string& where_;
  const PickleOptions& options_;
  size_t begun_ = 0;  ///< where the current opcode lies
  PickleTree tree_;
  std::vector<Id> stack_, memo_;
  std::vector<size_t> marks_;
  uint64_t memo_entries_ = 0;
  bool dropping_ = false;
};

}  // namespace

std::optional<ParsedPickle> parse_pickle_prefix(std::string_view text, const std::string& where, const PickleOptions& options) {
  if (text.size() > options.max_bytes)
    throw data_error("the pickle has " + std::to_string(text.size()) + " bytes, more than any checkpoint's", where);
  try {
    return PickleMachine(text, where, options).run();
  } catch (const PickleOperands::EndOfText&) {
    return std::nullopt;
  }
}

PickleTree parse_pickle(std::string_view text, const std::string& where, const PickleOptions& options) {
  std::optional<ParsedPickle> parsed = parse_pickle_prefix(text, where, options);
  if (!parsed)
    throw data_error("the pickle is truncated: it has " + std::to_string(text.size()) + " bytes and no end", where, "download it again");
  return std::move(parsed->tree);
}

}  // namespace ptq::checkpoint
