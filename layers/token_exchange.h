#pragma once
// Tokens to their experts' ranks and what the experts made of them back. A token goes once to a rank however many of its experts are
// there; what each expert made comes back by itself, so that the token's owner adds it in ascending order of experts as one rank alone
// would.

#include <string>
#include <vector>

#include "layers/moe.h"

namespace ptq::layers {

/// One block of this rank's tokens, with the blocks that the other ranks send at the same time.
class TokenExchange {
 public:
  /// Who came for one of this rank's experts, in ascending order of position.
  struct Arrival {
    int expert = 0;
    Visits routed, forced;       ///< rows: among those that send() returns
    std::vector<int64_t> slots;  ///< of every routed visit: the row of the results that goes back to its owner
  };

  /// Tokens [begin, end) of the group and the experts of the chunk. Collective over context.group.
  TokenExchange(const MoeSpec& moe, const ExpertContext& context, const TokenGroup& group, int64_t begin, int64_t end,
                parallel::Range chunk, const ForcedVisits& forced);

  /// This rank's routed and forced visits.
  const ChunkVisits& visits() const { return visits_; }
  /// By expert of this rank that is visited, ascending.
  const std::vector<Arrival>& arrivals() const { return arrivals_; }
  /// Rows that results have here.
  int64_t slots() const;
  /// Rows of x [T, W] of the group's tokens go out; returns those that came in, in a buffer called `name`. Collective.
  Tensor send(const Tensor& x, const std::string& name) const;
  /// results [slots, W] f32 go back to their tokens' owners; returns those of this rank's routed visits: by expert, then token, in the
  /// order of visits().routed. In a buffer called `name`. Collective.
  Tensor give_back(const Tensor& results, const std::string& name) const;

 private:
  const ExpertContext& context_;
  ChunkVisits visits_;
  std::vector<int64_t> tokens_;                                     ///< index in the group of every row sent, rank after rank
  std::vector<int64_t> rows_out_, rows_in_, slots_out_, slots_in_;  ///< by rank
  std::vector<Arrival> arrivals_;
};

/// out[rows[first + i]] = x[i], both f32 of the same width.
void place_rows(const Tensor& x, const std::vector<int64_t>& rows, int64_t first, Tensor& out);

/// Calls body(begin, end) with one block of this rank's tokens after the other, as often as the rank that has most; later ones are empty.
/// Collective over context.group.
void in_exchanged_blocks(const ExpertContext& context, int64_t tokens, const std::function<void(int64_t, int64_t)>& body);

}  // namespace ptq::layers
