// Writes small GGUF files for tests, valid or not (https://github.com/ggml-org/ggml, docs/gguf.md).
//
//   GgufBuilder file;
//   file.Set("general.architecture", std::string("olmoe"));
//   file.AddTensor("token_embd.weight", {120, 40}, GgufType::kF32, bytes);
//   file.Write(path);
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "engine/formats/gguf.h"

namespace sluice {

class GgufBuilder {
 public:
  // Replaces what the key had. Integers are written in 32 bits where they fit, doubles as float32.
  void Set(const std::string& key, GgufValue value) { metadata_[key] = std::move(value); }
  void Erase(const std::string& key) { metadata_.erase(key); }

  // Row-major shape; without bytes the tensor is zeros.
  void AddTensor(const std::string& name, std::vector<int64_t> shape, GgufType type,
                 std::string bytes = "") {
    uint64_t values = 1;
    for (const int64_t size : shape) values *= static_cast<uint64_t>(size);
    const auto info = FindGgufType(static_cast<uint32_t>(type));
    bytes.resize(GgufBytes(*info, values));
    tensors_[name] = {std::move(shape), static_cast<uint32_t>(type), std::move(bytes)};
  }
  void SetType(const std::string& name, uint32_t type) { tensors_.at(name).type = type; }
  void Rename(const std::string& from, const std::string& to) {
    auto node = tensors_.extract(from);
    node.key() = to;
    tensors_.insert(std::move(node));
  }
  void EraseTensor(const std::string& name) { tensors_.erase(name); }

  // What a file holds; its tensors' bytes are read, and their types must be known.
  static GgufBuilder From(const GgufReader& reader) {
    GgufBuilder builder;
    builder.metadata_ = {reader.metadata().begin(), reader.metadata().end()};
    for (const GgufTensor& tensor : reader.tensors()) {
      std::string bytes(tensor.bytes, '\0');
      (void)reader.Read(tensor, 0, std::as_writable_bytes(std::span(bytes)));
      builder.AddTensor(tensor.name, tensor.shape, tensor.type->type, std::move(bytes));
    }
    return builder;
  }

  void Write(const std::filesystem::path& path) const {
    std::string head = "GGUF";
    Put<uint32_t>(&head, 3);
    Put<uint64_t>(&head, tensors_.size());
    Put<uint64_t>(&head, metadata_.size());
    for (const auto& [key, value] : metadata_) {
      PutText(&head, key);
      std::visit([&](const auto& held) { PutValue(&head, held); }, value);
    }
    std::string body;
    for (const auto& [name, tensor] : tensors_) {
      PutText(&head, name);
      Put(&head, static_cast<uint32_t>(tensor.shape.size()));
      for (size_t i = tensor.shape.size(); i-- > 0;) Put(&head, tensor.shape[i]);
      Put(&head, tensor.type);
      Put<uint64_t>(&head, body.size());
      body += tensor.bytes;
      body.resize((body.size() + 31) / 32 * 32);
    }
    head.resize((head.size() + 31) / 32 * 32);
    std::ofstream(path, std::ios::binary) << head << body;
  }

 private:
  struct Tensor {
    std::vector<int64_t> shape;
    uint32_t type;
    std::string bytes;
  };

  template <class T>
  static void Put(std::string* out, T value) {
    out->append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  static void PutText(std::string* out, const std::string& text) {
    Put<uint64_t>(out, text.size());
    *out += text;
  }
  static void PutValue(std::string* out, bool value) {
    Put<uint32_t>(out, 7);
    Put<uint8_t>(out, value);
  }
  static void PutValue(std::string* out, int64_t value) {
    Put<uint32_t>(out, 11);
    Put(out, value);
  }
  static void PutValue(std::string* out, uint64_t value) {
    Put<uint32_t>(out, value > UINT32_MAX ? 10 : 4);
    if (value > UINT32_MAX) {
      Put(out, value);
    } else {
      Put(out, static_cast<uint32_t>(value));
    }
  }
  static void PutValue(std::string* out, double value) {
    Put<uint32_t>(out, 6);
    Put(out, static_cast<float>(value));
  }
  static void PutValue(std::string* out, const std::string& value) {
    Put<uint32_t>(out, 8);
    PutText(out, value);
  }
  template <class T, class F>
  static void PutList(std::string* out, uint32_t kind, const std::vector<T>& values, F put) {
    Put<uint32_t>(out, 9);
    Put(out, kind);
    Put<uint64_t>(out, values.size());
    for (const auto& value : values) put(value);
  }
  static void PutValue(std::string* out, const std::vector<bool>& values) {
    PutList(out, 7, values, [&](bool value) { Put<uint8_t>(out, value); });
  }
  static void PutValue(std::string* out, const std::vector<int64_t>& values) {
    PutList(out, 5, values, [&](int64_t value) { Put(out, static_cast<int32_t>(value)); });
  }
  static void PutValue(std::string* out, const std::vector<uint64_t>& values) {
    PutList(out, 4, values, [&](uint64_t value) { Put(out, static_cast<uint32_t>(value)); });
  }
  static void PutValue(std::string* out, const std::vector<double>& values) {
    PutList(out, 6, values, [&](double value) { Put(out, static_cast<float>(value)); });
  }
  static void PutValue(std::string* out, const std::vector<std::string>& values) {
    PutList(out, 8, values, [&](const std::string& value) { PutText(out, value); });
  }

  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace sluice
