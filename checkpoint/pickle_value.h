#pragma once
// What a pickle says, as a tree nobody acts on: plain values, names of classes and functions, and calls written down but not made. The
// nodes lie in one arena, so that a tree of any depth (or one that contains itself) is built, held and freed without recursion.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ptq::checkpoint {

enum class PickleKind : uint8_t {
  kMissing,  ///< what was asked for is not there
  kDropped,  ///< it was there, but the reader of the pickle asked for it not to be kept
  kNone,
  kBool,
  kInt,
  kBigInt,  ///< does not fit 64 bits; data() holds its bytes as the pickle has them
  kFloat,
  kString,
  kBytes,
  kTuple,
  kList,
  kSet,
  kDict,
  kGlobal,      ///< the name of a class or function
  kCall,        ///< what calling something would have made: callable, arguments, state, entries set afterwards
  kPersistent,  ///< a reference to something outside of the pickle; item 0 is its id
};

class PickleTree;

/// A place in a tree that outlives it. Questions that do not fit its kind are answered with a missing value, so that a path through a tree
/// of unknown shape needs one check at its end.
class PickleValue {
 public:
  PickleValue() = default;

  PickleKind kind() const;
  bool is(PickleKind wanted) const { return kind() == wanted; }
  explicit operator bool() const { return !is(PickleKind::kMissing); }
  /// Which node of its tree: values with the same number are one object.
  uint32_t node() const { return node_; }

  std::optional<int64_t> integer() const;        ///< of kInt and kBool
  std::optional<double> real() const;            ///< of kFloat
  std::optional<std::string_view> text() const;  ///< of kString; any bytes, UTF-8 or not
  std::string_view data() const;                 ///< of kString, kBytes and kBigInt

  /// Items of a tuple, list or set, or persistent id; for a dict, or a call whose result had entries set, the number of its entries.
  size_t size() const;
  PickleValue operator[](size_t index) const;
  /// The entries of a dict or of an OrderedDict (those it was made from and those set afterwards), in the order of the pickle, equal keys
  /// more than once. None for other kinds.
  std::vector<std::pair<PickleValue, PickleValue>> entries() const;
  /// The last entry of that key. Looks at all entries: for dicts of many keys use entries().
  PickleValue find(std::string_view key) const;

  std::string_view module() const;  ///< of kGlobal, else ""
  std::string_view name() const;
  bool is_global(std::string_view module, std::string_view name) const;
  PickleValue callable() const;  ///< of kCall
  PickleValue args() const;
  PickleValue state() const;
  /// Whether it is a call of that name.
  bool is_call(std::string_view module, std::string_view name) const { return callable().is_global(module, name); }

 private:
  friend class PickleTree;
  PickleValue(const PickleTree* tree, uint32_t node) : tree_(tree), node_(node) {}
  PickleValue child(uint32_t index) const;

  const PickleTree* tree_ = nullptr;
  uint32_t node_ = 0;
};

class PickleTree {
 public:
  using Id = uint32_t;
  /// Nodes that every tree has, so that the commonest values cost no memory.
  static constexpr Id kMissingNode = 0, kDroppedNode = 1, kNoneNode = 2, kFalseNode = 3, kTrueNode = 4, kEmptyTupleNode = 5;

  PickleTree();
  PickleTree(PickleTree&&) = default;
  PickleTree& operator=(PickleTree&&) = default;

  PickleValue root() const { return {this, root_}; }
  /// Every reference to something outside of the pickle.
  std::vector<PickleValue> persistent() const;

  // What the pickle machine builds it with.
  PickleKind kind(Id id) const { return nodes_[id].kind; }
  size_t node_count() const { return nodes_.size(); }
  Id add_int(int64_t value);
  Id add_float(double value);
  Id add_data(PickleKind kind, std::string_view bytes);
  Id add_group(PickleKind kind, const Id* children, size_t count);
  Id add_call(Id callable, Id args);
  /// Appends to a list, set or dict (where key and value come one after the other), or to the entries of a call, which are of kind
  /// `entries`. False where that call has entries of another kind already.
  bool append(Id container, const Id* children, size_t count, PickleKind entries);
  void set_state(Id call, Id state) { children_[nodes_[call].bits + kState] = state; }
  void set_root(Id root) { root_ = root; }

 private:
  friend class PickleValue;
  /// Where the children of a call lie.
  enum : uint32_t { kCallable, kArgs, kState, kEntries, kCallChildren };

  /// `bits` is the value of a number, else where the bytes or children begin.
  struct Node {
    PickleKind kind = PickleKind::kMissing;
    uint32_t count = 0;
    uint64_t bits = 0;
  };
  Id add(const Node& node);
  bool can_grow(const Node& node, size_t count) const;

  std::vector<Node> nodes_;
  std::vector<Id> children_;
  std::string bytes_;
  std::vector<Id> persistent_;
  Id root_ = kMissingNode;
};

}  // namespace ptq::checkpoint
