// Compiled for AVX2 and FMA; only called where isa() says so.
#include "kernels/cpu/rows_table.h"

namespace ptq::kernels::cpu {

const RowKernels kRowsAvx2 = kPlainRows;

}  // namespace ptq::kernels::cpu
