// Every checkpoint reader. A reader says whether a path looks like its format, from names alone, and opens it; the first that says yes
// is taken, and what is wrong with the checkpoint from there on is an error, never a reason to try the next.

#include <array>
#include <string_view>

#include "checkpoint/dcp_reader.h"
#include "checkpoint/files.h"
#include "checkpoint/hf_reader.h"
#include "checkpoint/hf_torch_reader.h"
#include "checkpoint/reader.h"
#include "kernels/core/error.h"

namespace ptq::checkpoint {

namespace {
struct Candidate {
  std::string_view looked_for;  ///< for the message when no reader wants the path
  bool (*accepts)(const std::string& path);
  std::unique_ptr<Reader> (*open)(const std::string& path);
};

constexpr std::array kReaders{
    Candidate{HfReader::kLookedFor, HfReader::accepts, HfReader::open},
    Candidate{HfTorchReader::kLookedFor, HfTorchReader::accepts, HfTorchReader::open},
    Candidate{DcpReader::kLookedFor, DcpReader::accepts, DcpReader::open},
};
}  // namespace

std::unique_ptr<Reader> open_checkpoint(const std::string& path) {
  if (!exists(path)) throw user_error("the checkpoint does not exist", path, "check the path of the model");
  std::string looked_for;
  for (const Candidate& reader : kReaders) {
    if (reader.accepts(path)) return reader.open(path);
    looked_for += (looked_for.empty() ? "" : "; ") + std::string(reader.looked_for);
  }
  throw user_error("no checkpoint here: looked for " + looked_for + "; a Megatron, Megatron-Bridge or NeMo checkpoint", path,
                   "give the folder that holds the model's weights");
}

}  // namespace ptq::checkpoint
