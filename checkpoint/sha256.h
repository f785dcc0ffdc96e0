#pragma once
// SHA-256 of bytes that come in pieces. Not for secrets: it tells damaged or changed files from whole ones.

#include <openssl/evp.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/core/unique_handle.h"

namespace ptq::checkpoint {

struct DigestTraits {
  using type = EVP_MD_CTX*;
  static EVP_MD_CTX* empty() { return nullptr; }
  static void close(EVP_MD_CTX* context) { EVP_MD_CTX_free(context); }
};

class Sha256 {
 public:
  /// Throws a system Error with OpenSSL's words when the library offers no SHA-256.
  static Sha256 open();
  void update(const void* data, size_t bytes);
  /// 64 hex digits, lower case. Ends the digest: call once.
  std::string hex();

 private:
  Sha256() = default;
  UniqueHandle<DigestTraits> context_;
};

/// Hex SHA-256 of a file's bytes from `offset` to its end, streamed. Throws a system Error naming call and path.
std::string sha256_from(const std::string& path, int64_t offset);

}  // namespace ptq::checkpoint
