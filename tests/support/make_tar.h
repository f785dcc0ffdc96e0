#pragma once
// Tar archives for tests, put together from their headers.

#include <cstdio>
#include <string>

namespace ptq::test {

/// Bytes filled up to whole blocks.
inline std::string tar_padded(std::string bytes) {
  bytes.resize((bytes.size() + 511) / 512 * 512, '\0');
  return bytes;
}

/// Sets the check sum of a header.
inline std::string tar_summed(std::string header) {
  header.replace(148, 8, 8, ' ');
  unsigned sum = 0;
  for (const char c : header) sum += static_cast<unsigned char>(c);
  char text[8];
  std::snprintf(text, sizeof(text), "%06o", sum);
  header.replace(148, 7, text, 7);
  return header;
}

/// A ustar header for a member of so many bytes.
inline std::string tar_header(const std::string& name, unsigned size, char type = '0', const std::string& prefix = "") {
  std::string header(512, '\0');
  header.replace(0, name.size(), name);
  char text[12];
  std::snprintf(text, sizeof(text), "%011o", size);
  header.replace(124, 11, text, 11);
  header[156] = type;
  header.replace(257, 5, "ustar");
  header.replace(263, 2, "00");
  header.replace(345, prefix.size(), prefix);
  return tar_summed(std::move(header));
}

/// The same with its size as a base-256 number.
inline std::string tar_header_base256(const std::string& name, unsigned char size) {
  std::string header = tar_header(name, 0);
  header.replace(124, 12, std::string("\x80\0\0\0\0\0\0\0\0\0\0\0", 12));
  header[135] = static_cast<char>(size);
  return tar_summed(std::move(header));
}

inline std::string tar_member(const std::string& name, const std::string& bytes, char type = '0') {
  return tar_header(name, static_cast<unsigned>(bytes.size()), type) + tar_padded(bytes);
}

inline std::string tar_end() { return std::string(1024, '\0'); }

}  // namespace ptq::test
