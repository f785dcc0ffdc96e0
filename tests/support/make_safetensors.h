#pragma once
// Safetensors files for tests, put together from their parts so that every part can be wrong.

#include <cstdint>
#include <string>
#include <vector>

namespace ptq::test {

/// A file of a header that claims `length` bytes, the header's text and the data.
inline std::string safetensors_bytes(uint64_t length, const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(length >> (8 * i));
  return bytes + header + data;
}

/// The same with the length that is right. Not padded.
inline std::string safetensors_bytes(const std::string& header, const std::string& data) {
  return safetensors_bytes(header.size(), header, data);
}

/// A header entry: "name":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}. `shape` is JSON text.
inline std::string entry(const std::string& name, const std::string& dtype, const std::string& shape, uint64_t begin, uint64_t end) {
  std::string text;
  text.append("\"").append(name).append("\":{\"dtype\":\"").append(dtype).append("\",\"shape\":").append(shape);
  text.append(",\"data_offsets\":[").append(std::to_string(begin)).append(",").append(std::to_string(end)).append("]}");
  return text;
}

/// "{a,b,...}"
inline std::string object(const std::vector<std::string>& parts) {
  std::string text = "{";
  for (size_t i = 0; i < parts.size(); ++i) text.append(i ? "," : "").append(parts[i]);
  return text + "}";
}

/// A sound file with one-byte tensors [bytes] of these names, in this order; the bytes of the i-th are all 'a' + i.
inline std::string byte_tensors(const std::vector<std::string>& names, uint64_t bytes) {
  std::vector<std::string> entries;
  std::string data;
  for (size_t i = 0; i < names.size(); ++i) {
    entries.push_back(entry(names[i], "U8", std::string("[").append(std::to_string(bytes)).append("]"), i * bytes, (i + 1) * bytes));
    data.append(bytes, static_cast<char>('a' + i));
  }
  return safetensors_bytes(object(entries), data);
}

}  // namespace ptq::test
