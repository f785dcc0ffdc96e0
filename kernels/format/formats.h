#pragma once
// THE LIST of number formats. To add one: its data sheet kernels/format/NAME.h and a line here.

#include <string_view>

#include "kernels/format/e2m1.h"
#include "kernels/format/e4m3.h"
#include "kernels/format/e8m0.h"
#include "kernels/format/int4.h"
#include "kernels/format/int8.h"

#define PTQ_FORMATS(X) X(E4M3) X(E2M1) X(E8M0) X(INT8) X(INT4)

namespace ptq::kernels {

/// The names of all formats, for messages.
constexpr std::string_view kFormatNames[] = {
#define PTQ_FORMAT_NAME(format) format::kName,
    PTQ_FORMATS(PTQ_FORMAT_NAME)
#undef PTQ_FORMAT_NAME
};

}  // namespace ptq::kernels
