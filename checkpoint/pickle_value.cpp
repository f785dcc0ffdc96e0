#include "checkpoint/pickle_value.h"

#include <bit>
#include <limits>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

PickleKind PickleValue::kind() const { return tree_ ? tree_->nodes_[node_].kind : PickleKind::kMissing; }

PickleValue PickleValue::child(uint32_t index) const { return {tree_, tree_->children_[tree_->nodes_[node_].bits + index]}; }

std::optional<int64_t> PickleValue::integer() const {
  if (!is(PickleKind::kInt) && !is(PickleKind::kBool)) return std::nullopt;
  return static_cast<int64_t>(tree_->nodes_[node_].bits);
}

std::optional<double> PickleValue::real() const {
  if (!is(PickleKind::kFloat)) return std::nullopt;
  return std::bit_cast<double>(tree_->nodes_[node_].bits);
}

std::optional<std::string_view> PickleValue::text() const {
  if (!is(PickleKind::kString)) return std::nullopt;
  return data();
}

std::string_view PickleValue::data() const {
  if (!is(PickleKind::kString) && !is(PickleKind::kBytes) && !is(PickleKind::kBigInt)) return {};
  const PickleTree::Node& node = tree_->nodes_[node_];
  return std::string_view(tree_->bytes_).substr(node.bits, node.count);
}

size_t PickleValue::size() const {
  switch (kind()) {
    case PickleKind::kTuple:
    case PickleKind::kList:
    case PickleKind::kSet:
    case PickleKind::kPersistent:
      return tree_->nodes_[node_].count;
    case PickleKind::kDict:
      return tree_->nodes_[node_].count / 2;
    case PickleKind::kCall:
      return child(PickleTree::kEntries).size();
    default:
      return 0;
  }
}

PickleValue PickleValue::operator[](size_t index) const {
  const bool has_items = is(PickleKind::kTuple) || is(PickleKind::kList) || is(PickleKind::kSet) || is(PickleKind::kPersistent);
  return has_items && index < size() ? child(static_cast<uint32_t>(index)) : PickleValue();
}

std::vector<std::pair<PickleValue, PickleValue>> PickleValue::entries() const {
  std::vector<std::pair<PickleValue, PickleValue>> found;
  const auto take = [&](const PickleValue& dict) {
    if (!dict.is(PickleKind::kDict)) return;
    for (uint32_t i = 0; i < dict.size(); ++i) found.emplace_back(dict.child(2 * i), dict.child(2 * i + 1));
  };
  if (is_call("collections", "OrderedDict")) {
    const PickleValue pairs = args()[0];
    for (size_t i = 0; i < pairs.size(); ++i)
      if (pairs[i].size() == 2) found.emplace_back(pairs[i][0], pairs[i][1]);
    take(child(PickleTree::kEntries));
  } else {
    take(*this);
  }
  return found;
}

PickleValue PickleValue::find(std::string_view key) const {
  PickleValue found;
  for (const auto& [name, value] : entries())
    if (name.text() == key) found = value;
  return found;
}

std::string_view PickleValue::module() const { return is(PickleKind::kGlobal) ? child(0).data() : std::string_view(); }
std::string_view PickleValue::name() const { return is(PickleKind::kGlobal) ? child(1).data() : std::string_view(); }

bool PickleValue::is_global(std::string_view wanted_module, std::string_view wanted_name) const {
  return is(PickleKind::kGlobal) && name() == wanted_name && module() == wanted_module;
}

PickleValue PickleValue::callable() const { return is(PickleKind::kCall) ? child(PickleTree::kCallable) : PickleValue(); }
PickleValue PickleValue::args() const { return is(PickleKind::kCall) ? child(PickleTree::kArgs) : PickleValue(); }
PickleValue PickleValue::state() const { return is(PickleKind::kCall) ? child(PickleTree::kState) : PickleValue(); }

PickleTree::PickleTree() {
  nodes_ = {{PickleKind::kMissing}, {PickleKind::kDropped},    {PickleKind::kNone},
            {PickleKind::kBool},    {PickleKind::kBool, 0, 1}, {PickleKind::kTuple}};
}

std::vector<PickleValue> PickleTree::persistent() const {
  std::vector<PickleValue> values;
  values.reserve(persistent_.size());
  for (const Id id : persistent_) values.push_back({this, id});
  return values;
}

PickleTree::Id PickleTree::add(const Node& node) {
  require(nodes_.size() < std::numeric_limits<Id>::max(), "more pickle nodes than can be numbered");
  nodes_.push_back(node);
  return static_cast<Id>(nodes_.size() - 1);
}

PickleTree::Id PickleTree::add_int(int64_t value) { return add({PickleKind::kInt, 0, static_cast<uint64_t>(value)}); }
PickleTree::Id PickleTree::add_float(double value) { return add({PickleKind::kFloat, 0, std::bit_cast<uint64_t>(value)}); }

PickleTree::Id PickleTree::add_data(PickleKind kind, std::string_view bytes) {
  const uint64_t begin = bytes_.size();
  bytes_.append(bytes);
  return add({kind, static_cast<uint32_t>(bytes.size()), begin});
}

PickleTree::Id PickleTree::add_group(PickleKind kind, const Id* children, size_t count) {
  const bool may_grow = kind == PickleKind::kList || kind == PickleKind::kSet || kind == PickleKind::kDict;
  if (may_grow) {
    const Id id = add({kind, 0, 0});
    append(id, children, count, kind);
    return id;
  }
  const uint64_t begin = children_.size();
  children_.insert(children_.end(), children, children + count);
  const Id id = add({kind, static_cast<uint32_t>(count), begin});
  if (kind == PickleKind::kPersistent) persistent_.push_back(id);
  return id;
}

PickleTree::Id PickleTree::add_call(Id callable, Id args) {
  const Id children[kCallChildren] = {callable, args, kMissingNode, kMissingNode};
  return add_group(PickleKind::kCall, children, kCallChildren);
}

/// A container that had room for 2^k children when it last moved has room up to the next power of two.
bool PickleTree::can_grow(const Node& node, size_t count) const {
  return node.count > 0 && std::bit_ceil(uint64_t{node.count}) >= node.count + count;
}

bool PickleTree::append(Id container, const Id* children, size_t count, PickleKind entries) {
  if (count == 0) return true;
  if (nodes_[container].kind == PickleKind::kCall) {
    const uint64_t place = nodes_[container].bits + kEntries;
    if (children_[place] == kMissingNode) {
      const Id made = add_group(entries, nullptr, 0);
      children_[place] = made;
    }
    container = children_[place];
    if (nodes_[container].kind != entries) return false;
  }
  Node& node = nodes_[container];
  if (!can_grow(node, count)) {  // moves to the end, with room for as much again
    const uint64_t begin = children_.size();
    children_.resize(begin + std::bit_ceil(uint64_t{node.count} + count), kMissingNode);
    for (uint64_t i = 0; i < node.count; ++i) children_[begin + i] = children_[node.bits + i];
    node.bits = begin;
  }
  for (size_t i = 0; i < count; ++i) children_[node.bits + node.count + i] = children[i];
  node.count += static_cast<uint32_t>(count);
  return true;
}

}  // namespace ptq::checkpoint
