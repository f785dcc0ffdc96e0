// Compiled with AVX2 and FMA; only called where isa() says so.
#include "kernels/cpu/panel_pack.h"
#include "kernels/cpu/panel_softmax.h"

namespace ptq::kernels::cpu {

const PanelKernels kPanelAvx2 = {kTileTokens, kPanelWidth,     1,       pack_f32,      pack_bf16,   copy_f32,        copy_bf16,
                                 tile,        tile_of_columns, softmax, scale_columns, dot_columns, softmax_gradient};

}  // namespace ptq::kernels::cpu
