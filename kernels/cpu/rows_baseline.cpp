// Compiled for the least processor of the platform.
#include "kernels/cpu/rows_table.h"

namespace ptq::kernels::cpu {

const RowKernels kRowsBaseline = kPlainRows;

}  // namespace ptq::kernels::cpu
