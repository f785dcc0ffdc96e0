#include "checkpoint/tar_index.h"

#include <fcntl.h>

#include <array>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {

constexpr int64_t kBlock = 512;
constexpr int64_t kMostExtra = int64_t{1} << 20;  ///< bytes of a long name or of a pax header
constexpr size_t kMostName = 4096;
constexpr const char* kCopyAgain = "copy the archive again, completely";

using Block = std::array<char, kBlock>;

/// A field of a header up to its first NUL.
std::string_view text_field(const Block& block, size_t offset, size_t width) {
  const std::string_view field(block.data() + offset, width);
  return field.substr(0, field.find('\0'));
}

/// An octal field, or a base-256 one (its first bit is set). Nothing for any other or a number that does not fit.
std::optional<int64_t> number_field(const Block& block, size_t offset, size_t width) {
  const std::string_view field(block.data() + offset, width);
  int64_t value = 0;
  if ((static_cast<unsigned char>(field[0]) & 0x80u) != 0) {
    if (static_cast<unsigned char>(field[0]) != 0x80u) return std::nullopt;
    for (const char c : field.substr(1)) {
      if (value >> 54 != 0) return std::nullopt;
      value = value * 256 + static_cast<unsigned char>(c);
    }
    return value;
  }
  size_t i = 0;
  while (i < width && field[i] == ' ') ++i;
  for (; i < width && field[i] >= '0' && field[i] <= '7'; ++i) value = value * 8 + (field[i] - '0');
  return i < width && field[i] != ' ' && field[i] != '\0' ? std::nullopt : std::optional(value);
}

/// The sum of all bytes with the field of the sum itself as blanks.
bool has_right_sum(const Block& block) {
  constexpr size_t kSum = 148, kSumWidth = 8;
  int64_t sum = 0;
  for (size_t i = 0; i < block.size(); ++i) sum += i >= kSum && i < kSum + kSumWidth ? ' ' : static_cast<unsigned char>(block[i]);
  return number_field(block, kSum, kSumWidth) == sum;
}

/// What headers before a member's own say of it.
struct Extra {
  std::optional<std::string> name;
  std::optional<int64_t> size;
};

class TarWalk {
 public:
  explicit TarWalk(const std::string& path) : path_(path), fd_(open_file(path, O_RDONLY)), bytes_(regular_file_bytes(fd_.get(), path)) {}

  FileSet walk() {
    FileSet members;
    Extra extra;
    for (Block block; read_header(block);) {
      const int64_t header = at_ - kBlock;
      const char type = block[156];
      const std::optional<int64_t> stored = number_field(block, 124, 12);
      if (!stored) throw damaged("the size of the member at byte " + std::to_string(header) + " is not a number");
      if (type == 'L' || type == 'K' || type == 'x' || type == 'g') {
        read_extra(type, *stored, extra);
        continue;
      }
      const std::string name = clean(extra.name ? *extra.name : name_of(block));
      const int64_t size = extra.size.value_or(*stored);
      extra = {};
      if (type == '5') continue;
      if (type != '0' && type != '\0' && type != '7')
        throw data_error("member " + quoted_name(name) + " is " + what(type), path_,
                         "do not use this archive, or pack it again from regular files alone");
      if (size > bytes_ - at_) throw data_error("the archive ends inside its member " + quoted_name(name), path_, kCopyAgain);
      if (name.empty()) throw damaged("a member has no name");
      if (!members.emplace(name, FileSlice{path_, at_, size}).second)
        throw data_error("two members of the archive are called " + quoted_name(name), path_, "pack the archive again");
      skip(size);
    }
    return members;
  }

 private:
  Error damaged(const std::string& what) const { return data_error("the tar archive is damaged: " + what, path_, kCopyAgain); }

  static std::string what(char type) {
    switch (type) {
      case '1':
      case '2':
        return "a link";
      case '3':
      case '4':
      case '6':
        return "a device or a pipe";
      case 'S':
        return "a sparse file";
      default:
        return std::string("of type '") + (type >= ' ' && type <= '~' ? type : '?') + "'";
    }
  }

  /// False at the zeros that end an archive.
  bool read_header(Block& block) {
    if (read_at(fd_.get(), path_, at_, block.data(), kBlock) != kBlock)
      throw data_error("the archive is truncated: it has no end mark", path_, kCopyAgain);
    at_ += kBlock;
    if (block == Block{}) return false;
    if (!has_right_sum(block)) throw damaged("the header at byte " + std::to_string(at_ - kBlock) + " has a wrong check sum");
    return true;
  }

  /// Past the data of a member, which fills whole blocks.
  void skip(int64_t size) { at_ += (size + kBlock - 1) / kBlock * kBlock; }

  static std::string name_of(const Block& block) {
    const std::string name(text_field(block, 0, 100));
    const std::string_view magic(block.data() + 257, 6);
    const std::string_view prefix = magic == std::string_view("ustar\0", 6) ? text_field(block, 345, 155) : "";
    return prefix.empty() ? name : std::string(prefix) + "/" + name;
  }

  void read_extra(char type, int64_t size, Extra& extra) {
    if (size > kMostExtra || size > bytes_ - at_) throw damaged("a header of " + std::to_string(size) + " bytes");
    std::string text(static_cast<size_t>(size), '\0');
    if (read_at(fd_.get(), path_, at_, text.data(), size) != size) throw damaged("it ends inside a header");
    skip(size);
    if (type == 'L') extra.name = text.substr(0, text.find('\0'));
    if (type == 'x') read_pax(text, extra);
    if (type == 'g' && (text.find(" path=") != std::string::npos || text.find(" size=") != std::string::npos))
      throw damaged("a global header names a path or a size");
  }

  /// Records "LENGTH KEY=VALUE\n", where LENGTH counts all of the record.
  void read_pax(std::string_view text, Extra& extra) const {
    while (!text.empty()) {
      size_t length = 0;
      const auto number = std::from_chars(text.data(), text.data() + text.size(), length);
      const auto head = static_cast<size_t>(number.ptr - text.data()) + 1;
      if (number.ec != std::errc() || length > text.size() || length < head + 2 || text[head - 1] != ' ' || text[length - 1] != '\n')
        throw damaged("a pax header that is none");
      const std::string_view record = text.substr(head, length - head - 1);
      const size_t equals = record.find('=');
      if (equals == std::string_view::npos) throw damaged("a pax header that is none");
      const std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
      if (key == "path") extra.name = std::string(value);
      if (key == "size") {
        int64_t size = 0;
        const auto parsed = std::from_chars(value.data(), value.data() + value.size(), size);
        if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size() || size < 0) throw damaged("a pax size that is none");
        extra.size = size;
      }
      if (key.starts_with("GNU.sparse")) throw data_error("the archive holds a sparse file", path_, "pack it again without sparse files");
      text.remove_prefix(length);
    }
  }

  /// Without "./" and empty parts. Throws for a name that leads out of the archive.
  std::string clean(const std::string& name) const {
    const auto refuse = [&](const std::string& why) {
      return data_error("member " + quoted_name(name) + " of the archive " + why, path_,
                        "do not use this archive: its names lead out of its folder");
    };
    if (name.size() > kMostName) throw refuse("has too long a name");
    if (name.starts_with('/')) throw refuse("has an absolute name");
    std::string clean;
    for (size_t begin = 0; begin <= name.size();) {
      const size_t end = std::min(name.find('/', begin), name.size());
      const std::string part = name.substr(begin, end - begin);
      if (part == "..") throw refuse("has '..' in its name");
      if (part.find('\0') != std::string::npos) throw refuse("has a NUL in its name");
      if (!part.empty() && part != ".") clean += (clean.empty() ? "" : "/") + part;
      begin = end + 1;
    }
    return clean;
  }

  std::string path_;
  Fd fd_;
  int64_t bytes_ = 0, at_ = 0;
};

bool is_gzip(const Block& block, int64_t got) { return got >= 2 && block[0] == '\x1f' && block[1] == '\x8b'; }

int64_t read_first(const std::string& path, Block& block) {
  const Fd fd = open_file(path, O_RDONLY);
  regular_file_bytes(fd.get(), path);
  return read_at(fd.get(), path, 0, block.data(), kBlock);
}

}  // namespace

bool looks_like_tar(const std::string& path) {
  Block block{};
  const int64_t got = read_first(path, block);
  return is_gzip(block, got) || (got == kBlock && has_right_sum(block));
}

FileSet index_tar(const std::string& path) {
  Block block{};
  if (is_gzip(block, read_first(path, block)))
    throw user_error("the archive is compressed with gzip, so that its members cannot be read in place", path,
                     "gunzip < " + path + " > uncompressed.nemo, and give that file");
  return TarWalk(path).walk();
}

}  // namespace ptq::checkpoint
