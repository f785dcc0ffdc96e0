#pragma once
// Pickles of protocols 0 to 5 read as data: a symbolic machine that builds a tree of values (pickle_value.h) and never imports, calls or
// makes anything. Whatever a pickle wants done stays a node that says so.

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/pickle_value.h"

namespace ptq::checkpoint {

struct PickleOptions {
  /// No pickle of more bytes is read: several times what the largest training runs write.
  size_t max_bytes = size_t{2} << 30;
  /// Nor one of more nodes (16 bytes each).
  size_t max_nodes = size_t{1} << 27;
  /// A key of the object's own state: what is pickled from this key on to the end of that state is not kept, only kDropped. For parts that
  /// dwarf the rest and come last.
  std::string drop_from_key;
};

struct ParsedPickle {
  PickleTree tree;
  size_t bytes = 0;  ///< of the text, up to and with its STOP
};

/// The pickle at the start of `text`; nothing where the text ends before the pickle does. Memory is at most in proportion to the text.
/// `where` is for messages: the file, or file and entry. Throws a data Error for: opcodes of extension registries, out-of-band buffers, old
/// style instances and text ids, and any that is unknown; operands that are not there or of the wrong kind; memo entries that were not set;
/// protocols above 5; a text or tree above the limits.
std::optional<ParsedPickle> parse_pickle_prefix(std::string_view text, const std::string& where, const PickleOptions& options = {});
/// The same, where a pickle that does not end is a data Error. Bytes behind the pickle are not looked at.
PickleTree parse_pickle(std::string_view text, const std::string& where, const PickleOptions& options = {});

}  // namespace ptq::checkpoint
