#include "engine/runtime/speculator.h"

#include <algorithm>
#include <bit>

#include "engine/base/check.h"

namespace sluice {
namespace {

// Chances before anything was seen, by class of length, and how many guesses that is worth.
constexpr std::array<double, 6> kFirstChance = {0.3, 0.4, 0.5, 0.6, 0.7, 0.8};
constexpr double kFirstWeight = 4;
// What a sequence's own record is weighed against: so many guesses of all sequences.
constexpr double kOthersWeight = 3;
// How much of a record is left after another guess: about 200 and 10 count.
constexpr double kKeptOfAll = 0.995;
constexpr double kKeptOfOne = 0.9;

// About 50 steps count for what rows cost.
constexpr double kKeptOfSteps = 0.98;
// The assumed cost of a row counts as much as this variance of rows.
constexpr double kAssumedVariance = 2;
// A row must be expected to pay by this much: estimates are noisy.
constexpr double kMargin = 1.1;

// Steps in which a draft is wanted that the guard sees as one: some of them bring many tokens, some
// one.
constexpr int kStretchSteps = 16;

}  // namespace

Result<Speculation> ParseSpeculation(const std::string& name) {
  if (name == "off") return Speculation::kOff;
  if (name == "ngram") return Speculation::kNgram;
  if (name == "auto") return Speculation::kAuto;
  return InvalidArgument("unknown speculation \"" + name + "\"; use auto, ngram or off");
}

Speculator::Speculator(const SpeculatorOptions& options) : options_(options) {
  SLUICE_CHECK(options.mode != Speculation::kOff && options.row_share > 0 &&
               options.row_share <= 1);
  for (size_t i = 0; i < records_.size(); ++i) {
    records_[i] = {kFirstChance[i] * kFirstWeight, kFirstWeight};
  }
  if (options.mode != Speculation::kAuto) return;
  LiveGuardOptions guard;
  guard.warm_up_steps = 4;
  guard.window_steps = 3;
  guard.skipped_steps = 0;
  guard.dwell_steps = 24;
  guard.max_trial_share = 0.05;
  guard_.emplace("speculation", guard, true);
}

int Speculator::LengthClass(int match) {
  // 2, 3, 4 to 5, 6 to 8, 9 to 15, more.
  constexpr std::array<int, kLengths - 1> kUpTo = {2, 3, 5, 8, 15};
  return static_cast<int>(std::lower_bound(kUpTo.begin(), kUpTo.end(), match) - kUpTo.begin());
}

double Speculator::Chance(const Stream& stream, int match) const {
  const auto length = static_cast<size_t>(LengthClass(match));
  const Record& all = records_[length];
  const Record& own = stream.records[length];
  return (own.right + kOthersWeight * all.right / all.made) / (own.made + kOthersWeight);
}

void Speculator::Score(std::span<const int32_t> tokens, Stream* stream) {
  for (size_t i = 0; i < stream->guess.size() && stream->guessed_at + i < tokens.size(); ++i) {
    const bool right = stream->guess[i] == tokens[stream->guessed_at + i];
    const auto length = static_cast<size_t>(LengthClass(stream->match + static_cast<int>(i)));
    Record& all = records_[length];
    Record& own = stream->records[length];
    all = {kKeptOfAll * all.right + right, kKeptOfAll * all.made + 1};
    own = {kKeptOfOne * own.right + right, kKeptOfOne * own.made + 1};
    if (!right) break;
  }
  stream->guess.clear();
}

void Speculator::Guess(std::span<const int32_t> tokens, Stream* stream) {
  const NgramIndex::Match match = stream->index.Find(tokens);
  stream->match = match.length;
  stream->guessed_at = tokens.size();
  if (match.length == 0) return;
  for (size_t i = 0; i < static_cast<size_t>(kMostDraft); ++i) {
    // Past the end what repeats goes on repeating.
    const size_t at = static_cast<size_t>(match.next) + i;
    stream->guess.push_back(at < tokens.size() ? tokens[at] : stream->guess[at - tokens.size()]);
  }
}

double Speculator::RowSeconds() const {
  if (weight_ <= 0) return 0;
  const double rows = rows_ / weight_;
  const double seconds = seconds_ / weight_;
  const double assumed = options_.row_share * seconds / (1 + options_.row_share * (rows - 1));
  const double variance = std::max(0.0, rows_rows_ / weight_ - rows * rows);
  const double together = rows_seconds_ / weight_ - rows * seconds;
  // All of a step's time is what rows cost at most. Drafts are wanted where a text repeats, and
  // such text uses experts again that are at hand: the line alone would call rows too cheap.
  const double slope =
      (together + kAssumedVariance / weight_ * assumed) / (variance + kAssumedVariance / weight_);
  return std::max(assumed, std::min(slope, seconds / rows));
}

double Speculator::StepSeconds(double rows) const {
  if (weight_ <= 0) return 0;
  return seconds_ / weight_ + RowSeconds() * (rows - rows_ / weight_);
}

bool Speculator::Pays(double chance, double tokens, double rows) const {
  if (options_.mode == Speculation::kNgram) return chance >= kNgramChance;
  if (weight_ <= 0) return false;  // no step was seen
  return chance * StepSeconds(rows) > kMargin * RowSeconds() * tokens;
}

void Speculator::Draft(std::span<const Sequence* const> decoders, std::span<const int> limits,
                       int most, std::span<std::span<const int32_t>> drafts) {
  SLUICE_CHECK(limits.size() == decoders.size() && drafts.size() == decoders.size());
  candidates_.clear();
  for (size_t i = 0; i < decoders.size(); ++i) {
    const Sequence& sequence = *decoders[i];
    if (sequence.spec.prefix_key != 0) continue;  // not exact
    Stream& stream = streams_[sequence.spec.id];
    Score(sequence.tokens, &stream);
    Guess(sequence.tokens, &stream);
    const int limit = std::min(limits[i], static_cast<int>(stream.guess.size()));
    if (limit > 0) {
      candidates_.push_back({i, &stream, limit, 0, 1, Chance(stream, stream.match)});
    }
  }
  decoders_ = static_cast<int>(decoders.size());
  double tokens = decoders_;
  for (int added = 0; added < most && !candidates_.empty(); ++added) {
    const auto best =
        std::max_element(candidates_.begin(), candidates_.end(),
                         [](const Candidate& a, const Candidate& b) { return a.next < b.next; });
    if (best->next <= 0 || !Pays(best->next, tokens, decoders_ + added)) break;
    tokens += best->next;
    best->chance = best->next;
    ++best->taken;
    best->next = best->taken < best->limit
                     ? best->chance * Chance(*best->stream, best->stream->match + best->taken)
                     : 0;
  }
  wanted_ = false;
  for (const Candidate& candidate : candidates_) {
    if (candidate.taken == 0) continue;
    wanted_ = true;
    if (guard_ && !guard_->on()) continue;
    drafts[candidate.decoder] =
        std::span(candidate.stream->guess).first(static_cast<size_t>(candidate.taken));
  }
}

void Speculator::OnStep(int rows, int prompt_tokens, int generated, double seconds) {
  const bool wanted = std::exchange(wanted_, false);
  // What prompts cost says little of decoding.
  if (prompt_tokens > 0 || rows == 0 || !(seconds > 0)) return;
  const double n = rows;
  for (double* sum : {&weight_, &rows_, &seconds_, &rows_rows_, &rows_seconds_}) {
    *sum *= kKeptOfSteps;
  }
  weight_ += 1;
  rows_ += n;
  seconds_ += seconds;
  rows_rows_ += n * n;
  rows_seconds_ += n * seconds;
  if (!guard_ || !wanted) return;
  const int kind = std::bit_width(static_cast<unsigned>(decoders_));
  if (kind != stretch_kind_) {
    stretch_kind_ = kind;
    stretch_steps_ = stretch_tokens_ = 0;
    stretch_seconds_ = 0;
  }
  stretch_seconds_ += seconds;
  stretch_tokens_ += generated;
  if (++stretch_steps_ < kStretchSteps || stretch_tokens_ == 0) return;
  guard_->OnStep(kind, /*tokens=*/1, stretch_seconds_ / stretch_tokens_);
  stretch_steps_ = stretch_tokens_ = 0;
  stretch_seconds_ = 0;
}

}  // namespace sluice
