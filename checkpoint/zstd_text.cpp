#include "checkpoint/zstd_text.h"

#include <zstd.h>

#include <algorithm>
#include <memory>

#include "kernels/core/error.h"

namespace ptq::checkpoint {

std::string zstd_decoded(std::string_view compressed, int64_t most_bytes, const std::string& where) {
  const auto fail = [&](const std::string& why) {
    return data_error("the compressed data cannot be decoded: " + why, where, "copy the checkpoint again, completely");
  };
  const std::unique_ptr<ZSTD_DStream, decltype(&ZSTD_freeDStream)> stream(ZSTD_createDStream(), ZSTD_freeDStream);
  if (!stream) throw system_error("ZSTD_createDStream: no memory", where);
  std::string text;
  std::string piece(ZSTD_DStreamOutSize(), '\0');
  ZSTD_inBuffer in{compressed.data(), compressed.size(), 0};
  size_t wanted = 1;  // 0 at the end of a frame
  for (;;) {
    ZSTD_outBuffer out{piece.data(), piece.size(), 0};
    const size_t before = in.pos;
    wanted = ZSTD_decompressStream(stream.get(), &out, &in);
    if (ZSTD_isError(wanted)) throw fail(ZSTD_getErrorName(wanted));
    if (static_cast<int64_t>(text.size() + out.pos) > most_bytes) throw fail("it is larger than it should be");
    text.append(piece, 0, out.pos);
    if (in.pos == in.size && out.pos < out.size) break;
    if (in.pos == before && out.pos == 0) throw fail("it does not go on");
  }
  if (wanted != 0) throw fail("it ends early");
  return text;
}

}  // namespace ptq::checkpoint
