#pragma once
// Which instruction set the CPU kernels use. All of them give the same bits, except the bf16 matrix product, so this is not agreed between
// ranks. Read from any thread.

namespace ptq::kernels::cpu {

/// kAvx2 stands for AVX2 with FMA and F16C; kAvx512 for the F, BW, VL and DQ parts.
enum class Isa : int { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

/// The widest one of this processor.
Isa best_isa();
/// Does this processor multiply pairs of bf16 (AVX512_BF16)?
bool has_bf16_pairs();
/// Is it made by Intel? There VDPBF16PS is no faster than the f32 multiply-add.
bool is_intel();

/// The one in use: the best one, unless a test lowered it.
Isa isa();
/// For tests, not while ops run. Throws a bug when this processor lacks it.
void set_isa(Isa isa);

}  // namespace ptq::kernels::cpu
