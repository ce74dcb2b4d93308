// What bit-nested experts cost a real model, measured end to end without any quantized kernel: the
// experts' weights are quantized, dequantized at each precision, written as an F32 checkpoint and
// run. Prints, by bits, the output error relative to the output (through the second moments of the
// inputs) and the KL divergence per token from the unchanged model.
//
//   bench_nested_quality MODEL_DIRECTORY TEXT... [-- RECIPE...]
//
// The first half of each text calibrates, the second is measured. Recipes, all when none is given,
// are listed by `bench_nested_quality`; "allocate" compares allocations of bits to experts.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/convert/allocation.h"
#include "engine/convert/calibration.h"
#include "engine/convert/expert_error.h"
#include "engine/convert/quantizer.h"
#include "engine/formats/safetensors.h"
#include "engine/text/tokenizer.h"
#include "kernels/common/half.h"
#include "kernels/common/nested.h"

namespace sluice {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void Die(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(1);
}

struct Recipe {
  const char* name;
  NestedFormat format;
  std::vector<double> weights;
  bool mean_square = false;
  bool compensate = false;
  bool fit = false;
  double damping = 0.05;
  double prior = 32;
  double gain = 0;
};

const std::vector<Recipe>& Recipes() {
  constexpr NestedFormat kFour = {ScaleKind::kU8Min, 32, 4}, kTwo = {ScaleKind::kU8Min, 32, 2},
                         kThree = {ScaleKind::kU8Min, 32, 3}, kEight = {ScaleKind::kU8Min, 32, 8};
  static const std::vector<Recipe> recipes = {
      {"2-free", kTwo, {1}},
      {"3-free", kThree, {0, 1}},
      {"4-free", kFour, {0, 0, 1}},
      {"2-square", kTwo, {1}, true},
      {"4-square", kFour, {0, 0, 1}, true},
      {"4-square-fit", kFour, {0, 0, 1}, true, false, true},
      {"4-square.1-fit", kFour, {0.1, 0, 1}, true, false, true},
      {"4-square.3-fit", kFour, {0.3, 0, 1}, true, false, true},
      {"2-gptq", kTwo, {1}, true, true},
      {"3-gptq", kThree, {0, 1}, true, true},
      {"4-gptq", kFour, {0, 0, 1}, true, true},
      {"4-gptq.01", kFour, {0.01, 0.03, 1}, true, true},
      {"4-gptq.03", kFour, {0.03, 0.1, 1}, true, true},
      {"4-gptq.1", kFour, {0.1, 0.3, 1}, true, true},
      {"4-gptq.03-fit", kFour, {0.03, 0.1, 1}, true, true, true},
      {"4-gptq.3", kFour, {0.3, 0.6, 1}, true, true},
      {"4-gptq.1only", kFour, {0.1, 0, 1}, true, true},
      {"4-gptq.1-fit", kFour, {0.1, 0.3, 1}, true, true, true},
      {"4-gptq.1-damp.01", kFour, {0.1, 0.3, 1}, true, true, false, 0.01},
      {"4-gptq.1-damp.2", kFour, {0.1, 0.3, 1}, true, true, false, 0.2},
      {"4-gptq.1-prior0", kFour, {0.1, 0.3, 1}, true, true, false, 0.05, 0},
      {"4-gptq.1-prior4", kFour, {0.1, 0.3, 1}, true, true, false, 0.05, 4},
      {"2-gain", kTwo, {1}, false, false, false, 0, 0, 1},
      {"3-gain", kThree, {0, 1}, false, false, false, 0, 0, 1},
      {"4-gain", kFour, {0, 0, 1}, false, false, true, 0, 0, 1},
      {"4-gain.1", kFour, {0.1, 0, 1}, false, false, true, 0, 0, 1},
      {"2-gptq-gain", kTwo, {1}, true, true, false, 0.05, 32, 1},
      {"2-gptq-gain.5", kTwo, {1}, true, true, false, 0.05, 32, 0.5},
      {"3-gptq-gain", kThree, {0, 1}, true, true, false, 0.05, 32, 1},
      {"4-gptq.03-gain", kFour, {0.03, 0.1, 1}, true, true, true, 0.05, 32, 1},
      {"4-gptq.1-gain", kFour, {0.1, 0.3, 1}, true, true, true, 0.05, 32, 1},
      {"8-gain", kEight, {0.03, 0.1, 1, 1, 1}, false, false, true, 0, 0, 1},
      {"8-gptq.03-gain", kEight, {0.03, 0.1, 1, 1, 1}, true, true, true, 0.05, 32, 1},
      {"8-gptq.03b-gain", kEight, {0.03, 0.1, 1, 4, 16}, true, true, true, 0.05, 32, 1},
      {"8-gptq.1-gain", kEight, {0.1, 0.3, 1, 1, 1}, true, true, true, 0.05, 32, 1},
  };
  return recipes;
}

struct Tensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

std::vector<Tensor> ReadAll(const fs::path& directory) {
  const auto reader = SafetensorsReader::Open(directory);
  if (!reader) Die(reader.error().message);
  std::vector<Tensor> tensors;
  for (const TensorInfo& info : reader->tensors()) {
    Tensor t = {info.name, info.shape, {}};
    std::vector<std::byte> raw(info.bytes);
    if (!reader->Read(info, 0, raw)) Die("cannot read " + info.name);
    t.values.resize(info.bytes / DTypeBytes(info.dtype));
    for (size_t i = 0; i < t.values.size(); ++i) {
      if (info.dtype == DType::kF32) {
        std::memcpy(&t.values[i], raw.data() + 4 * i, 4);
      } else {
        uint16_t half;
        std::memcpy(&half, raw.data() + 2 * i, 2);
        t.values[i] = info.dtype == DType::kBF16 ? Bf16ToF32(half) : F16ToF32(half);
      }
    }
    tensors.push_back(std::move(t));
  }
  return tensors;
}

void WriteAll(const std::vector<Tensor>& tensors, const fs::path& path) {
  nlohmann::ordered_json header;
  uint64_t offset = 0;
  for (const Tensor& t : tensors) {
    const uint64_t end = offset + t.values.size() * sizeof(float);
    header[t.name] = {{"dtype", "F32"}, {"shape", t.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  const std::string text = header.dump();
  std::ofstream file(path, std::ios::binary);
  const uint64_t length = text.size();
  file.write(reinterpret_cast<const char*>(&length), sizeof(length));
  file << text;
  for (const Tensor& t : tensors) {
    file.write(reinterpret_cast<const char*>(t.values.data()),
               static_cast<std::streamsize>(t.values.size() * sizeof(float)));
  }
  if (!file.flush()) Die("cannot write " + path.string());
}

std::unique_ptr<Model> Load(const fs::path& directory, ForwardObserver* observer) {
  ModelOptions options;
  options.kv_blocks = 32;
  options.kv_dtype = KvDType::kF32;
  options.observer = observer;
  auto model = Model::Load(directory, options);
  if (!model) Die(model.error().message);
  return std::move(*model);
}

// Log-probabilities of every token, appended.
std::vector<float> LogProbabilities(Model* model, const std::vector<std::vector<int32_t>>& texts) {
  std::vector<float> all;
  std::vector<int32_t> blocks(32);
  for (int i = 0; i < 32; ++i) blocks[i] = i;
  const auto vocab = static_cast<size_t>(model->config().vocab);
  for (const auto& tokens : texts) {
    const SequenceChunk chunk = {tokens, 0, blocks, LogitRows::kAll};
    const auto logits = model->Forward({&chunk, 1});
    for (size_t row = 0; row < logits.size(); row += vocab) {
      double largest = -1e30, total = 0;
      for (size_t i = 0; i < vocab; ++i) largest = std::max(largest, double{logits[row + i]});
      for (size_t i = 0; i < vocab; ++i) total += std::exp(logits[row + i] - largest);
      const double log_total = largest + std::log(total);
      for (size_t i = 0; i < vocab; ++i) {
        all.push_back(static_cast<float>(logits[row + i] - log_total));
      }
    }
  }
  return all;
}

double KlPerToken(const std::vector<float>& p, const std::vector<float>& q, size_t vocab) {
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(double{p[i]}) * (double{p[i]} - q[i]);
  return kl / (static_cast<double>(p.size()) / static_cast<double>(vocab));
}

// sum over rows of e H e^T with U^T U = H^-1: with z = e R (R = U^-1), the squared length of z; z
// solves z U = e.
double OutputError(const std::vector<float>& u, const std::vector<float>& e, size_t cols) {
  double total = 0;
  std::vector<double> z(cols);
  for (size_t at = 0; at < e.size(); at += cols) {
    for (size_t k = 0; k < cols; ++k) {
      double sum = e[at + k];
      for (size_t j = 0; j < k; ++j) sum -= z[j] * u[j * cols + k];
      z[k] = sum / u[k * cols + k];
      total += z[k] * z[k];
    }
  }
  return total;
}

class Quality {
 public:
  Quality(const fs::path& directory, const std::vector<std::string>& texts)
      : directory_(directory), tensors_(ReadAll(directory)) {
    const auto tokenizer = Tokenizer::Load(directory);
    if (!tokenizer) Die(tokenizer.error().message);
    std::vector<std::vector<int32_t>> calibration;
    for (const std::string& path : texts) {
      std::ifstream file(path, std::ios::binary);
      const std::string text(std::istreambuf_iterator<char>(file), {});
      const auto pieces = CutSequences((*tokenizer)->Encode(text), 192);
      for (size_t i = 0; i < pieces.size(); ++i) {
        (i < pieces.size() / 2 ? calibration : measured_).push_back(pieces[i]);
      }
    }
    auto plain = Load(directory, nullptr);
    vocab_ = static_cast<size_t>(plain->config().vocab);
    CalibrationOptions options;
    options.moments_end_layer = plain->config().num_layers();
    calibrator_ = std::make_unique<Calibrator>(plain->config(), options);
    RunCalibration(Load(directory, calibrator_.get()).get(), calibration);
    // The reference runs in F32 as the rest do.
    Start();
    WriteAll(tensors_, scratch_ / "model.safetensors");
    reference_ = LogProbabilities(Load(scratch_, nullptr).get(), measured_);
    std::printf("%zu calibration sequences, %zu measured of 192 tokens\n", calibration.size(),
                measured_.size());
  }
  ~Quality() { fs::remove_all(scratch_); }

  // Average bits by allocation beside the same bits for all, with error compensation, each expert
  // at the full precision of its bits; under several exponents of the allocation's sum.
  void Allocate() {
    const std::vector<int> ladder = {2, 3, 4, 6, 8};
    std::vector<Recipe> recipes;
    std::vector<NestedFormat> formats;
    for (const int bits : ladder) {
      formats.push_back({ScaleKind::kU8Min, 32, static_cast<uint8_t>(bits)});
      recipes.push_back({"", formats.back(), DefaultLevelWeights(bits, true), true, true});
      std::fill(recipes.back().weights.begin(), recipes.back().weights.end(), 0.0);
      recipes.back().weights.back() = recipes.back().gain = 1;
    }
    // versions[i][step]: tensor i at that step's full precision.
    std::vector<std::vector<std::vector<float>>> versions(tensors_.size());
    std::vector<ExpertId> owner(tensors_.size(), {-1, -1});
    const CalibrationStatistics& all = calibrator_->statistics();
    for (size_t i = 0; i < tensors_.size(); ++i) {
      int layer = 0, expert = 0;
      char kind[16];
      if (std::sscanf(tensors_[i].name.c_str(), "model.layers.%d.mlp.experts.%d.%15[a-z]_proj",
                      &layer, &expert, kind) != 3) {
        continue;
      }
      owner[i] = {layer, expert};
      const LayerStatistics& statistics = all.layers[layer];
      const ExpertStatistics& seen = statistics.experts[expert];
      const bool down = std::strcmp(kind, "down") == 0;
      const InputMoments& moments = down ? seen.down_inputs : seen.inputs;
      const InputMoments merged = down ? InputMoments() : statistics.MergedInputs();
      const double prior = 32 * moments.weight() / std::max<double>(1, seen.count);
      const std::vector<float> squares = moments.MeanSquare();
      const std::vector<float> factor = moments.Compensation(0.05, down ? nullptr : &merged, prior);
      for (const Recipe& recipe : recipes) {
        versions[i].push_back(Quantize(recipe, {squares, factor}, tensors_[i]).back());
      }
    }
    const auto find = [&](size_t layer, size_t expert, const char* kind) -> const Tensor& {
      const std::string name = "model.layers." + std::to_string(layer) + ".mlp.experts." +
                               std::to_string(expert) + "." + kind + "_proj.weight";
      for (const Tensor& t : tensors_) {
        if (t.name == name) return t;
      }
      Die("no tensor " + name);
    };
    std::vector<std::vector<ExpertProfile>> profiles(all.layers.size());
    for (size_t l = 0; l < all.layers.size(); ++l) {
      for (size_t e = 0; e < all.layers[l].experts.size(); ++e) {
        const ExpertStatistics& seen = all.layers[l].experts[e];
        const Tensor& gate = find(l, e, "gate");
        const std::vector<float> in = seen.inputs.MeanSquare();
        const std::vector<float> inner = seen.down_inputs.MeanSquare();
        const std::vector<float> factor = seen.inputs.Compensation(0.05);
        const std::vector<float> inner_factor = seen.down_inputs.Compensation(0.05);
        const ExpertFloats expert = {static_cast<int>(gate.shape[1]),
                                     static_cast<int>(gate.shape[0]), gate.values,
                                     find(l, e, "up").values, find(l, e, "down").values};
        profiles[l].push_back(
            ProfileOf(seen, all.tokens,
                      ExpertOutputErrors(expert, {in, factor}, {inner, inner_factor}, seen.samples,
                                         formats)));
      }
    }
    const auto measure = [&](const char* what, const std::vector<std::vector<int>>& bits) {
      std::vector<Tensor> version = tensors_;
      for (size_t i = 0; i < tensors_.size(); ++i) {
        if (owner[i].layer < 0) continue;
        const auto step =
            std::find(ladder.begin(), ladder.end(), bits[owner[i].layer][owner[i].index]);
        version[i].values = versions[i][static_cast<size_t>(step - ladder.begin())];
      }
      WriteAll(version, scratch_ / "model.safetensors");
      const auto got = LogProbabilities(Load(scratch_, nullptr).get(), measured_);
      std::printf("%-44s KL %.5f\n", what, KlPerToken(reference_, got, vocab_));
      std::fflush(stdout);
    };
    struct Exponents {
      double alpha, beta, gamma;
      bool across;
    };
    char text[96];
    for (const double average : {3.0, 2.5, 4.0}) {
      if (average != 2.5) {
        std::vector<std::vector<int>> uniform;
        for (const auto& layer : profiles) {
          uniform.emplace_back(layer.size(), static_cast<int>(average));
        }
        std::snprintf(text, sizeof text, "%.2f bits, uniform", average);
        measure(text, uniform);
      }
      for (const Exponents& x : {Exponents{1, 1, 1, false}, {1, 2, 2, false}, {1, 2, 2, true}}) {
        AllocationOptions options;
        options.average_bits = average;
        options.alpha = x.alpha;
        options.beta = x.beta;
        options.gamma = x.gamma;
        options.across_layers = x.across;
        const auto allocation = AllocateBits(profiles, options);
        if (!allocation) Die(allocation.error().message);
        std::snprintf(text, sizeof text, "%.2f bits, exponents %g %g %g%s, %zu super",
                      allocation->average_bits, x.alpha, x.beta, x.gamma,
                      x.across ? ", across" : "", allocation->super_experts.size());
        measure(text, allocation->bits);
      }
    }
  }

  void Run(const Recipe& recipe) {
    const int planes = NestedPlanes(recipe.format.bits);
    std::vector<std::vector<Tensor>> versions(static_cast<size_t>(planes), tensors_);
    std::vector<double> lost(static_cast<size_t>(planes));
    double total = 0;
    for (size_t i = 0; i < tensors_.size(); ++i) {
      int layer = 0, expert = 0;
      char kind[16];
      if (std::sscanf(tensors_[i].name.c_str(), "model.layers.%d.mlp.experts.%d.%15[a-z]_proj",
                      &layer, &expert, kind) != 3) {
        continue;
      }
      const LayerStatistics& statistics = calibrator_->statistics().layers[layer];
      const ExpertStatistics& seen = statistics.experts[expert];
      const bool down = std::strcmp(kind, "down") == 0;
      const InputMoments& moments = down ? seen.down_inputs : seen.inputs;
      const InputMoments merged = down ? InputMoments() : statistics.MergedInputs();
      const auto cols = static_cast<size_t>(tensors_[i].shape[1]);
      const double prior = recipe.prior * moments.weight() / std::max<double>(1, seen.count);
      const std::vector<float> squares = moments.MeanSquare();
      const std::vector<float> factor =
          moments.Compensation(recipe.damping, down ? nullptr : &merged, prior);
      // Judging costs more than quantizing: two layers stand for all.
      const std::vector<float> judge =
          layer % 3 == 1 ? moments.Compensation(0.001) : std::vector<float>();
      InputStatistics known;
      if (recipe.mean_square) known.mean_square = squares;
      if (recipe.compensate) known.compensation = factor;
      const auto values = Quantize(recipe, known, tensors_[i]);
      for (int p = 0; p < planes; ++p) {
        std::vector<float> error = values[p];
        for (size_t k = 0; k < error.size(); ++k) error[k] -= tensors_[i].values[k];
        if (!judge.empty()) lost[p] += OutputError(judge, error, cols) * moments.weight();
        versions[p][i].values = values[p];
      }
      if (!judge.empty()) total += OutputError(judge, tensors_[i].values, cols) * moments.weight();
    }
    std::printf("%-20s", recipe.name);
    for (int p = 0; p < planes; ++p) {
      WriteAll(versions[p], scratch_ / "model.safetensors");
      const auto got = LogProbabilities(Load(scratch_, nullptr).get(), measured_);
      std::printf(" | %d bits: %.3g, KL %.4f", NestedPrecision(recipe.format.bits, p + 1),
                  lost[p] / total, KlPerToken(reference_, got, vocab_));
    }
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  void Start() {
    char pattern[] = "/tmp/nested_quality_XXXXXX";
    if (mkdtemp(pattern) == nullptr) Die("cannot make a scratch directory in /tmp");
    scratch_ = pattern;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.path().extension() == ".json") {
        fs::copy_file(entry.path(), scratch_ / entry.path().filename());
      }
    }
  }

  static std::vector<std::vector<float>> Quantize(const Recipe& recipe,
                                                  const InputStatistics& known,
                                                  const Tensor& tensor) {
    const NestedFormat format = recipe.format;
    const int rows = static_cast<int>(tensor.shape[0]), cols = static_cast<int>(tensor.shape[1]);
    const int planes = NestedPlanes(format.bits);
    std::vector<std::vector<std::byte>> bytes(static_cast<size_t>(planes));
    std::byte* starts[kMaxPlanes] = {};
    for (int p = 0; p < planes; ++p) {
      bytes[p].resize(NestedPlaneBytes(format, rows, cols, p));
      starts[p] = bytes[p].data();
    }
    LevelFit fit(format);
    NestedPanel panel;
    for (int first = 0; first < rows; first += kNestedRows) {
      const int count = std::min(kNestedRows, rows - first);
      const float* from = tensor.values.data() + static_cast<ptrdiff_t>(first) * cols;
      QuantizePanel({format, recipe.weights, recipe.gain}, known, from, count, cols, &panel);
      EncodeNestedPanel(format, cols, panel, first / kNestedRows, starts);
      fit.Add(known, from, count, cols, panel);
    }
    const std::vector<NestedLevel> fitted = fit.Levels(recipe.gain);
    std::vector<std::vector<float>> values;
    for (int p = 1; p <= planes; ++p) {
      const NestedLevel level = recipe.fit ? fitted[p - 1] : DefaultNestedLevel(format, p);
      values.emplace_back(tensor.values.size());
      DequantizeNested(format, cols, starts, p, level, 0, rows, values.back().data());
    }
    return values;
  }

  fs::path directory_;
  fs::path scratch_;
  std::vector<Tensor> tensors_;
  std::vector<std::vector<int32_t>> measured_;
  std::vector<float> reference_;
  size_t vocab_ = 0;
  std::unique_ptr<Calibrator> calibrator_;
};

int Main(int argc, char** argv) {
  std::vector<std::string> texts, wanted;
  bool recipes = false;
  for (int i = 2; i < argc; ++i) {
    if (std::strcmp(argv[i], "--") == 0) {
      recipes = true;
    } else {
      (recipes ? wanted : texts).emplace_back(argv[i]);
    }
  }
  if (texts.empty()) {
    std::printf("usage: bench_nested_quality MODEL_DIRECTORY TEXT... [-- RECIPE...]\nrecipes:");
    for (const Recipe& recipe : Recipes()) std::printf(" %s", recipe.name);
    std::printf("\n");
    return 2;
  }
  Quality quality(argv[1], texts);
  if (std::count(wanted.begin(), wanted.end(), "allocate") > 0) quality.Allocate();
  for (const Recipe& recipe : Recipes()) {
    if (wanted.empty() || std::count(wanted.begin(), wanted.end(), recipe.name) > 0) {
      quality.Run(recipe);
    }
  }
  return 0;
}

}  // namespace
}  // namespace sluice

int main(int argc, char** argv) { return sluice::Main(argc, argv); }
