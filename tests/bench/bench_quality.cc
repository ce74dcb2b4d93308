// What precision rules (engine/experts/quality.h) cost and save on a model's real routing:
//
//   bench_quality [--tokens N] [--step N] [--shares 0,0.25,0.5,1] PACK REFERENCE RULE... -- TEXT...
//
// RULE is steps of a rule, as in "all@0,3@0.5,2@0.7,skip@0.9", then perhaps "tail=0.3:2"; with
// "mass=0.9", "prune=0.2" or "k=3" in it, routing options too. Every rule is measured at every
// share of the experts' bytes in memory (0: none is kept, so that every expert is as late as can
// be) on the first N tokens of each text, N tokens at a time. Columns: mean and largest
// Kullback-Leibler divergence from the reference in nats, the share of positions where both prefer
// the same token, shares of (token, expert) pairs at a lower precision and skipped, hits, and
// expert bytes read per token against all that a token uses.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/runtime/divergence.h"
#include "engine/text/tokenizer.h"

namespace sluice {
namespace {

constexpr int kContext = 192;

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "bench_quality: %s\n", why.c_str());
  std::exit(1);
}

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

struct Candidate {
  std::string name;
  QualityRule rule;
  QualitySettings settings{.quality = Quality::kFast};
};

Candidate ParseRule(const std::string& text) {
  Candidate made{text, {}, {.quality = Quality::kFast}};
  made.rule.step_count = 0;
  for (const std::string& part : Split(text, ',')) {
    const size_t equals = part.find('='), at = part.find('@');
    const auto number = [&](size_t from) { return std::strtof(part.c_str() + from, nullptr); };
    if (part.starts_with("tail=")) {
      made.rule.tail_share = number(equals + 1);
      made.rule.tail_bits = static_cast<int8_t>(number(part.find(':') + 1));
    } else if (part.starts_with("mass=")) {
      made.settings.expert_mass = number(equals + 1);
    } else if (part.starts_with("prune=")) {
      made.settings.prune_ratio = number(equals + 1);
    } else if (part.starts_with("k=")) {
      made.settings.experts_per_token = static_cast<int>(number(equals + 1));
    } else if (at != std::string::npos && made.rule.step_count < 4) {
      const std::string bits = part.substr(0, at);
      made.rule.steps[made.rule.step_count++] = {
          number(at + 1), bits == "all"    ? kAllBits
                          : bits == "skip" ? kSkippable
                                           : static_cast<int8_t>(std::atoi(bits.c_str()))};
    } else {
      Die("cannot read \"" + part + "\"");
    }
  }
  if (made.rule.step_count == 0) made.rule.step_count = 1;
  return made;
}

std::unique_ptr<Model> Load(const std::string& path, const QualityRule& rule, bool cache) {
  ModelOptions options;
  options.threads = 2;
  options.max_batch_tokens = 64;
  options.max_sequences = 1;
  options.max_context = kContext;
  options.kv_blocks = kContext / kKvBlockTokens;
  options.tiers.cache = cache;
  options.quality_rules.fast = rule;
  auto model = Model::Load(path, options);
  if (!model) Die(model.error().message);
  return std::move(*model);
}

struct Totals {
  double hits = 0, misses = 0, bytes = 0;
  explicit Totals(const Model& model) {
    const auto stats = model.expert_stats();
    for (const auto& layer : stats->layers) {
      hits += static_cast<double>(layer.hits);
      misses += static_cast<double>(layer.misses);
      bytes += static_cast<double>(layer.bytes_read);
    }
  }
};

struct Arguments {
  int tokens = 2000, step = 1;
  std::vector<double> shares = {0, 0.25, 0.5, 1};
  std::string pack, reference;
  std::vector<Candidate> rules;
  std::vector<std::string> texts;
};

void Measure(const Arguments& a, Model& reference, const Candidate& candidate, double share,
             const std::vector<std::vector<int32_t>>& texts) {
  const auto model = Load(a.pack, candidate.rule, share > 0);
  if (share > 0) {
    const auto stats = model->expert_stats();
    const auto full = static_cast<double>(stats->full_budget_bytes);
    const auto experts = static_cast<double>(stats->tiers.at(0).capacity_bytes);
    const auto set =
        model->SetMemoryBudget(static_cast<uint64_t>(full - (1 - share) * experts * 512 / 511));
    if (!set) Die(set.error().message);
    while (model->Background()) {
    }
  }
  const Totals before(*model);
  double kl = 0, worst = 0, same = 0, tokens = 0;
  ExpertCounts counts;
  for (const std::vector<int32_t>& text : texts) {
    const auto result = EvaluateDivergence(reference, *model, text,
                                           {.context = kContext,
                                            .step_tokens = a.step,
                                            .quality = candidate.settings,
                                            .progress = {}});
    if (!result) Die(result.error().message);
    const auto n = static_cast<double>(result->tokens);
    kl += result->kl_per_token * n;
    same += result->top1_agreement * n;
    worst = std::max(worst, result->kl_max);
    tokens += n;
    counts += result->experts;
  }
  const Totals after(*model);
  const auto pairs = static_cast<double>(counts.assignments);
  const double asked = after.hits - before.hits + after.misses - before.misses;
  // Computed tokens, by their (token, expert) pairs; all but the last layer computes each.
  const double bytes_per_pair = (after.bytes - before.bytes) / pairs;
  std::printf("%-40s %5.0f%% %9.5f %8.3f %7.2f %6.1f %6.1f %6.1f %7.1f\n", candidate.name.c_str(),
              100 * share, kl / tokens, worst, 100 * same / tokens,
              100 * static_cast<double>(counts.degraded) / pairs,
              100 * static_cast<double>(counts.skipped) / pairs,
              100 * (after.hits - before.hits) / asked,
              100 * bytes_per_pair / static_cast<double>(model->footprint().expert_bytes));
  std::fflush(stdout);
}

int Run(const Arguments& a) {
  const auto files = ReadModelFiles(a.reference);
  if (!files) Die(files.error().message);
  const auto tokenizer = Tokenizer::Load(*files);
  if (!tokenizer) Die(tokenizer.error().message);
  std::vector<std::vector<int32_t>> texts;
  for (const std::string& path : a.texts) {
    std::ifstream file(path, std::ios::binary);
    if (!file) Die("cannot open " + path);
    texts.push_back((*tokenizer)->Encode(std::string(std::istreambuf_iterator<char>(file), {})));
    texts.back().resize(std::min(texts.back().size(), static_cast<size_t>(a.tokens)));
  }
  const auto reference = Load(a.reference, {}, true);
  std::printf("%-40s %6s %9s %8s %7s %6s %6s %6s %7s\n", "rule", "share", "KL", "most", "same %",
              "low %", "skip %", "hits %", "bytes %");
  for (const Candidate& candidate : a.rules) {
    for (const double share : a.shares) Measure(a, *reference, candidate, share, texts);
  }
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) {
  sluice::Arguments a;
  std::vector<std::string> words(argv + 1, argv + argc);
  size_t i = 0;
  for (; i + 1 < words.size() && words[i].starts_with("--"); i += 2) {
    if (words[i] == "--tokens") {
      a.tokens = std::atoi(words[i + 1].c_str());
    } else if (words[i] == "--step") {
      a.step = std::atoi(words[i + 1].c_str());
    } else if (words[i] == "--shares") {
      a.shares.clear();
      for (const auto& share : sluice::Split(words[i + 1], ',')) {
        a.shares.push_back(std::strtod(share.c_str(), nullptr));
      }
    } else {
      sluice::Die("unknown option " + words[i]);
    }
  }
  for (size_t position = 0; i < words.size() && words[i] != "--"; ++i, ++position) {
    if (position == 0) {
      a.pack = words[i];
    } else if (position == 1) {
      a.reference = words[i];
    } else {
      a.rules.push_back(sluice::ParseRule(words[i]));
    }
  }
  for (++i; i < words.size(); ++i) a.texts.push_back(words[i]);
  if (a.rules.empty() || a.texts.empty()) sluice::Die("give a pack, a reference, rules, --, texts");
  return sluice::Run(a);
}
