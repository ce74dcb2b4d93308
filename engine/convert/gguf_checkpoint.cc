#include "engine/convert/gguf_checkpoint.h"

#include <algorithm>
#include <climits>
#include <map>
#include <utility>
#include <vector>

#include "engine/arch/hf_config.h"
#include "engine/base/check.h"
#include "engine/base/model_files.h"
#include "engine/base/utf8.h"
#include "engine/convert/gguf_config.h"
#include "engine/convert/gguf_tokenizer.h"
#include "engine/formats/gguf.h"

namespace sluice {
namespace {

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(size);
  }
  return text + "]";
}

// The name of a role's own tensor, without "blk.N." where `in_block`.
struct RoleName {
  std::string_view name;
  bool in_block;
};

RoleName NameOf(TensorRole role, bool tied) {
  switch (role) {
    case TensorRole::kEmbedding:
      return {"token_embd.weight", false};
    case TensorRole::kFinalNorm:
      return {"output_norm.weight", false};
    case TensorRole::kLmHead:
      return {tied ? "token_embd.weight" : "output.weight", false};
    case TensorRole::kAttentionNorm:
      return {"attn_norm.weight", true};
    case TensorRole::kQ:
      return {"attn_q.weight", true};
    case TensorRole::kK:
      return {"attn_k.weight", true};
    case TensorRole::kV:
      return {"attn_v.weight", true};
    case TensorRole::kO:
      return {"attn_output.weight", true};
    case TensorRole::kQBias:
      return {"attn_q.bias", true};
    case TensorRole::kKBias:
      return {"attn_k.bias", true};
    case TensorRole::kVBias:
      return {"attn_v.bias", true};
    case TensorRole::kOBias:
      return {"attn_output.bias", true};
    case TensorRole::kQNorm:
      return {"attn_q_norm.weight", true};
    case TensorRole::kKNorm:
      return {"attn_k_norm.weight", true};
    case TensorRole::kMoeNorm:
      return {"ffn_norm.weight", true};
    case TensorRole::kRouter:
      return {"ffn_gate_inp.weight", true};
    case TensorRole::kExpertGate:
      return {"ffn_gate_exps.weight", true};
    case TensorRole::kExpertUp:
      return {"ffn_up_exps.weight", true};
    case TensorRole::kExpertDown:
      return {"ffn_down_exps.weight", true};
    case TensorRole::kSharedGate:
      return {"ffn_gate_shexp.weight", true};
    case TensorRole::kSharedUp:
      return {"ffn_up_shexp.weight", true};
    case TensorRole::kSharedDown:
      return {"ffn_down_shexp.weight", true};
    case TensorRole::kSharedGateWeight:
      return {"ffn_gate_inp_shexp.weight", true};
    case TensorRole::kDenseGate:
      return {"ffn_gate.weight", true};
    case TensorRole::kDenseUp:
      return {"ffn_up.weight", true};
    case TensorRole::kDenseDown:
      return {"ffn_down.weight", true};
  }
  SLUICE_CHECK(false, "an unknown tensor role");
}

// The places where a weight may be, the usual one first; rows and columns are those of the weight
// in Hugging Face form.
std::vector<TensorSlice> Candidates(const ModelConfig& config, TensorRole role, int layer,
                                    int expert) {
  const TensorSlice published = TensorCandidates(config, role, layer, expert)[0];
  const int64_t rows = published.rows, columns = published.columns;
  const std::string block = "blk." + std::to_string(layer) + ".";
  const auto [name, in_block] = NameOf(role, config.tied_embeddings);
  const std::string own = (in_block ? block : "") + std::string(name);
  std::vector<TensorSlice> places;
  const auto add = [&](std::string tensor, std::vector<int64_t> shape, int64_t first_row) {
    places.push_back({std::move(tensor), std::move(shape), first_row, rows, columns});
  };
  switch (role) {
    case TensorRole::kExpertGate:
    case TensorRole::kExpertUp:
    case TensorRole::kExpertDown: {
      const int64_t experts = config.router.num_experts;
      add(own, {experts, rows, columns}, expert * rows);
      if (role != TensorRole::kExpertDown) {
        add(block + "ffn_gate_up_exps.weight", {experts, 2 * rows, columns},
            expert * 2 * rows + (role == TensorRole::kExpertUp ? rows : 0));
      }
      const std::string_view part = role == TensorRole::kExpertGate ? "ffn_gate."
                                    : role == TensorRole::kExpertUp ? "ffn_up."
                                                                    : "ffn_down.";
      add(block + std::string(part) + std::to_string(expert) + ".weight", {rows, columns}, 0);
      break;
    }
    case TensorRole::kQ:
    case TensorRole::kK:
    case TensorRole::kV: {
      add(own, {rows, columns}, 0);
      const int64_t q = int64_t{config.heads} * config.head_dim;
      const int64_t kv = int64_t{config.kv_heads} * config.head_dim;
      add(block + "attn_qkv.weight", {q + 2 * kv, columns},
          role == TensorRole::kQ   ? 0
          : role == TensorRole::kK ? q
                                   : q + kv);
      break;
    }
    case TensorRole::kSharedGateWeight:
      add(own, {columns}, 0);
      add(own, {1, columns}, 0);
      break;
    default:
      add(own, published.shape, 0);
  }
  return places;
}

class GgufCheckpoint final : public Checkpoint {
 public:
  GgufCheckpoint(GgufReader reader, ModelConfig config, std::map<std::string, std::string> files)
      : reader_(std::move(reader)), config_(std::move(config)), files_(std::move(files)) {
    // Only this family has its rotary halves interleaved (LlamaModel.permute of the converter).
    interleaved_ = config_.family == "mixtral";
  }

  const ModelConfig& config() const override { return config_; }
  const std::map<std::string, std::string>& files() const override { return files_; }

  std::string description() const override {
    // The type of most bytes.
    std::map<std::string_view, uint64_t> bytes;
    for (const GgufTensor& tensor : reader_.tensors()) {
      if (tensor.type) bytes[tensor.type->name] += tensor.bytes;
    }
    std::string_view most = "no tensors";
    uint64_t largest = 0;
    for (const auto& [name, count] : bytes) {
      if (count > largest) most = name;
      largest = std::max(largest, count);
    }
    const Result<std::string> named = reader_.GetString("general.name");
    const std::string name = named && !named->empty() ? ReplaceInvalidUtf8(named->substr(0, 200))
                                                      : reader_.path().stem().string();
    return name + ", gguf v" + std::to_string(reader_.version()) + ", " + std::string(most);
  }

  uint64_t weight_bytes() const override {
    uint64_t bytes = 0;
    for (const GgufTensor& tensor : reader_.tensors()) bytes += tensor.bytes;
    return bytes;
  }

  Result<CheckpointWeight> Find(TensorRole role, int layer, int expert) const override {
    const std::string file = reader_.path().string() + ": ";
    const std::vector<TensorSlice> places = Candidates(config_, role, layer, expert);
    const GgufTensor* wrong = nullptr;
    for (const TensorSlice& place : places) {
      const GgufTensor* tensor = reader_.Find(place.name);
      if (tensor == nullptr) continue;
      if (tensor->shape != place.shape) {
        wrong = wrong == nullptr ? tensor : wrong;
        continue;
      }
      if (!tensor->type) {
        return Unsupported(file + "the tensor " + tensor->name + " has type " +
                           std::to_string(tensor->type_number) +
                           ", which is not read; use a Q2_K to Q8_0, IQ4, MXFP4 or float file");
      }
      CheckpointWeight weight;
      weight.name = tensor->name;
      weight.rows = static_cast<int>(place.rows);
      weight.cols = static_cast<int>(place.columns);
      weight.type = *tensor->type;
      weight.tensor = static_cast<size_t>(tensor - reader_.tensors().data());
      weight.first_row = place.first_row;
      if (interleaved_ && (role == TensorRole::kQ || role == TensorRole::kK)) {
        weight.interleaved_head_dim = config_.head_dim;
      }
      return weight;
    }
    if (wrong != nullptr) {
      return Corrupt(file + "the tensor " + wrong->name + " has shape " + ShapeText(wrong->shape) +
                     ", but its metadata ask for " + ShapeText(places[0].shape));
    }
    return NotFound(file + "the tensor " + places[0].name +
                    " is missing; its metadata ask for it with shape " +
                    ShapeText(places[0].shape));
  }

  Result<> ReadRaw(const CheckpointWeight& weight, int first_row, int rows,
                   std::span<std::byte> out) const override {
    SLUICE_CHECK(first_row >= 0 && rows >= 0 && first_row <= weight.rows - rows);
    const uint64_t row_bytes = GgufBytes(weight.type, static_cast<uint64_t>(weight.cols));
    SLUICE_CHECK(out.size() == static_cast<uint64_t>(rows) * row_bytes);
    const GgufTensor& tensor = reader_.tensors()[weight.tensor];
    const auto offset = [&](int64_t row) {
      return static_cast<uint64_t>(weight.first_row + weight.SourceRow(row)) * row_bytes;
    };
    if (weight.interleaved_head_dim == 0) return reader_.Read(tensor, offset(first_row), out);
    for (int i = 0; i < rows; ++i) {
      const auto row = out.subspan(static_cast<uint64_t>(i) * row_bytes, row_bytes);
      if (auto ok = reader_.Read(tensor, offset(first_row + i), row); !ok) return ok;
    }
    return {};
  }

  // Every weight is there, and nothing else is.
  Result<> Check() const {
    std::vector<bool> used(reader_.tensors().size());
    for (const ExpectedTensor& expected : ExpectedTensors(config_)) {
      const Result<CheckpointWeight> weight = Find(expected.role, expected.layer, expected.expert);
      if (!weight) return weight.error();
      used[weight->tensor] = true;
    }
    for (size_t i = 0; i < used.size(); ++i) {
      const std::string& name = reader_.tensors()[i].name;
      if (!used[i] && name != "rope_freqs.weight") {
        return Unsupported(reader_.path().string() + ": the tensor " +
                           ReplaceInvalidUtf8(name.substr(0, 100)) + " is not part of " +
                           config_.family + " as served");
      }
    }
    return {};
  }

 private:
  GgufReader reader_;
  ModelConfig config_;
  std::map<std::string, std::string> files_;
  bool interleaved_ = false;
};

}  // namespace

Result<std::unique_ptr<Checkpoint>> OpenGgufCheckpoint(const std::filesystem::path& path) {
  Result<GgufReader> reader = GgufReader::Open(path);
  if (!reader) return reader.error();
  Result<GgufConfigTexts> texts = WriteGgufConfig(*reader);
  if (!texts) return texts.error();
  Result<ModelConfig> config = ParseHfConfig(texts->config, texts->generation);
  if (!config) {
    return WithContext(path.string() + ": its metadata written as a config.json", config.error());
  }
  std::map<std::string, std::string> files;
  if (auto ok = WriteGgufTokenizer(*reader, config->vocab, &files); !ok) return ok.error();
  files[std::string(ModelFiles::kConfig)] = std::move(texts->config);
  files[std::string(ModelFiles::kGenerationConfig)] = std::move(texts->generation);
  auto checkpoint =
      std::make_unique<GgufCheckpoint>(std::move(*reader), std::move(*config), std::move(files));
  if (auto ok = checkpoint->Check(); !ok) return ok.error();
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace sluice
