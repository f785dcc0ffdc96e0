#pragma once
// Pickles for tests, put together opcode by opcode so that every part can be wrong.

#include <cstdint>
#include <string>
#include <vector>

namespace ptq::test {

/// `value` as `count` little-endian bytes.
inline std::string little_endian(uint64_t value, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += static_cast<char>(i < 8 ? value >> (8 * i) : 0);
  return bytes;
}

/// Opcodes that leave one value on the stack.
inline std::string pickled(const std::string& text) { return "X" + little_endian(text.size(), 4) + text; }
inline std::string pickled(int64_t value) { return "\x8a\x08" + little_endian(static_cast<uint64_t>(value), 8); }
inline std::string pickled_tuple(const std::vector<std::string>& items) {
  std::string bytes = "(";
  for (const std::string& item : items) bytes += item;
  return bytes + "t";
}
inline std::string pickled_ints(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values) items.push_back(pickled(value));
  return pickled_tuple(items);
}
inline std::string pickled_list(const std::vector<std::string>& items) {
  std::string bytes = "](";
  for (const std::string& item : items) bytes += item;
  return bytes + "e";
}
/// `entries`: key, value, key, value, ...
inline std::string pickled_dict(const std::vector<std::string>& entries) {
  std::string bytes = "}(";
  for (const std::string& entry : entries) bytes += entry;
  return bytes + "u";
}
/// "module name"
inline std::string pickled_global(std::string name) {
  name[name.find(' ')] = '\n';
  return "c" + name + "\n";
}
inline std::string pickled_call(const std::string& name, const std::vector<std::string>& args) {
  return pickled_global(name) + pickled_tuple(args) + "R";
}
/// An object of a class without constructor arguments, of that state.
inline std::string pickled_object(const std::string& name, const std::string& state) {
  return pickled_global(name) + ")\x81" + state + "b";
}
/// A whole pickle of protocol 2 around one value.
inline std::string whole_pickle(const std::string& value) { return "\x80\x02" + value + "."; }

}  // namespace ptq::test
