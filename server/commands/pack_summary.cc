#include "server/commands/pack_summary.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <set>
#include <utility>

#include "engine/arch/hf_config.h"
#include "engine/arch/tensor_names.h"

namespace sluice {
namespace {

using Json = nlohmann::ordered_json;

uint64_t Weights(const WeightLayout& layout) {
  return static_cast<uint64_t>(layout.rows) * static_cast<uint64_t>(layout.cols);
}

double BitsPerWeight(uint64_t bytes, uint64_t weights) {
  return weights == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(weights);
}

// "4-bit u8_min groups of 32", "BF16 panels".
std::string FormatName(const WeightLayout& layout) {
  if (layout.form == WeightForm::kNested) {
    constexpr const char* kScales[] = {"f16",     "f16_min", "u8_min",   "i8",
                                       "iq4_f16", "iq4_i8",  "e2m1_e8m0"};
    static_assert(std::size(kScales) == kScaleKinds);
    return std::to_string(layout.nested.bits) + "-bit " +
           kScales[static_cast<int>(layout.nested.scales)] + "/" +
           std::to_string(layout.nested.group);
  }
  return std::string(DTypeName(layout.dtype)) +
         (layout.form == WeightForm::kPanels ? " panels" : " rows");
}

std::string BitsName(const WeightLayout& layout) {
  return layout.form == WeightForm::kNested ? std::to_string(layout.nested.bits)
                                            : DTypeName(layout.dtype);
}

std::string BitsName(const PackExpert& expert) {
  const std::string gate = BitsName(expert.gate), up = BitsName(expert.up),
                    down = BitsName(expert.down);
  return gate == up && up == down ? gate : gate + "/" + up + "/" + down;
}

// Plane sets that an expert is used with at a precision of at most `bits`.
size_t SetsFor(const PackExpert& expert, int bits) {
  int sets = 1;
  for (const WeightLayout* layout : {&expert.gate, &expert.up, &expert.down}) {
    if (layout->form == WeightForm::kNested) {
      sets = std::max(sets, NestedPlanesFor(layout->nested.bits, bits));
    }
  }
  return static_cast<size_t>(sets);
}

const char* KindOf(TensorRole role) {
  switch (role) {
    case TensorRole::kEmbedding:
      return "embedding";
    case TensorRole::kLmHead:
      return "output head";
    case TensorRole::kQ:
    case TensorRole::kK:
    case TensorRole::kV:
    case TensorRole::kO:
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias:
    case TensorRole::kOBias:
      return "attention";
    case TensorRole::kFinalNorm:
    case TensorRole::kAttentionNorm:
    case TensorRole::kQNorm:
    case TensorRole::kKNorm:
    case TensorRole::kMoeNorm:
      return "norms";
    case TensorRole::kRouter:
    case TensorRole::kSharedGateWeight:
      return "routers";
    case TensorRole::kSharedGate:
    case TensorRole::kSharedUp:
    case TensorRole::kSharedDown:
      return "shared experts";
    case TensorRole::kDenseGate:
    case TensorRole::kDenseUp:
    case TensorRole::kDenseDown:
      return "dense layers";
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown:
      break;
  }
  return "other";
}

struct Place {
  const char* kind = "other";
  int layer = -1;
};

// Kind and layer by tensor name; empty when the model is not known.
std::map<std::string, Place> Places(const ModelConfig& config) {
  std::map<std::string, Place> places;
  for (const ExpectedTensor& tensor : ExpectedTensors(config)) {
    if (tensor.expert >= 0) continue;
    places[TensorCandidates(config, tensor.role, tensor.layer)[0].name] = {KindOf(tensor.role),
                                                                           tensor.layer};
  }
  return places;
}

struct Sum {
  size_t count = 0;
  uint64_t weights = 0;
  uint64_t bytes = 0;
  std::map<std::string, size_t> names;  // formats of tensors, bits of experts: how many

  void Add(const PackTensor& tensor) {
    ++count;
    weights += Weights(tensor.layout);
    bytes += tensor.bytes;
    ++names[FormatName(tensor.layout)];
  }
  void Add(const PackExpert& expert) {
    ++count;
    weights += Weights(expert.gate) + Weights(expert.up) + Weights(expert.down);
    bytes += expert.bytes(expert.sets.size());
    ++names[BitsName(expert)];
  }
};

Json SumJson(const Sum& sum, const char* count, const char* names) {
  Json json = {{count, sum.count},
               {"weights", sum.weights},
               {"bytes", sum.bytes},
               {"bits_per_weight", BitsPerWeight(sum.bytes, sum.weights)}};
  json[names] = Json::object();
  for (const auto& [name, number] : sum.names) json[names][name] = number;
  return json;
}

void EachExpert(const PackReader& pack,
                const std::function<void(int, int, const PackExpert&)>& visit) {
  for (int layer = 0; layer < pack.layers(); ++layer) {
    for (int i = 0; i < pack.experts_per_layer(); ++i) {
      const PackExpert* expert = pack.FindExpert(layer, i);
      if (expert != nullptr) visit(layer, i, *expert);
    }
  }
}

Json LadderJson(const PackReader& pack, const Sum& experts) {
  std::set<int> precisions;
  EachExpert(pack, [&](int, int, const PackExpert& expert) {
    for (const WeightLayout* layout : {&expert.gate, &expert.up, &expert.down}) {
      if (layout->form != WeightForm::kNested) continue;
      for (int planes = 1; planes <= layout->planes(); ++planes) {
        precisions.insert(NestedPrecision(layout->nested.bits, planes));
      }
    }
  });
  Json ladder = Json::array();
  uint64_t below = 0;
  for (const int precision : precisions) {
    uint64_t bytes = 0;
    EachExpert(pack, [&](int, int, const PackExpert& expert) {
      bytes += expert.bytes(SetsFor(expert, precision));
    });
    ladder.push_back({{"precision", precision},
                      {"expert_bytes", bytes},
                      {"added_bytes", bytes - below},
                      {"bits_per_weight", BitsPerWeight(bytes, experts.weights)}});
    below = bytes;
  }
  return ladder;
}

Result<ModelConfig> ConfigOf(const PackReader& pack) {
  const auto& files = pack.metadata().files;
  const auto config = files.find("config.json");
  if (config == files.end()) return NotFound("the pack holds no config.json");
  const auto generation = files.find("generation_config.json");
  return ParseHfConfig(config->second, generation == files.end() ? "" : generation->second);
}

Json ModelJson(const Result<ModelConfig>& config) {
  if (!config) return {{"error", config.error().message}};
  return {{"family", config->family},
          {"layers", config->num_layers()},
          {"hidden", config->hidden},
          {"vocab", config->vocab},
          {"heads", config->heads},
          {"kv_heads", config->kv_heads},
          {"head_dim", config->head_dim},
          {"max_positions", config->max_positions},
          {"experts", config->router.num_experts},
          {"experts_per_token", config->router.experts_per_token},
          {"expert_intermediate", config->expert_intermediate},
          {"shared_intermediate", config->shared_intermediate}};
}

}  // namespace

Json PackSummary(const PackReader& pack) {
  const Result<ModelConfig> config = ConfigOf(pack);
  const std::map<std::string, Place> places =
      config ? Places(*config) : std::map<std::string, Place>();

  Sum all, dense, experts;
  std::map<std::string, Sum> kinds;
  std::map<int, Sum> dense_by_layer, experts_by_layer;
  for (const PackTensor& tensor : pack.tensors()) {
    const auto place = places.find(tensor.name);
    const Place where = place == places.end() ? Place{} : place->second;
    all.Add(tensor);
    dense.Add(tensor);
    kinds[where.kind].Add(tensor);
    if (where.layer >= 0) dense_by_layer[where.layer].Add(tensor);
  }
  EachExpert(pack, [&](int layer, int, const PackExpert& expert) {
    all.Add(expert);
    experts.Add(expert);
    experts_by_layer[layer].Add(expert);
  });

  Json report = {{"path", pack.path().string()},
                 {"version", pack.version()},
                 {"file_bytes", pack.file_bytes()},
                 {"align", pack.align()},
                 {"model", ModelJson(config)}};
  report["totals"] = {{"weights", all.weights},
                      {"bytes", all.bytes},
                      {"bits_per_weight", BitsPerWeight(all.bytes, all.weights)},
                      {"experts", SumJson(experts, "count", "bits")},
                      {"dense", SumJson(dense, "tensors", "formats")}};
  report["ladder"] = LadderJson(pack, experts);
  report["kinds"] = Json::array();
  for (const char* kind : {"embedding", "output head", "attention", "norms", "routers",
                           "shared experts", "dense layers", "other"}) {
    const auto sum = kinds.find(kind);
    if (sum == kinds.end()) continue;
    Json row = {{"kind", kind}};
    row.update(SumJson(sum->second, "tensors", "formats"));
    report["kinds"].push_back(std::move(row));
  }
  report["layers"] = Json::array();
  const int layers = std::max(pack.layers(), config ? config->num_layers() : 0);
  for (int layer = 0; layer < layers; ++layer) {
    report["layers"].push_back({{"layer", layer},
                                {"dense_bytes", dense_by_layer[layer].bytes},
                                {"experts", SumJson(experts_by_layer[layer], "count", "bits")}});
  }
  report["files"] = Json::object();
  for (const auto& [name, text] : pack.metadata().files) report["files"][name] = text.size();
  report["provenance"] = pack.metadata().provenance;
  return report;
}

std::vector<std::string> DamagedParts(const PackReader& pack,
                                      const std::function<void(double)>& progress) {
  // A tensor by its number, or an expert.
  struct Part {
    uint64_t offset, bytes;
    const PackTensor* tensor;
    int layer, index;
  };
  std::vector<Part> parts;
  uint64_t total = 0, done = 0;
  for (const PackTensor& tensor : pack.tensors()) {
    parts.push_back({tensor.offset, tensor.bytes, &tensor, -1, -1});
  }
  EachExpert(pack, [&](int layer, int index, const PackExpert& expert) {
    parts.push_back({expert.offset, expert.bytes(expert.sets.size()), nullptr, layer, index});
  });
  std::sort(parts.begin(), parts.end(),
            [](const Part& a, const Part& b) { return a.offset < b.offset; });
  for (const Part& part : parts) total += part.bytes;

  std::vector<std::string> damaged;
  std::vector<std::byte> buffer;
  for (const Part& part : parts) {
    if (part.tensor != nullptr) {
      buffer.resize(part.bytes);
      const Result<> read = pack.ReadTensor(*part.tensor, buffer);
      if (!read) damaged.push_back(read.error().message);
    } else {
      const PackExpert& expert = *pack.FindExpert(part.layer, part.index);
      for (size_t set = 0; set < expert.sets.size(); ++set) {
        buffer.resize(expert.sets[set].bytes);
        const Result<> read = pack.ReadPlaneSets(part.layer, part.index, set, set + 1, buffer);
        if (!read) damaged.push_back(read.error().message);
      }
    }
    done += part.bytes;
    progress(static_cast<double>(done) / static_cast<double>(total));
  }
  return damaged;
}

}  // namespace sluice
