// Compiled for AVX-512; only called where isa() says so.
#include "kernels/cpu/rows_table.h"

namespace ptq::kernels::cpu {

const RowKernels kRowsAvx512 = kPlainRows;

}  // namespace ptq::kernels::cpu
