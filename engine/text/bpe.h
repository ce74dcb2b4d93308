// The byte-pair encoding model of tokenizer.json (`model`, type BPE): vocabulary, merges, and what
// happens to characters that the vocabulary lacks (byte fallback, unknown token).
//
// A word of n characters is merged in O(n log n): all mergeable neighbours wait in a heap, ordered
// by merge rank, then position. Source: Sennrich et al. 2016, "Neural Machine Translation of Rare
// Words with Subword Units"; the order of equal ranks follows the `tokenizers` library.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/base/result.h"

namespace sluice::text {

// Ids lie in [0, kMaxTokenId] and tokens are at most kMaxTokenBytes long, so that a small file
// cannot ask for large tables. (The largest published vocabularies have 256 thousand entries.)
inline constexpr int32_t kMaxTokenId = (1 << 22) - 1;
inline constexpr size_t kMaxTokenBytes = 16 * 1024;

// Open-addressing map from a pair of token ids to its merge.
class MergeTable {
 public:
  struct Merge {
    uint32_t rank;
    int32_t id;  // of the merged token
  };

  void Reserve(size_t count);
  void Put(int32_t left, int32_t right, Merge merge);  // a later one replaces an earlier
  const Merge* Find(int32_t left, int32_t right) const {
    if (slots_.empty()) return nullptr;
    const uint64_t key = Key(left, right);
    for (size_t i = Hash(key) & mask_;; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i].merge;
      if (slots_[i].key == kFree) return nullptr;
    }
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  struct Slot {
    uint64_t key = kFree;
    Merge merge{};
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  static uint64_t Hash(uint64_t key) {
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15u;
    return key ^ key >> 29;
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

// Working memory of EncodeWord; one per thread and call.
struct BpeScratch {
  struct Symbol {
    int32_t id;
    int32_t previous;  // index, -1: none
    int32_t next;
    bool gone;  // merged into its left neighbour
  };
  struct Candidate {
    uint64_t order;  // rank << 32 | position: smallest first
    int32_t id;
  };
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
  std::string text;
};

// Immutable; any thread.
class BpeModel {
 public:
  static Result<BpeModel> FromJson(const nlohmann::json& model, std::string_view place);

  // Appends the ids of one non-empty piece. Characters that are neither in the vocabulary nor
  // covered by byte fallback become the unknown token, or nothing where there is none.
  // REQUIRES: valid UTF-8, shorter than 2^31 bytes.
  void EncodeWord(std::string_view word, BpeScratch* scratch, std::vector<int32_t>* ids) const;

  // True when text may be cut in front of every U+2581 ("▁") that follows another character without
  // changing any id: then a whole text, which SentencePiece-style models take as one word, can be
  // encoded word by word.
  bool splits_at_metaspace() const { return splits_at_metaspace_; }

  std::optional<int32_t> Find(std::string_view token) const;
  size_t size() const { return tokens_.size(); }
  // All (token, id) pairs, by ascending id.
  struct Entry {
    std::string token;
    int32_t id;
  };
  const std::vector<Entry>& tokens() const { return tokens_; }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };

  Result<void> ReadVocabulary(const nlohmann::json& model, std::string_view place);
  Result<void> ReadMerges(const nlohmann::json& model, std::string_view place);
  Result<void> AddMerge(std::string_view left, std::string_view right, uint32_t rank,
                        std::string_view place);
  void Prepare();
  int32_t FindCharacter(std::string_view character) const;  // -1: none
  void Split(std::string_view word, BpeScratch* scratch) const;
  void Merge(BpeScratch* scratch) const;

  static constexpr size_t kShortCodePoints = 0x800;

  std::vector<Entry> tokens_;
  std::unordered_map<std::string, int32_t, Hash, std::equal_to<>> ids_;
  MergeTable merges_;
  std::array<int32_t, 256> byte_ids_{};  // of "<0x00>" to "<0xFF>"; -1: none
  std::vector<int32_t> short_ids_;       // of one- and two-byte characters; -1: none
  std::optional<int32_t> unknown_id_;
  std::string continuing_prefix_;  // put in front of every character but a word's first
  std::string end_suffix_;         // put behind a word's last character
  bool fuse_unknown_ = false;
  bool byte_fallback_ = false;
  bool ignore_merges_ = false;
  bool splits_at_metaspace_ = false;
};

}  // namespace sluice::text
