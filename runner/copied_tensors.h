#pragma once
// Tensors that are no part of the layers, and pass from the source to the output as they are.

#include <string>

#include "parallel/mesh.h"
#include "runner/export_plan.h"
#include "runner/output_stream.h"

namespace ptq::runner {

/// Copies these tensors, cut in pieces of rows over all ranks. Throws a data Error for weights that hold NaN or Inf. Collective.
void copy_tensors(const checkpoint::Reader& reader, const std::vector<std::string>& names, const parallel::Mesh& mesh,
                  OutputStream& output);

/// What a reader of the output must know of tensors outside the decoder that are still in the publisher's FP8; "" where there are none.
std::string native_leftovers(const SourceModel& source, const ExportPlan& plan);

}  // namespace ptq::runner
