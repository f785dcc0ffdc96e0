#include "checkpoint/sha256.h"

#include <fcntl.h>
#include <openssl/err.h>

#include <array>
#include <vector>

#include "checkpoint/file_descriptor.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
constexpr int64_t kChunkBytes = int64_t{8} << 20;  // large enough for a parallel file system's stripe

void check(int ok, const char* call) {
  if (ok == 1) return;
  std::array<char, 256> text{};
  ERR_error_string_n(ERR_get_error(), text.data(), text.size());
  throw system_error(std::string(call) + ": " + text.data());
}
}  // namespace

Sha256 Sha256::open() {
  Sha256 digest;
  digest.context_ = UniqueHandle<DigestTraits>(EVP_MD_CTX_new());
  check(digest.context_ ? 1 : 0, "EVP_MD_CTX_new");
  check(EVP_DigestInit_ex(digest.context_.get(), EVP_sha256(), nullptr), "EVP_DigestInit_ex");
  return digest;
}

void Sha256::update(const void* data, size_t bytes) { check(EVP_DigestUpdate(context_.get(), data, bytes), "EVP_DigestUpdate"); }

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int bytes = 0;
  check(EVP_DigestFinal_ex(context_.get(), digest.data(), &bytes), "EVP_DigestFinal_ex");
  std::string text;
  for (unsigned int i = 0; i < bytes; ++i) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

std::string sha256_from(const std::string& path, int64_t offset) {
  const Fd fd = open_file(path, O_RDONLY);
  ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Sha256 digest = Sha256::open();
  std::vector<char> chunk(static_cast<size_t>(kChunkBytes));
  for (;;) {
    const int64_t got = read_at(fd.get(), path, offset, chunk.data(), kChunkBytes);
    digest.update(chunk.data(), static_cast<size_t>(got));
    offset += got;
    if (got < kChunkBytes) return digest.hex();
  }
}

std::string sha256_file(const std::string& path) { return sha256_from(path, 0); }

std::string sha256_text(const std::string& text) {
  Sha256 digest = Sha256::open();
  digest.update(text.data(), text.size());
  return digest.hex();
}

}  // namespace ptq::checkpoint
