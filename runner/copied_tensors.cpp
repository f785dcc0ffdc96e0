#include "runner/copied_tensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "runner/calibration.h"
#include "runner/weight_loader.h"

namespace ptq::runner {

void copy_tensors(const checkpoint::Reader& reader, const std::vector<std::string>& names, const parallel::Mesh& mesh,
                  OutputStream& output) {
  constexpr int64_t kPiece = int64_t{16} << 20;
  std::vector<LoadUnit> units;
  for (const std::string& name : names) {
    const checkpoint::TensorEntry& entry = reader.at(name);
    const int64_t rows = entry.shape.empty() ? 1 : entry.shape[0];
    if (rows == 0 || entry.bytes == 0) continue;
    const parallel::Range share = world_share(rows, mesh);
    const int64_t step = std::max<int64_t>(1, kPiece / (entry.bytes / rows));
    for (int64_t begin = share.begin; begin < share.end; begin += step)
      units.push_back({{&entry, {begin, std::min(share.end, begin + step)}}});
  }
  const std::vector<LoadUnit> pieces = units;
  WeightLoader loader(reader, std::move(units), 2 * kPiece);
  mesh.world().together([&] {
    for (const LoadUnit& piece : pieces) {
      const Tensor rows = loader.take().front();
      const checkpoint::TensorEntry& entry = *piece.front().tensor;
      checked_amax(rows, entry.name, reader.folder() + "/" + entry.file);
      output.push(entry.name, piece.front().rows.begin * rows.row_bytes(), rows);
    }
  });
}

std::string native_leftovers(const SourceModel& source, const ExportPlan& plan) {
  if (plan.metadata.dialect == recipes::Dialect::kDeepseekFp8) return "";  // its words mean them too
  int64_t count = 0;
  std::string first;
  for (const std::string& name : plan.copied)
    if (source.reader->at(name).dtype == DType::kF8E4M3 && source.reader->find(name + "_scale_inv") && ++count == 1) first = name;
  if (count == 0) return "";
  return fmt::format(
      "{} weights outside the decoder, {} the first, are copied byte for byte in the publisher's FP8 blocks: a server must not "
      "load them as plain weights (multi-token prediction: leave it off, or take it from the source)",
      count, first);
}

}  // namespace ptq::runner
