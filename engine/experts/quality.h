// How exact a token's experts must be: what a request, or the whole server, may give up for speed.
//
// An expert of a pack can be computed from fewer of its planes than there are, and an expert that
// weighs little can be left out. Both are worth something only where the rest would have to be read
// from disk first. So a quality says what a token *accepts* of each of its experts; what is in
// memory anyway is used whole, and with everything in memory all qualities give the same bytes.
//
// The signal is the gate (HOBBIT; techniques.md, sections 2 and 7): an expert counts by the share
// of the token's gate weight that is left when it is reached, going from the weightiest down. The
// thresholds were measured on the demo model (config/quality/settings.md).
//
// Routing options, which hold at every quality and wherever experts are, leave experts out
// altogether: top-p routing, pruning after ODP (MC-MoE, section 3.3), and fewer experts per token.
//
// Pure functions and values: any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace sluice {

enum class Quality : uint8_t {
  kExact,     // every expert at the pack's full precision
  kBalanced,  // light experts at fewer bits rather than late
  kFast,      // every expert at fewer bits rather than late; the lightest not at all
};

const char* QualityName(Quality quality);                    // "exact"
std::optional<Quality> ParseQuality(std::string_view name);  // nothing for other names

// What became of (token, expert) pairs.
struct ExpertCounts {
  int64_t assignments = 0;  // that routers chose
  int64_t degraded = 0;     // of these, computed at less than the pack's full precision
  int64_t skipped = 0;      // of these, not computed

  ExpertCounts& operator+=(const ExpertCounts& other) {
    assignments += other.assignments;
    degraded += other.degraded;
    skipped += other.skipped;
    return *this;
  }
  bool operator==(const ExpertCounts&) const = default;
};

// What all tokens of a sequence accept.
struct QualitySettings {
  Quality quality = Quality::kExact;
  float expert_mass = 1;      // top-p routing: the fewest experts, from the weightiest down, that
                              // have this share of the token's gate weight together; 1: all
  float prune_ratio = 0;      // experts that weigh less than this share of the token's weightiest
                              // are left out; 0: none
  int experts_per_token = 0;  // at most; 0: as the model says

  // Nothing may differ from the model as it is.
  bool exact() const {
    return quality == Quality::kExact && expert_mass >= 1 && prune_ratio <= 0 &&
           experts_per_token == 0;
  }
  bool operator==(const QualitySettings&) const = default;
};

// Differs between settings that can differ in results (shares are told apart to 1e-5); 0 for
// exact() ones. What decides, beside the tokens, the values in a sequence's KV cache.
uint64_t QualityKey(const QualitySettings& settings);

// The least bits that an assignment (token, expert) accepts: from 2 up, kAllBits for all that the
// pack has, kSkippable if it may be left out rather than waited for, kDropped if it must be.
inline constexpr int8_t kAllBits = 32;
inline constexpr int8_t kSkippable = 0;
inline constexpr int8_t kDropped = -1;

// What a quality accepts. Steps in ascending `from`; the first has from = 0 and is not kSkippable.
struct QualityRule {
  struct Step {
    float from = 0;  // share of the token's gate weight that heavier experts have
    int8_t bits = kAllBits;
  };
  std::array<Step, 4> steps{};
  int step_count = 1;
  // Of several tokens together (Fate's popularity-aware precision): the experts of a layer that
  // have this share of the step's gate weight together, from the lightest up, are accepted at
  // tail_bits whatever their tokens say.
  float tail_share = 0;
  int8_t tail_bits = kAllBits;
};

struct QualityRules {
  QualityRule balanced;
  QualityRule fast;

  const QualityRule& of(Quality quality) const {
    static constexpr QualityRule kExactRule;
    return quality == Quality::kExact ? kExactRule : (quality == Quality::kFast ? fast : balanced);
  }
};

// The calibrated ones.
const QualityRules& DefaultQualityRules();

// One token. weights: its experts' gate weights, descending, positive. bits receives as many
// entries; the first is never kDropped or kSkippable.
void GradeExperts(const QualitySettings& settings, const QualityRules& rules,
                  std::span<const float> weights, std::span<int8_t> bits);

}  // namespace sluice
