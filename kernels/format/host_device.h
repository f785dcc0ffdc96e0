#pragma once
// PTQ_HD marks functions that work on host and device alike. On the host they are always inlined: the same header is compiled for several
// instruction sets, and a shared out-of-line copy could be the one that this processor cannot run.

#if defined(__CUDACC__)
#define PTQ_HD __host__ __device__
#else
#define PTQ_HD [[gnu::always_inline]]
#endif
